"""`edge doctor`: what this machine can run, and the pip line for what is missing."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from edge_sdk import __version__
from edge_sdk.output import Output, table

_PROBE = "import importlib,sys; m=importlib.import_module(sys.argv[1]); print(getattr(m,'__version__',''))"
_TIMEOUT_S = 60
_EXTRAS = {
    "agent": (
        *("paho-mqtt", "tuf", "securesystemslib", "bsdiff4"),
        *(("backports.zstd",) if sys.version_info < (3, 14) else ()),
    ),
    "cloud": ("fastapi", "uvicorn", "msgspec", "gmqtt", "sqlite-utils", "scipy", "jinja2", "prometheus-client"),
    "convert": ("onnx", "onnxscript", "nncf", "ai-edge-quantizer"),
}
_OPENCV = (
    "opencv-python-headless",
    "opencv-python",
    "opencv-contrib-python-headless",
    "opencv-contrib-python",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--fast", action="store_true", help="do not load the engines, only say what is installed")


def run(args: argparse.Namespace, output: Output) -> int | None:
    report = diagnose(fast=args.fast)
    output.result(report, _text(report))
    return None


def diagnose(*, fast: bool = False) -> dict[str, Any]:
    """Return what is here and what is missing; each engine is loaded in a process of its own."""
    from edge_sdk import runtimes

    registry = runtimes.registry()
    found = [_runtime(registry, name, fast=fast) for name in registry.names()]
    opencv = _opencv(fast=fast)
    extras = {name: [d for d in dists if _version(d) is None] for name, dists in _EXTRAS.items()}
    missing = [{"what": f"runtime {r['name']}", "pip": r["pip"]} for r in found if not r["ok"] and r["pip"]]
    missing += [{"what": f"extra {n}", "pip": f"pip install 'edge-sdk[{n}]'"} for n, d in extras.items() if d]
    if not opencv["ok"]:
        missing.append({"what": "opencv", "pip": "pip install opencv-python-headless"})
    machine, profile = _machine()
    return {
        "version": __version__,
        "ok": opencv["ok"] and any(r["ok"] for r in found),
        "machine": machine,
        "profile": profile,
        "runtimes": [{k: v for k, v in r.items() if k != "pip"} for r in found],
        "opencv": opencv,
        "cameras": _cameras(),
        "picamera2": importlib.util.find_spec("picamera2") is not None,
        "ffmpeg": _ffmpeg(fast=fast),
        "broker": {"mosquitto": shutil.which("mosquitto") or _first(Path("/usr/sbin/mosquitto"))},
        "missing": missing,
    }


def _runtime(registry: Any, name: str, *, fast: bool) -> dict[str, Any]:
    plugin = registry.plugin(name)
    names = plugin.capabilities.get("distributions") or (plugin.capabilities.get("distribution", name),)
    version = next((v for v in map(_version, names) if v), None)
    row: dict[str, Any] = {"name": name, "version": version, "ok": version is not None, "detail": None, "pip": None}
    if registry.missing(name):
        extra = plugin.extra or name
        return row | {"ok": False, "detail": "not installed", "pip": f"pip install 'edge-sdk[{extra}]'"}
    if not fast:
        works, detail = _loads(plugin.requires[0] if plugin.requires else plugin.target.partition(":")[0])
        row |= {"ok": works, "detail": None if works else detail}
        row["version"] = version or detail or None
    return row


def _loads(module: str) -> tuple[bool, str]:
    """Import `module` in a process of its own: an engine built for another CPU may kill it."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE, module], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return False, f"loading it failed: {type(error).__name__}"
    if done.returncode == 0:
        return True, done.stdout.strip()
    lines = done.stderr.strip().splitlines()
    why = f"killed by signal {-done.returncode}" if done.returncode < 0 else (lines[-1] if lines else "no reason given")
    return False, f"loading it failed: {why}"


def _opencv(*, fast: bool) -> dict[str, Any]:
    installed = [{"distribution": d, "version": _version(d)} for d in _OPENCV if _version(d)]
    ok, detail = (bool(installed), "") if fast else _loads("cv2")
    note = None
    if len(installed) > 1:
        note = "several OpenCV distributions overwrite each other: keep one"
    elif not ok:
        note = detail
    return {"ok": ok, "installed": installed, "version": detail if ok and detail else None, "note": note}


