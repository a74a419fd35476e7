"""Drop-in replacements of kmod's programs."""
