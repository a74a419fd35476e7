"""Module files, and the index that depmod builds from them; no I/O."""
