"""The documents that travel: artifact manifest, telemetry batches, desired and reported state. Standard library only."""
