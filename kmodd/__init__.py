"""kmodd: loads kernel modules for devices, for the kernel and for people, and says why."""

__version__ = "0.1.0"
