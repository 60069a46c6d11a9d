"""Measure this machine and write down what it is as a profile."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from device_profiles import kernel
from device_profiles.machine import Machine, this_machine
from device_profiles.profile import INT8_DOT_FLAGS, Evidence, Int8Scheme, Limits, Precision, Profile, RuntimeSupport
from edge_sdk.errors import EdgeError
from edge_sdk.sources.decoding import decoders, ffmpeg

ROUNDS = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Figures:
    """A runtime's int8 convolution here: its CPU time over the float one's, and whether its sums saturate."""

    ratio: float
    saturates: bool


def probe(name: str | None = None, machine: Machine | None = None) -> Profile:
    """Return the profile of this machine, its runtimes and their int8 measured.

    A runtime that is installed and that cannot run the measurement is left out, with the reason in the evidence.
    """
    machine = machine or this_machine()
    runtimes, evidence = _runtimes(machine)
    evidence["isa"] = Evidence(kind="measured", source="flags that the kernel reports")
    evidence["cores"] = Evidence(kind="measured", source="cores this process may use")
    evidence["limits.ram_mb"] = Evidence(
        kind="estimated", source=f"half of the {machine.ram_mb} MiB that were measured"
    )
    decode: Any = next((d.name for d in decoders() if d.ok and d.arguments), None)
    if decode is not None:
        evidence["decode"] = Evidence(kind="measured", source=f"ffmpeg {ffmpeg()[1]} opens its device")
    arch: Any = machine.arch if machine.arch in ("x86_64", "aarch64", "armv7l", "riscv64") else "any"
    return Profile(
        name=name or _slug(machine),
        description=machine.cpu,
        arch=arch,
        isa=machine.isa,
        cores=machine.cores,
        decode=decode,
        limits=Limits(ram_mb=max(1, machine.ram_mb // 2)),
        runtimes=runtimes,
        evidence=evidence,
    )


def runs_here(profile: Profile, machine: Machine) -> bool:
    """Return whether figures measured on `machine` hold for the profile: architecture, vector width and int8 sums."""
    if profile.arch == "any":
        return True
    if profile.arch != machine.arch or not set(profile.isa) <= set(machine.isa):
        return False
    here, there = set(machine.isa), set(profile.isa)
    return bool(here & INT8_DOT_FLAGS) == profile.has_int8_dot and ("avx512f" in here) == ("avx512f" in there)


def _runtimes(machine: Machine) -> tuple[tuple[RuntimeSupport, ...], dict[str, Evidence]]:
    from edge_sdk.runtimes import registry

    supports: list[RuntimeSupport] = []
    evidence: dict[str, Evidence] = {}
    known = registry()
    for name in known.names():
        version = machine.runtimes.get(name)
        if version is None or ".onnx" not in known.plugin(name).capabilities.get("suffixes", ()):
            continue
        try:
            figures = measure_int8(known.load(name))
        except EdgeError as error:
            evidence[f"runtime.{name}"] = Evidence(kind="measured", source=f"does not run here: {error.message}")
            continue
        extra: tuple[Precision, ...] = ("fp16",) if name == "openvino" else ()
        supports.append(
            RuntimeSupport(
                name=name,
                versions=f">={version},<{int(version.split('.')[0]) + 1}",
                options={"threads": 1},
                precisions=("fp32", *extra, "int8"),
                int8=Int8Scheme(reduce_range=figures.saturates),
            )
        )
        evidence[f"runtime.{name}"] = Evidence(
            kind="measured",
            source=f"{name} {version}: int8 / fp32 CPU time of a 3x3 convolution {figures.ratio:.2f}, "
            f"16-bit sums {'saturate' if figures.saturates else 'do not saturate'}",
        )
    return tuple(supports), evidence


def measure_int8(runtime_class: Any) -> Int8Figures:
    """Run a small convolution in float and in int8, alternating, and one that shows saturation.

    Raises:
        EdgeError: the runtime cannot load or run them.
    """
    x = np.random.default_rng(1).random(kernel.SHAPE, np.float32)
    with tempfile.TemporaryDirectory() as folder:
        built = {
            name: _open(runtime_class, Path(folder) / f"{name}.onnx", data)
            for name, data in {
                "fp32": kernel.convolution(int8=False),
                "int8": kernel.convolution(int8=True),
                "sum": kernel.saturating(),
            }.items()
        }
        try:
            times: dict[str, list[float]] = {"fp32": [], "int8": []}
            for _ in range(ROUNDS):
                for name, samples in times.items():
                    samples.append(_cpu_s(built[name], x))
            ones = np.ones(kernel.SHAPE, np.float32)
            answer = float(np.median(next(iter(built["sum"].infer({"x": ones}).values()))))
        finally:
            for runtime in built.values():
                runtime.close()
    return Int8Figures(ratio=median(times["int8"]) / max(median(times["fp32"]), 1e-9), saturates=answer < 0.97)


def _open(runtime_class: Any, path: Path, data: bytes) -> Any:
    path.write_bytes(data)
    return runtime_class(path, {"threads": 1})


def _cpu_s(runtime: Any, x: np.ndarray[Any, Any]) -> float:
    start = time.process_time()
    for _ in range(5):
        runtime.infer({"x": x})
    return time.process_time() - start


def _slug(machine: Machine) -> str:
    words = re.sub(r"\((r|tm)\)|processor|cpu|@.*", " ", f"{machine.cpu}".lower())
    slug = re.sub(r"[^a-z0-9]+", "-", words).strip("-")[:40].strip("-")
    flag = next((f for f in ("amx_int8", "avx512_vnni", "avx_vnni", "i8mm", "dotprod") if f in machine.isa), "")
    return "-".join(filter(None, (slug or machine.arch, flag.replace("_", "-"))))


def describe(machine: Machine) -> Mapping[str, Any]:
    """Return the machine as plain JSON."""
    return {
        "arch": machine.arch,
        "isa": list(machine.isa),
        "cpu": machine.cpu,
        "cores": machine.cores,
        "ram_mb": machine.ram_mb,
        "runtimes": dict(machine.runtimes),
    }
