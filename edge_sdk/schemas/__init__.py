"""The documents that travel: artifact manifest, telemetry batches, device state; standard library only."""
