"""The long-running program: the event loop, and the engine that it drives."""
