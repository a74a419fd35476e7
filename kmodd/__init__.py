"""kmodd: load kernel modules for devices, for the kernel and for users, and record the reason."""

__version__ = "0.1.0"
