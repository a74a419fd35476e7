"""Parsers of configuration formats, one file each, named as its manual page; no I/O."""
