"""The table of plug-ins of one kind: built-ins by name, third parties by entry point `edge_sdk.<kind>`."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from edge_sdk.errors import BackendError, UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    """Where one plug-in lives and what it can do; readable without importing it.

    Args:
        target: `package.module:Attribute`.
        requires: import names that must be present, any missing one makes `load` fail with the extra's name.
        extra: the extra of edge-sdk that installs them.
        capabilities: free form facts that callers select on, such as `{"precisions": ("fp32", "int8")}`.
    """

    target: str
    requires: tuple[str, ...] = ()
    extra: str | None = None
    capabilities: Mapping[str, Any] = field(default_factory=dict)


def near_miss(word: str, known: Iterable[str]) -> str | None:
    """Return `did you mean …` for the closest known word, or None when none is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"did you mean `{close[0]}`?" if close else None


class Registry:
    """Names of one kind of plug-in and how to load them."""

    def __init__(self, kind: str, builtins: Mapping[str, Plugin]) -> None:
        self.kind = kind
        self._plugins = dict(builtins)
        self._entry_points_read = False

    def register(self, name: str, plugin: Plugin) -> None:
        """Add a plug-in; a name that is taken is refused.

        Raises:
            UsageError: the name is taken.
        """
        if name in self._plugins:
            raise UsageError(
                f"{self.kind} `{name}` is registered twice: {self._plugins[name].target} and {plugin.target}",
                hint="rename one of the two entry points",
            )
        self._plugins[name] = plugin

    def names(self, *, third_party: bool = True) -> tuple[str, ...]:
        """Return the known names, sorted."""
        if third_party:
            self._read_entry_points()
        return tuple(sorted(self._plugins))

    def plugin(self, name: str) -> Plugin:
        """Return the entry of `name` without importing it.

        Raises:
            UsageError: the name is unknown; the hint has the nearest one.
        """
        if name not in self._plugins:
            self._read_entry_points()
        try:
            return self._plugins[name]
        except KeyError:
            known = ", ".join(sorted(self._plugins))
            hint = near_miss(name, self._plugins) or f"known: {known}"
            raise UsageError(f"unknown {self.kind} `{name}`", hint=hint) from None

    def missing(self, name: str) -> tuple[str, ...]:
        """Return the import names that `name` needs and that are not installed."""
        return tuple(m for m in self.plugin(name).requires if not _installed(m))

    def load(self, name: str) -> Any:
        """Import and return the object behind `name`.

        Raises:
            UsageError: the name is unknown.
            BackendError: a package it needs is not installed; the hint names the extra.
        """
        plugin = self.plugin(name)
        missing = self.missing(name)
        if missing:
            package = f"edge-sdk[{plugin.extra}]" if plugin.extra else missing[0]
            raise BackendError(
                f"{self.kind} `{name}` needs `{missing[0]}`, which is not installed",
                hint=f"pip install '{package}'",
            )
        module, _, attribute = plugin.target.partition(":")
        return getattr(importlib.import_module(module), attribute)

    def _read_entry_points(self) -> None:
        if self._entry_points_read:
            return
        self._entry_points_read = True
        from importlib.metadata import entry_points

        for point in entry_points(group=f"edge_sdk.{self.kind}"):
            self.register(point.name, Plugin(target=point.value))


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False
