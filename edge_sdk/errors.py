"""The errors that reach a user, and the exit code each one ends the process with.

EdgeError
├── UsageError            2  wrong arguments or values
│   ├── ConfigError       2  a file that a person wrote is wrong (lists every problem)
│   └── ProfileError      2  a device profile is unknown or wrong
├── BackendError          3  a back-end, runtime or tool is missing or cannot do it
│   └── NonFiniteError    3  a model's outputs hold NaN or infinity
├── ArtifactError         4  an artifact is corrupt, unsigned or incompatible
│   ├── SchemaError       4  a document from a machine has the wrong form
│   └── TrustError        4  a signature, hash, version or expiry was refused
├── GuardrailError        5  a measured limit refused
│   └── CalibrationError  5  the calibration or golden set cannot be used for the purpose
├── ConversionError       6  a conversion failed
├── SourceError           6  a source cannot be opened or read
├── SinkError             6  results cannot be written
├── WorkerError           6  a worker process died
└── SyncError             7  the cloud, the broker or the store cannot be reached or refused
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

EXIT_OK = 0
EXIT_BUG = 1
EXIT_INTERRUPTED = 130


class EdgeError(Exception):
    """An error with a message for people, a hint for the next step and an exit code."""

    exit_code: ClassVar[int] = EXIT_BUG
    kind: ClassVar[str] = "error"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def to_json(self) -> dict[str, Any]:
        """Return the object that `--json` prints under `error`."""
        return {"exit": self.exit_code, "kind": self.kind, "message": self.message, "hint": self.hint}

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.hint)


def _rebuild(cls: type[EdgeError], message: str, hint: str | None) -> EdgeError:
    return cls(message, hint=hint)


class UsageError(EdgeError):
    exit_code = 2
    kind = "usage"


class ConfigError(UsageError):
    """A file that a person wrote is wrong; `problems` has one line per wrong key."""

    kind = "config"

    def __init__(self, message: str, *, hint: str | None = None, problems: Sequence[str] = ()) -> None:
        text = message if not problems else "\n".join([message, *(f"  {p}" for p in problems)])
        super().__init__(text, hint=hint)
        self.problems = tuple(problems)


class ProfileError(UsageError):
    kind = "profile"


class BackendError(EdgeError):
    exit_code = 3
    kind = "backend"


class NonFiniteError(BackendError):
    kind = "nonfinite"


class ArtifactError(EdgeError):
    exit_code = 4
    kind = "artifact"


class SchemaError(ArtifactError):
    kind = "schema"


class TrustError(ArtifactError):
    kind = "trust"


class GuardrailError(EdgeError):
    exit_code = 5
    kind = "guardrail"


class CalibrationError(GuardrailError):
    kind = "calibration"


class ConversionError(EdgeError):
    exit_code = 6
    kind = "conversion"


class SourceError(EdgeError):
    exit_code = 6
    kind = "source"


class SinkError(EdgeError):
    exit_code = 6
    kind = "sink"


class WorkerError(EdgeError):
    exit_code = 6
    kind = "worker"


class SyncError(EdgeError):
    exit_code = 7
    kind = "sync"
