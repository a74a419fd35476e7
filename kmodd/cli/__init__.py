"""One short file per program; `__main__` picks it."""
