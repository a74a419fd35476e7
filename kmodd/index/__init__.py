"""The indexes of a module tree, and matching of aliases; no I/O."""
