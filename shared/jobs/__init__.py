"""Maintenance jobs: one run for each slot of a schedule, never two at once."""
