"""Maintenance jobs: one run for each slot of a schedule, never two at once, in slices, fenced by an epoch.

queued ──take──▶ running ──finish──▶ done
  ▲                 │ └─────fail───▶ failed
  └── hand over, release (counted) ┘
"""
