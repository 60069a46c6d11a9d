"""What a device tells the fleet: features, windows and the durable outbox."""
