"""From a trained model to one artifact per device profile."""
