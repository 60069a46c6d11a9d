"""The verbs of the converter."""
