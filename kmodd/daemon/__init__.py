"""The long-running program: polls, hands events to the engine and carries out its commands."""
