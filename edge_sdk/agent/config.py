"""agent.toml, the identity that enrolment gave, and where an agent keeps its files."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edge_sdk.agent.fs import RealFs, atomic_write
from edge_sdk.agent.health import HealthPolicy
from edge_sdk.agent.link import LinkPolicy
from edge_sdk.config import parse, read_toml
from edge_sdk.errors import ConfigError, SyncError, UsageError
from edge_sdk.pipeline_config import SLOT, PipelineConfig
from edge_sdk.schemas import document
from edge_sdk.schemas.ids import check_id

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetryConfig:
    """`[telemetry]`: see edge_sdk.telemetry.observer.TelemetrySpec; `max_rows` and `max_mb` bound the outbox."""

    sample_period_s: float = field(default=10.0, metadata={"min": 0})
    window_n: int = field(default=200, metadata={"min": 1, "max": 100_000})
    max_window_s: float | None = field(default=None, metadata={"min": 0.5})
    result_period_s: float = field(default=0.0, metadata={"min": 0})
    max_rows: int = field(default=100_000, metadata={"min": 1000})
    max_mb: int = field(default=64, metadata={"min": 1})


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotsConfig:
    """`[slots]`: `trial_s` replaces the length that the rollout asks for; `factory` is an artifact that the device
    came with.

    An update that fails before its trial is tried `attempts` times, first after `retry_s`, then doubling, then once an
    hour.
    """

    trial_s: float | None = field(default=None, metadata={"min": 0})
    factory: Path | None = None
    attempts: int = field(default=5, metadata={"min": 1, "max": 100})
    retry_s: float = field(default=5.0, metadata={"min": 0.05})
    start_timeout_s: float = field(default=120.0, metadata={"min": 1})


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """What `edge agent` needs to know; `server` and `device` default to those of the identity."""

    state_dir: Path
    pipeline: Path
    server: str | None = None
    device: str | None = None
    profile: str | None = None
    name: str = "main"
    report_period_s: float = field(default=30.0, metadata={"min": 0.1})
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
    slots: SlotsConfig = field(default_factory=SlotsConfig)
    health: HealthPolicy = field(default_factory=HealthPolicy)
    link: LinkPolicy = field(default_factory=LinkPolicy)

    @classmethod
    def from_toml(cls, path: Path) -> AgentConfig:
        """Read an agent file; relative paths in it are relative to the file.

        Raises:
            ConfigError: the file or its pipeline file is missing, no TOML, or has wrong keys.
        """
        config = parse(read_toml(path), cls, where=str(path))
        folder = path.absolute().parent
        slots = config.slots
        if slots.factory is not None:
            slots = replace(slots, factory=folder / slots.factory)
        config = replace(config, state_dir=folder / config.state_dir, pipeline=folder / config.pipeline, slots=slots)
        read_pipeline(config.pipeline)
        return config

    def with_telemetry(self, changes: Any) -> AgentConfig:
        """Return it with the `telemetry` keys of a desired state put over its own.

        Raises:
            ConfigError: they are wrong.
        """
        if changes is None:
            return self
        if not isinstance(changes, Mapping):
            raise ConfigError("desired config: `telemetry` is not an object")
        own = document.write(self.telemetry)
        return replace(self, telemetry=parse({**own, **changes}, TelemetryConfig, where="desired config.telemetry"))


def read_pipeline(path: Path) -> PipelineConfig:
    """Return the pipeline that an agent runs.

    Raises:
        ConfigError: the file is missing, no TOML, has wrong keys, or a model of its own.
    """
    pipeline = PipelineConfig.from_toml(path)
    fixed = pipeline.model_stage.model
    if fixed != SLOT:
        raise ConfigError(
            f'{path}: stage model is `{fixed}`, under an agent it must be "slot"',
            hint="name the artifact as `factory` in `[slots]` of agent.toml to run it from the start",
        )
    return pipeline


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who this device is, from enrolment; `credential` is a secret."""

    server: str
    tenant: str
    device: str
    broker_url: str
    credential: str = field(repr=False)
    profile: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Paths:
    """The files of one state directory."""

    root: Path

    @property
    def identity(self) -> Path:
        return self.root / "identity.json"

    @property
    def trust_root(self) -> Path:
        return self.root / "trust-root.json"

    @property
    def nonce(self) -> Path:
        return self.root / "enroll.nonce"

    @property
    def outbox(self) -> Path:
        return self.root / "outbox.db"

    @property
    def state(self) -> Path:
        return self.root / "state.json"

    @property
    def tuf(self) -> Path:
        return self.root / "tuf"

    @property
    def lock(self) -> Path:
        return self.root / "lock"


def load_identity(paths: Paths, config: AgentConfig) -> tuple[Identity, bytes]:
    """Return the identity and the pinned TUF root.

    Raises:
        UsageError: the device has not enrolled.
        ConfigError: agent.toml names another device.
        SchemaError: a file is damaged.
    """
    try:
        raw, root = paths.identity.read_bytes(), paths.trust_root.read_bytes()
    except FileNotFoundError as error:
        raise UsageError(
            f"{error.filename} is missing: this device has not enrolled",
            hint=f"edge enroll TOKEN --server URL --state-dir {paths.root}",
        ) from None
    except OSError as error:
        raise UsageError(
            f"cannot read {error.filename}: {error.strerror}", hint="run as the user that enrolled"
        ) from None
    identity = document.read(document.loads_object(raw, where="identity.json"), Identity, where="identity.json")
    check_id(identity.tenant, "tenant")
    check_id(identity.device, "device")
    if config.device is not None and config.device != identity.device:
        raise ConfigError(
            f"agent.toml names device `{config.device}`, {paths.identity} is `{identity.device}`",
            hint="use another state_dir or enrol again",
        )
    if paths.identity.stat().st_mode & 0o077:
        logger.warning("%s was readable by others, now it is not", paths.identity)
        paths.identity.chmod(0o600)
    return replace(identity, server=config.server or identity.server, profile=config.profile or identity.profile), root


def save_identity(paths: Paths, identity: Identity, root: bytes) -> None:
    """Write the pinned root, then the identity, both only for this user.

    Raises:
        SyncError: the disk does not take them.
    """
    fs = RealFs()
    try:
        atomic_write(fs, paths.trust_root, root)
        write_secret(paths.identity, document.dumps_pretty(document.write(identity)))
    except OSError as error:
        raise SyncError(f"cannot write into {paths.root}: {error.strerror}", hint="check the folder") from None


def write_secret(path: Path, data: bytes) -> None:
    """Replace a file that only this user may read."""
    import os

    part = path.with_name(f".{path.name}.tmp")
    part.unlink(missing_ok=True)
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    RealFs().sync(path.parent)
