"""What the kernel says: uevents, /proc/modules, kmsg, traces; pure."""
