"""The world of the cloud's unit tests."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

for package in ("sqlite_utils", "tuf", "scipy"):
    pytest.importorskip(package, reason="needs edge-sdk[cloud]")


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"tests_cloud_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def world_module() -> Any:
    return _load("world")


@pytest.fixture
def world(world_module: Any, tmp_path: Path) -> Iterator[Any]:
    made = world_module.World(tmp_path)
    yield made
    made.db.close()


@pytest.fixture
def make_world(world_module: Any, tmp_path: Path) -> Iterator[Any]:
    """Makes a world with a policy of the test's own."""
    made = []

    def make(**changes: Any) -> Any:
        import dataclasses

        made.append(world_module.World(tmp_path, dataclasses.replace(world_module.QUICK, **changes)))
        return made[-1]

    yield make
    for one in made:
        one.db.close()
