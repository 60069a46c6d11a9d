"""What goes out: files, messages, pictures."""
