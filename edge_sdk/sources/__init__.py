"""What comes in: cameras, streams, files, folders."""
