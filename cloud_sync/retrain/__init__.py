"""Retraining: when it is due, the trainer's run, the gate, and the release that follows."""
