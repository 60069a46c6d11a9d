"""This machine: architecture, ISA flags, cores, memory and the runtimes that are installed."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_X86 = {
    "avx2": "avx2",
    "fma": "fma",
    "avx_vnni": "avx_vnni",
    "avx512f": "avx512f",
    "avx512_vnni": "avx512_vnni",
    "avx512_fp16": "avx512_fp16",
    "amx_int8": "amx_int8",
    "amx_bf16": "amx_bf16",
}
_ARM = {
    "asimd": "neon",
    "neon": "neon",
    "asimddp": "dotprod",
    "i8mm": "i8mm",
    "asimdhp": "fp16",
    "bf16": "bf16",
    "sve": "sve",
}
_DARWIN = {
    "hw.optional.AdvSIMD": "neon",
    "hw.optional.arm.FEAT_DotProd": "dotprod",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
    "hw.optional.arm.FEAT_FP16": "fp16",
    "hw.optional.arm.FEAT_BF16": "bf16",
    "hw.optional.avx2_0": "avx2",
}
_DISTRIBUTIONS = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "openvino": ("openvino",),
    "litert": ("ai-edge-litert",),
    "tflite": ("tflite-runtime",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What was read from the machine; `runtimes` maps a runtime's name to its installed version."""

    arch: str
    isa: tuple[str, ...]
    cpu: str
    cores: int
    ram_mb: int
    runtimes: Mapping[str, str]

    def label(self) -> str:
        """Return one line for people and for evidence."""
        flags = [f for f in self.isa if f in ("avx2", "avx_vnni", "avx512_vnni", "amx_int8", "dotprod", "i8mm")]
        return f"{self.cpu}, {self.arch}, {self.cores} cores, {' '.join(flags) or 'no int8 flags'}"


def this_machine() -> Machine:
    """Read this machine; nothing is measured."""
    arch = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
    text = _read("/proc/cpuinfo")
    if text:
        flags, cpu = parse_cpuinfo(text)
    else:
        flags, cpu = _darwin()
    model = _read("/proc/device-tree/model").strip("\0\n ")
    return Machine(
        arch=arch,
        isa=flags,
        cpu=model or cpu or platform.processor() or arch,
        cores=usable_cores(),
        ram_mb=_ram_mb(),
        runtimes=installed_runtimes(),
    )


def parse_cpuinfo(text: str) -> tuple[tuple[str, ...], str]:
    """Return (ISA flags in the profile's words, CPU name) of the text of /proc/cpuinfo; x86 and ARM."""
    words: set[str] = set()
    cpu = ""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        key = key.strip()
        if key == "flags":
            words |= {_X86[w] for w in value.split() if w in _X86}
        elif key == "Features":
            words |= {_ARM[w] for w in value.split() if w in _ARM}
        elif key in ("model name", "Model", "Hardware") and not cpu:
            cpu = value.strip()
    return tuple(sorted(words)), cpu


def usable_cores() -> int:
    """Return the number of cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def installed_runtimes() -> dict[str, str]:
    """Return the installed runtimes by name with their versions, without importing them."""
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, str] = {}
    for name, distributions in _DISTRIBUTIONS.items():
        for distribution in distributions:
            try:
                found[name] = version(distribution)
            except PackageNotFoundError:
                continue
            break
    return found


def _ram_mb() -> int:
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) // 1024
    try:
        return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20)
    except (ValueError, OSError, AttributeError):
        return 0


def _darwin() -> tuple[tuple[str, ...], str]:
    if platform.system() != "Darwin":
        return (), platform.processor()
    try:
        run = subprocess.run(["sysctl", "-a"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return (), platform.processor()
    pairs = dict(line.split(": ", 1) for line in run.stdout.splitlines() if ": " in line)
    flags = {flag for key, flag in _DARWIN.items() if pairs.get(key) == "1"}
    return tuple(sorted(flags)), pairs.get("machdep.cpu.brand_string", "")


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
