"""Tenants, their members and groups, and the sources that may speak for them."""
