"""What this device answers over HTTP: the live view, inference, health and metrics."""