def _machine() -> tuple[dict[str, Any], str | None]:
    """Return the machine and the nearest shipped profile; the profiles are a package above this one, asked by name."""
    basic = {
        "arch": platform.machine(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory": _memory(),
    }
    try:
        machine = importlib.import_module("device_profiles.machine").this_machine()
        profiles = importlib.import_module("device_profiles.profile")
        runs_here = importlib.import_module("device_profiles.probe").runs_here
    except ImportError:
        return basic, None
    fitting = [p for p in map(profiles.load, profiles.builtin_names()) if runs_here(p, machine)]
    best = max(fitting, key=lambda p: (p.arch != "any", len(p.isa)), default=None)
    return basic | {"cpu": machine.cpu, "isa": list(machine.isa)}, best.name if best else None


def _memory() -> dict[str, int | None]:
    values: dict[str, int] = {}
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            key, _, rest = line.partition(":")
            values[key] = int(rest.split()[0]) // 1024
    except (OSError, ValueError, IndexError):
        pass
    return {"total_mb": values.get("MemTotal"), "available_mb": values.get("MemAvailable")}


def _cameras() -> list[dict[str, Any]]:
    cameras = []
    for device in sorted(Path("/dev").glob("video[0-9]*")):
        name = Path("/sys/class/video4linux") / device.name / "name"
        try:
            label = name.read_text().strip()
        except OSError:
            label = ""
        cameras.append({"device": str(device), "name": label, "readable": os.access(device, os.R_OK | os.W_OK)})
    return cameras


def _ffmpeg(*, fast: bool) -> dict[str, Any]:
    """Return path and version of the ffmpeg command, and which decoders work with it (each device is opened once)."""
    from edge_sdk.sources.decoding import decoders, ffmpeg

    path, version = ffmpeg()
    found = [] if fast else [{"name": d.name, "ok": d.ok, "why": d.why or None} for d in decoders()]
    return {"path": path, "version": version or None, "decoders": found}


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _first(path: Path) -> str | None:
    return str(path) if path.exists() else None


def _text(report: dict[str, Any]) -> str:
    machine = report["machine"]
    memory = machine["memory"]
    lines = [
        f"edge-sdk {report['version']}, Python {machine['python']}, {machine['system']}",
        f"{machine.get('cpu') or machine['arch']}: {machine['cores']} cores, {memory['available_mb']} of "
        f"{memory['total_mb']} MB free" + (f", {' '.join(machine['isa'])}" if machine.get("isa") else ""),
        f"nearest profile: {report['profile'] or 'none'}",
        "",
    ]
    rows = [[r["name"], r["version"], "yes" if r["ok"] else "no", r["detail"]] for r in report["runtimes"]]
    opencv = report["opencv"]
    name = " + ".join(f"{i['distribution']}" for i in opencv["installed"]) or "opencv"
    version = opencv["version"] or " + ".join(str(i["version"]) for i in opencv["installed"])
    rows.append([name, version, "yes" if opencv["ok"] else "no", opencv["note"]])
    lines.append(table(rows, ["", "version", "works", ""]))
    cameras = [
        f"{c['device']} {c['name']}".strip() + ("" if c["readable"] else " (no access)") for c in report["cameras"]
    ]
    lines += ["", f"cameras: {', '.join(cameras) or 'none'}"]
    if report["picamera2"]:
        lines.append("picamera2: installed, `picamera:0` is the first camera")
    ffmpeg = report["ffmpeg"]
    lines.append(f"ffmpeg: {ffmpeg['version'] or 'none, `decode` and `record` need it (apt-get install ffmpeg)'}")
    if ffmpeg["path"]:
        lines += [f"  decode {d['name']}: {'works' if d['ok'] else d['why']}" for d in ffmpeg["decoders"]]
    lines.append(f"mosquitto: {report['broker']['mosquitto'] or 'none, `edge serve` brings a broker of its own'}")
    lines += [f"missing: {m['what']}: {m['pip']}" for m in report["missing"]]
    return "\n".join(lines)
