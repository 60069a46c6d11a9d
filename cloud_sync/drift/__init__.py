"""Drift: each device's windows against its own baseline, the verdicts and the report."""
