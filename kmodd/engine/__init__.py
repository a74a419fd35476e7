"""The daemon's decisions: a function from events to commands over one state; no socket, thread or clock of its own."""
