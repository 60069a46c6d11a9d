"""Every step by which a fleet database came to its present form."""

from __future__ import annotations

from cloud_sync.store import migrations_fleet, migrations_release
from cloud_sync.store.base import Migration


def all_migrations() -> list[Migration]:
    """Return every migration in the order in which they are applied; a name never changes or moves."""
    return [*migrations_fleet.MIGRATIONS, *migrations_release.MIGRATIONS]
