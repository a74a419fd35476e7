"""Parsers of the kernel's interfaces: uevents, /proc/modules, kmsg, traces; no I/O."""
