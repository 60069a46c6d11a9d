"""A device profile: what a class of device can run, with the evidence for each figure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edge_sdk.config import parse, read_toml
from edge_sdk.errors import ConfigError, ProfileError
from edge_sdk.parsing import write_dataclass
from edge_sdk.registry import near_miss
from edge_sdk.schemas.ids import ID

Arch = Literal["any", "x86_64", "aarch64", "armv7l", "riscv64"]
Precision = Literal["fp32", "fp16", "int8", "dynamic", "int16x8"]
ISA_FLAGS = (
    "avx2",
    "fma",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_fp16",
    "amx_int8",
    "amx_bf16",
    "neon",
    "dotprod",
    "i8mm",
    "fp16",
    "bf16",
    "sve",
)
INT8_DOT_FLAGS = frozenset({"avx_vnni", "avx512_vnni", "amx_int8", "dotprod", "i8mm"})
"""ISA flags whose int8 dot product accumulates in 32 bits; without one, x86 adds pairs in saturating 16 bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Scheme:
    """How integers stand in an int8 build; with `reduce_range` weights have 7 bits, so 16-bit sums cannot saturate."""

    activation: Literal["uint8", "int8"] = "uint8"
    weight: Literal["uint8", "int8"] = "int8"
    per_channel: bool = True
    reduce_range: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeSupport:
    """One runtime a device may use; `versions` is a range (`>=1.20,<2`), `options` go into the manifest as they are.

    A runtime may stand again with another provider, such as an accelerator's. With `compiler`, its builds are compiled
    by the vendor's tool of that name, and `compiler_options` replace the tool's own. `distribution` is the package that
    provides the runtime there, where it is not the usual one.
    """

    name: str
    versions: str = ""
    distribution: str | None = None
    provider: str = "CPU"
    options: dict[str, Any] = field(default_factory=dict)
    precisions: tuple[Precision, ...] = ("fp32",)
    io_dtypes: tuple[str, ...] = ("float32", "uint8")
    int8: Int8Scheme | None = None
    max_opset: int | None = None
    static_shapes: bool = True
    cpu_fallback: bool = True
    convert_only: bool = False
    compiler: str | None = None
    compiler_options: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an artifact may cost: memory of the worker process in MiB, file in MiB, p50 latency of the engine in ms."""

    ram_mb: float | None = field(default=None, metadata={"min": 1})
    artifact_mb: float | None = field(default=None, metadata={"min": 0.001})
    latency_ms: float | None = field(default=None, metadata={"min": 0.001})


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Where a figure comes from; `source` names the document, the measurement or the reason for the estimate."""

    kind: Literal["measured", "cited", "estimated"]
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A class of device by its architecture, ISA flags (see ISA_FLAGS), runtimes and limits.

    `decode` is the hardware that decodes video there, as `[source] decode` of a pipeline names it; None is software.
    """

    name: str
    arch: Arch
    isa: tuple[str, ...] = ()
    description: str = ""
    cores: int | None = field(default=None, metadata={"min": 1})
    power_mode: str | None = None
    decode: Literal["vaapi", "v4l2m2m", "nvdec"] | None = None
    limits: Limits = field(default_factory=Limits)
    runtimes: tuple[RuntimeSupport, ...] = field(default=(), metadata={"key": "runtime"})
    evidence: dict[str, Evidence] = field(default_factory=dict)

    def runtime(self, name: str, provider: str | None = None) -> RuntimeSupport | None:
        """Return the runtime called `name`, with any provider or the one given, or None when the device has none."""
        return next((r for r in self.runtimes if r.name == name and provider in (None, r.provider)), None)

    @property
    def has_int8_dot(self) -> bool:
        return bool(INT8_DOT_FLAGS & set(self.isa))

    def int8_scheme(self, runtime: str) -> Int8Scheme:
        """Return the int8 scheme that is right on every CPU of the profile: the stated one, or by its ISA flags."""
        support = self.runtime(runtime)
        if support is not None and support.int8 is not None:
            return support.int8
        return Int8Scheme(reduce_range=self.arch in ("x86_64", "any") and not self.has_int8_dot)

    def to_json(self) -> dict[str, Any]:
        data: dict[str, Any] = write_dataclass(self)
        data["runtimes"] = data.pop("runtime")
        return data


def builtin_names() -> tuple[str, ...]:
    """Return the names of the profiles that ship, sorted."""
    return tuple(sorted(p.stem for p in _data_dir().glob("*.toml")))


def load(name_or_path: str | Path) -> Profile:
    """Return a shipped profile by name, or the profile in a TOML file.

    Raises:
        ProfileError: no shipped profile has the name and no such file exists.
        ConfigError: the file is not a valid profile; every wrong key is listed.
    """
    text = str(name_or_path)
    path = Path(text)
    if path.suffix == ".toml" or "/" in text:
        if not path.is_file():
            raise ProfileError(f"no such profile file: {text}", hint="`edge profile probe --out FILE` writes one")
        return load_file(path)
    shipped = _data_dir() / f"{text}.toml"
    if text in builtin_names():
        return load_file(shipped)
    names = builtin_names()
    hint = near_miss(text, names) or f"known: {', '.join(names)}; or give the path of a .toml file"
    raise ProfileError(f"unknown profile `{text}`", hint=hint)


def load_file(path: Path) -> Profile:
    """Read one profile file.

    Raises:
        ConfigError: with one line for each wrong key, wrong flag or runtime that stands twice.
    """
    profile = parse(read_toml(path), Profile, where=str(path))
    problems = list(_problems(profile))
    if problems:
        raise ConfigError(f"{path}: {len(problems)} problem(s)", problems=problems, hint="correct the keys named above")
    return profile


def missing_evidence(profile: Profile) -> tuple[str, ...]:
    """Return the keys of the figures that no line of `[evidence]` supports."""
    keys = ["isa"] if profile.isa else []
    keys += [f"limits.{k}" for k, v in write_dataclass(profile.limits).items() if v is not None]
    keys += ["cores"] if profile.cores else []
    keys += ["decode"] if profile.decode else []
    keys += [f"runtime.{r.name}{'' if r.provider == 'CPU' else f'.{r.provider}'}" for r in profile.runtimes]
    return tuple(k for k in keys if k not in profile.evidence)


def _problems(profile: Profile) -> Iterator[str]:
    if not ID.fullmatch(profile.name):
        yield f"name: `{profile.name}` must match ^[a-z0-9][a-z0-9_-]{{0,62}}$"
    for flag in profile.isa:
        if flag not in ISA_FLAGS:
            yield f"isa: unknown flag `{flag}`, {near_miss(flag, ISA_FLAGS) or 'known: ' + ', '.join(ISA_FLAGS)}"
    seen: set[tuple[str, str]] = set()
    for index, runtime in enumerate(profile.runtimes):
        if (runtime.name, runtime.provider) in seen:
            yield f"runtime[{index}].name: `{runtime.name}` stands twice with the provider {runtime.provider}"
        seen.add((runtime.name, runtime.provider))
        try:
            version_range(runtime.versions)
        except ValueError as error:
            yield f"runtime[{index}].versions: {error}"
    if not profile.runtimes:
        yield "runtime: no [[runtime]] table: a device that runs nothing needs no profile"


def version_range(text: str) -> tuple[str | None, str | None]:
    """Return (min inclusive, max exclusive) of a range such as `>=1.20,<2`; None where it is open.

    Raises:
        ValueError: it has another form.
    """
    low: str | None = None
    high: str | None = None
    for part in filter(None, (p.strip() for p in text.split(","))):
        if part.startswith(">="):
            low = part[2:].strip()
        elif part.startswith("<") and not part.startswith("<="):
            high = part[1:].strip()
        else:
            raise ValueError(f"expected a range such as `>=1.20,<2`, found `{text}`")
    return low, high


def to_toml(profile: Profile) -> str:
    """Return the text of a profile file that `load_file` reads back as the same profile."""
    data = write_dataclass(profile)
    lines = [
        f"{key} = {_toml(data[key])}"
        for key in ("name", "description", "arch", "isa", "cores", "power_mode", "decode")
        if key in data
    ]
    if data.get("limits"):
        lines += ["", "[limits]", *(f"{k} = {_toml(v)}" for k, v in data["limits"].items())]
    for runtime in data.get("runtime", ()):
        lines += ["", "[[runtime]]", *(f"{k} = {_toml(v)}" for k, v in runtime.items())]
    if data.get("evidence"):
        lines += ["", "[evidence]", *(f"{json.dumps(k)} = {_toml(v)}" for k, v in data["evidence"].items())]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return (
            "{ " + ", ".join(f"{json.dumps(str(k))} = {_toml(v)}" for k, v in value.items()) + " }" if value else "{}"
        )
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    return json.dumps(value, ensure_ascii=False)


def _data_dir() -> Path:
    return Path(__file__).resolve().parent / "data"
