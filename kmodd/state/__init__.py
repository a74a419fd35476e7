"""State of the daemon; no I/O."""
