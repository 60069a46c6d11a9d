"""Tools that cannot live beside the others: each has a virtual environment of its own, made when it is asked for."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from converters.cache import default_root
from edge_sdk.errors import UsageError
from edge_sdk.registry import near_miss

READY = "ready.json"
SCRIPTS = Path(__file__).resolve().parent / "scripts"


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """How to make one environment, and what it is for.

    A bridge reads a form of a source and gives another by `script`, a file that runs in the environment and imports
    nothing of this package. Without a script, the environment runs this package's own worker with another runtime.

    `python` is the first and the last minor version of Python 3 that its packages have wheels for. `disk_mb` is what
    the finished environment takes, `pip` false makes one without packages.
    """

    name: str
    about: str
    requirements: tuple[str, ...]
    python: tuple[int, int]
    disk_mb: int
    reads: str = ""
    gives: str = ""
    script: Path | None = None
    pip: bool = True

    @property
    def version(self) -> str | None:
        """Return the pinned version of the first requirement, None where it is open."""
        return self.requirements[0].partition("==")[2] or None if self.requirements else None

    @property
    def key(self) -> str:
        """Return what tells environments of other pins, or of another Python, from this one."""
        text = json.dumps([list(self.requirements), list(sys.version_info[:2])])
        return f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


TABLE: Mapping[str, Environment] = {
    e.name: e
    for e in (
        Environment(
            name="litert-torch",
            about="PyTorch to LiteRT, by Google's converter",
            requirements=(
                *("litert-torch==0.10.0", "torch==2.13.0", "torchao==0.18.0", "ai-edge-litert==2.3.0"),
                *("ai-edge-quantizer==0.10.0", "jax==0.10.2", "transformers==5.23.0"),
            ),
            python=(11, 13),
            disk_mb=2200,
            reads="torch",
            gives="tflite",
            script=SCRIPTS / "litert_torch_bridge.py",
        ),
        Environment(
            name="onnx2tf",
            about="ONNX to LiteRT, through TensorFlow",
            requirements=(
                *("onnx2tf==1.29.24", "tensorflow==2.19.0", "tf-keras==2.19.0", "numpy==1.26.4", "onnx==1.19.1"),
                *("onnxruntime==1.23.0", "onnxsim==0.4.36", "protobuf==4.25.5", "ai-edge-litert==2.1.0"),
            ),
            python=(10, 12),
            disk_mb=2700,
            reads="onnx",
            gives="tflite",
            script=SCRIPTS / "onnx2tf_bridge.py",
        ),
        Environment(
            name="tflite-runtime",
            about="the runtime of boards that have no ai-edge-litert, to prove builds in it",
            requirements=("tflite-runtime==2.14.0", "numpy<2", "opencv-python-headless<4.12"),
            python=(10, 11),
            disk_mb=300,
        ),
    )
}
"""The environments by name; bridges in the order in which they are preferred."""


def environment(name: str) -> Environment:
    """Return one by its name.

    Raises:
        UsageError: there is none.
    """
    if name not in TABLE:
        raise UsageError(f"unknown environment `{name}`", hint=near_miss(name, TABLE) or f"known: {', '.join(TABLE)}")
    return TABLE[name]


def default_folder() -> Path:
    """Return where environments are kept: EDGE_ENVIRONMENTS, or beside the converter's cache."""
    named = os.environ.get("EDGE_ENVIRONMENTS")
    return Path(named) if named else default_root().parent / "environments"


def find(wanted: Environment, root: Path | None = None) -> Path | None:
    """Return the Python of a finished environment, or None."""
    folder = (root or default_folder()) / wanted.key
    python = folder / "bin" / "python"
    return python if (folder / READY).is_file() and python.exists() else None


def bridges(form: str) -> tuple[Environment, ...]:
    """Return the environments that give `form`, the preferred one first."""
    return tuple(e for e in TABLE.values() if e.gives == form)


def how_to_make(wanted: Environment) -> str:
    """Return what to do where the environment is absent."""
    return (
        f"{wanted.name} ({wanted.about}) runs in an environment of its own of {wanted.disk_mb / 1000:.1f} GB that is "
        f"not made yet: add --make-environments, or make it once with `python -m converters.environments {wanted.name}`"
    )
