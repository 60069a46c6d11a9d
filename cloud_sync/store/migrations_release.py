"""The tables of releases, rollouts, drift and retraining; names start at 101."""

from __future__ import annotations

from cloud_sync.store.migrations import Migration

MIGRATIONS: list[Migration] = []
