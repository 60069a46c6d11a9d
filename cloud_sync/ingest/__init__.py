"""Messages from devices: read, committed in groups, acknowledged after the commit."""
