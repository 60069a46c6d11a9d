"""What `edge serve` can be told: command-line options over an optional `serve.toml`, every period included."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cloud_sync.policies import DriftPolicy, RetrainPolicy, RolloutPolicy, TrustPolicy
from edge_sdk.config import parse, read_toml
from edge_sdk.errors import ConfigError, EdgeError
from edge_sdk.schemas.ids import check_id

_POSITIVE = {"min": 0.01}


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestSettings:
    """`flush_ms` is how long a commit waits for company, `batch_messages` how much company it waits for at most."""

    flush_ms: float = field(default=20.0, metadata={"min": 0, "max": 10_000})
    batch_messages: int = field(default=500, metadata={"min": 1, "max": 10_000})
    keep_rejects: int = field(default=1000, metadata={"min": 0})


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSettings:
    """`claim_ttl_s` is the life of a claim token; a device unheard for `silent_after_s` is shown as silent."""

    claim_ttl_s: float = field(default=24 * 3600.0, metadata=_POSITIVE)
    silent_after_s: float = field(default=300.0, metadata=_POSITIVE)


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerSettings:
    """`port` 0 asks for 1883, or any free port when that is taken; the choice is kept in the data directory."""

    port: int = field(default=0, metadata={"min": 0, "max": 65535})
    username: str | None = None
    password: str | None = None
    restart_delay_s: float = field(default=0.2, metadata=_POSITIVE)


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitSettings:
    """The largest request body, and the largest artifact that may be uploaded."""

    request_bytes: int = field(default=1024 * 1024, metadata={"min": 1024})
    artifact_bytes: int = field(default=2 * 1024**3, metadata={"min": 1024})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything the service is configured with.

    `public_host` is the name by which devices reach this machine when it differs from the one they enrol at;
    `control_period_s` is how often rollouts, drift and retraining are looked at, `console_period_s` how often an open
    console page asks for news, `session_s` how long a console login holds.
    """

    data: Path = Path("edge-data")
    host: str = "127.0.0.1"
    port: int = field(default=8080, metadata={"min": 0, "max": 65535})
    broker: str = "auto"
    store: str | None = None
    tenant: str = "default"
    public_host: str | None = None
    control_period_s: float = field(default=10.0, metadata=_POSITIVE)
    console_period_s: float = field(default=3.0, metadata={"min": 0.2})
    session_s: float = field(default=12 * 3600.0, metadata=_POSITIVE)
    ingest: IngestSettings = field(default_factory=IngestSettings)
    devices: DeviceSettings = field(default_factory=DeviceSettings)
    mqtt: BrokerSettings = field(default_factory=BrokerSettings)
    limits: LimitSettings = field(default_factory=LimitSettings)
    trust: TrustPolicy = field(default_factory=TrustPolicy)
    rollout: RolloutPolicy = field(default_factory=RolloutPolicy)
    drift: DriftPolicy = field(default_factory=DriftPolicy)
    retrain: RetrainPolicy = field(default_factory=RetrainPolicy)


BROKERS = ("auto", "mosquitto", "embedded")


def load_settings(path: Path | None, overrides: Mapping[str, Any]) -> Settings:
    """Read `path` (none: the defaults) and put the options that are not None over it.

    Raises:
        ConfigError: the file has wrong keys (all are listed) or a value is out of its range.
    """
    data: dict[str, Any] = read_toml(path) if path is not None else {}
    data |= {key: value for key, value in overrides.items() if value is not None}
    where = str(path) if path is not None else "options"
    settings = parse(data, Settings, where=where)
    problems = []
    if settings.broker not in BROKERS and not settings.broker.startswith(("mqtt://", "mqtts://")):
        problems.append(f"broker: expected one of {', '.join(BROKERS)} or mqtt://HOST:PORT, found `{settings.broker}`")
    try:
        check_id(settings.tenant, "tenant")
    except EdgeError as error:
        problems.append(f"tenant: {error.message}")
    if problems:
        raise ConfigError(f"{where}: {len(problems)} problem{'s' * (len(problems) > 1)}", problems=problems)
    return dataclasses.replace(settings, data=settings.data.absolute())
