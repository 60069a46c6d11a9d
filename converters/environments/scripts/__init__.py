"""Scripts that run in environments of their own; each speaks JSON lines and imports nothing of this package."""
