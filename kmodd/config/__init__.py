"""Configuration formats, a file for each, named as its manual page; pure."""
