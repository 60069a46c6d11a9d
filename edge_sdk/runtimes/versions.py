"""Versions of the installed runtimes, read from package metadata without importing an engine."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib import metadata

from edge_sdk.errors import BackendError
from edge_sdk.registry import Registry

_NUMBERS = re.compile(r"\d+")


def parse_version(text: str) -> tuple[int, ...]:
    """Return the numeric release part of a version, without zeros at the end: `1.31.0rc1` gives (1, 31)."""
    release = re.match(r"v?(\d+(?:\.\d+)*)", text.strip())
    numbers = [int(n) for n in _NUMBERS.findall(release.group(1))] if release else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def in_range(version: str, low: str | None, high: str | None) -> bool:
    """Say whether `low <= version < high`; None is unbounded."""
    found = parse_version(version)
    return (low is None or found >= parse_version(low)) and (high is None or found < parse_version(high))


def installed_version(distributions: Iterable[str]) -> str | None:
    """Return the version of the first of `distributions` that is installed."""
    for name in distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def runtime_version(registry: Registry, name: str) -> str | None:
    """Return the installed version of runtime `name`, None when it is absent or does not say.

    Raises:
        UsageError: the runtime is unknown.
    """
    capabilities = registry.plugin(name).capabilities
    distributions = capabilities.get("distributions") or (capabilities.get("distribution", name),)
    return installed_version(distributions)


def check_version(
    registry: Registry, name: str, low: str | None, high: str | None, distribution: str | None = None
) -> None:
    """Refuse a runtime whose installed version is outside `low <= version < high`, or of another distribution.

    Args:
        distribution: the one whose versions are meant; None where those that provide the runtime are alike.

    Raises:
        UsageError: the runtime is unknown.
        BackendError: the version is outside the range, or of another distribution; the hint has the pip line.
    """
    found = runtime_version(registry, name)
    usual = registry.plugin(name).capabilities.get("distribution", name)
    if distribution is not None and found is not None and distribution != usual:
        raise BackendError(
            f"runtime `{name}` is {usual} {found} here, the artifact was proved in {distribution}",
            hint=f"pip install {distribution}, or convert again for {usual}",
        )
    if found is None or in_range(found, low, high):
        return
    wanted = ",".join(part for part in (f">={low}" if low else "", f"<{high}" if high else "") if part)
    raise BackendError(
        f"runtime `{name}` is version {found}, the artifact was proved with {wanted}",
        hint=f"pip install '{registry.plugin(name).capabilities.get('distribution', name)}{wanted}', or convert again",
    )
