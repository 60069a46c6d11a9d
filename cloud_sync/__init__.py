"""The fleet: ingest, releases, rollouts, drift, retraining."""
