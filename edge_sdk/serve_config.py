"""`[serve]` of a pipeline file, and the flags of `edge run --serve`: where to listen, for whom, how much."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field, replace
from pathlib import Path

from edge_sdk.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchConfig:
    """`[serve.batches]`: the bounds of what is submitted now and fetched later.

    Args:
        folder: where accepted batches are kept, to go on after a restart; none: in memory.
        queued: batches that wait or run at once; more are refused with 429.
        images: images of one batch; more are refused with 413.
        pending_mb: bytes of all images that wait; more are refused with 429.
        results_mb: bytes of all results that are kept; the oldest ended batches go first.
        keep_s: seconds for which the results of an ended batch can be fetched.
        webhook_hosts: hosts that may be told of the end. None given: any, as long as only this machine can connect
            (`host` is a loopback address), and none otherwise.
        webhook_secret: key of the signature in `X-Edge-Signature`; none means unsigned.
        webhook_attempts: how often a webhook is tried, with growing pauses.
    """

    folder: Path | None = None
    queued: int = field(default=8, metadata={"min": 1, "max": 1000})
    images: int = field(default=1000, metadata={"min": 1, "max": 100_000})
    pending_mb: float = field(default=64.0, metadata={"min": 0.001, "max": 10_000})
    results_mb: float = field(default=32.0, metadata={"min": 0.001, "max": 10_000})
    keep_s: float = field(default=3600.0, metadata={"min": 0.1, "max": 604_800})
    webhook_hosts: tuple[str, ...] = ()
    webhook_secret: str | None = field(default=None, repr=False)
    webhook_attempts: int = field(default=6, metadata={"min": 1, "max": 100})


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """Where to listen, who may ask, how many inferences a second to allow, and how long to finish what was begun.

    Args:
        port: 0 lets the system choose.
        rate: inferences a second; none means as many as come.
        tokens: with any, every request but those for health and readiness needs one (`Authorization: Bearer …`).
        token_file: more of them, one a line.
        drain_s: seconds for requests and batches that are under way when the service stops.
    """

    port: int = field(metadata={"min": 0, "max": 65535})
    host: str = "127.0.0.1"
    rate: float | None = field(default=None, metadata={"min": 0.001, "max": 1e6})
    tokens: tuple[str, ...] = field(default=(), repr=False)
    token_file: Path | None = None
    drain_s: float = field(default=10.0, metadata={"min": 0, "max": 600})
    batches: BatchConfig = field(default_factory=BatchConfig)

    def __post_init__(self) -> None:
        if any(not token or not token.isascii() or token != token.strip() for token in self.tokens):
            raise ValueError("tokens: expected words of ASCII characters")

    @property
    def local(self) -> bool:
        """Whether only this machine can connect."""
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def with_file_tokens(self) -> ServeConfig:
        """Return it with the tokens of `token_file` beside its own.

        Raises:
            ConfigError: the file cannot be read or has none.
        """
        if self.token_file is None:
            return self
        try:
            text = self.token_file.read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is not ASCII text"
            raise ConfigError(
                f"serve.token_file: cannot read {self.token_file}: {str(why).lower()}", hint="one token a line"
            ) from None
        tokens = tuple(line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#"))
        if not tokens:
            raise ConfigError(f"serve.token_file: {self.token_file} has no token", hint="one token a line")
        return replace(self, tokens=(*self.tokens, *tokens), token_file=None)
