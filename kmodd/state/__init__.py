"""What the daemon remembers; pure."""
