"""Staged rollouts: who is next, what the guards say, and what each device is told."""
