"""The module file, and what depmod makes of many; pure."""
