"""The verbs of the fleet operator."""
