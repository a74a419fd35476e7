"""Everything that touches the machine. Nothing below this folder does."""
