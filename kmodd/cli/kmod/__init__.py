"""Drop-in replacements for kmod's tools."""
