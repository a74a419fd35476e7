"""Command-line programs, a file for each verb; `__main__` selects one."""
