"""Requests to plans, and outcomes to records; no I/O."""
