"""The daemon that keeps a device at its desired state."""
