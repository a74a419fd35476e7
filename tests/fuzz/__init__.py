"""Fuzzing of the parsers: `targets.py` has each of them, `python -m tests.fuzz` (make fuzz) tries them by coverage."""
