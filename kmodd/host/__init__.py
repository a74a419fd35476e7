"""Everything that touches the machine without CAP_SYS_MODULE. No folder above this one does."""
