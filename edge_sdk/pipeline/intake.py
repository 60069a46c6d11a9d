"""Where a pipeline's frames come from: its source, how it is read, and the recording of its main stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from edge_sdk import sources as source_table
from edge_sdk.errors import UsageError
from edge_sdk.pipeline.feeds import Feed, FeedEvents, LiveFeed, PullFeed
from edge_sdk.sources.base import Source
from edge_sdk.sources.paced import Paced
from edge_sdk.sources.record import Recorder

Policy = Literal["auto", "all", "latest"]


class Intake:
    """Makes a pipeline's source, again after each loss, and the feed that reads it.

    Args:
        source: an address or a Source.
        params: options of the source that the address names.
        policy: `all`, `latest` or `auto`, see `Pipeline`.
        stall_s: a live source that gives nothing for so long is opened again.
        retry_first: keep trying a live source that cannot be opened at the start.
    """

    def __init__(
        self, source: str | int | Source, params: dict[str, Any], *, policy: Policy, stall_s: float, retry_first: bool
    ) -> None:
        if policy not in ("auto", "all", "latest"):
            raise UsageError(f"policy must be auto, all or latest, found {policy!r}")
        self._policy = policy
        self._address = str(source) if isinstance(source, (str, int)) else None
        self._params = params
        self._stall_s, self._retry_first = stall_s, retry_first
        if self._address is None and params:
            raise UsageError("params belong to a source given by its address")
        self._given = None if isinstance(source, (str, int)) else source

    def make(self, **more: Any) -> Source:
        """Return the source, not yet open; `more` are options over those that were given.

        Raises:
            UsageError: the address or an option is wrong.
        """
        if self._given is not None:
            return self._given
        assert self._address is not None
        if self._policy == "latest" and source_table.kind_of(self._address) == "stdin":
            more["live"] = True
        return source_table.create(self._address, {**self._params, **more})

    def policy_of(self, source: Source) -> Literal["all", "latest"]:
        """Return how `source` is read."""
        if self._policy != "auto":
            return self._policy
        return "latest" if source.live else "all"

    def paced(self, source: Source) -> Source:
        """Return a source that comes and goes by itself where the policy says `latest`."""
        return Paced(source) if self.policy_of(source) == "latest" and not source.live else source

    def feed(self, source: Source, events: FeedEvents) -> Feed:
        """Return the feed that reads `source`, and others like it when it fails."""
        if not source.live:
            return PullFeed(source, events)
        waiting = [source]
        return LiveFeed(
            lambda: waiting.pop() if waiting else self.paced(self.make()),
            events,
            make_isolated=self._isolated(),
            keep_all=self._policy == "all",
            stall_s=self._stall_s,
            retry_first=self._retry_first,
        )

    def _isolated(self) -> Callable[[], Source] | None:
        if self._address is None or self._params.get("decode") or not source_table.can_isolate(self._address):
            return None
        return lambda: self.paced(self.make(isolate=True))


def recorder(uri: str, options: dict[str, Any]) -> Recorder:
    """Return what records `uri`, the main stream of a camera whose sub-stream the pipeline sees; not yet started.

    Raises:
        UsageError: it is no stream, or an option is wrong.
    """
    from edge_sdk.config import parse
    from edge_sdk.sources.recording import RecordingConfig

    if source_table.kind_of(uri) != "stream":
        raise UsageError(f"`{source_table.redact(uri)}` cannot be recorded", hint="`record` takes rtsp://… or http://…")
    return Recorder(uri, parse(options, RecordingConfig, where="source.recording"))
