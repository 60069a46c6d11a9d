"""Which decoders the ffmpeg command has, and which of them work on this machine; standard library only."""

from __future__ import annotations

import functools
import re
import shutil
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

DECODES = ("auto", "software", "vaapi", "v4l2m2m", "nvdec")
_HARDWARE = ("vaapi", "nvdec", "v4l2m2m")
_HWACCEL = {"vaapi": "vaapi", "nvdec": "cuda"}
_TIMEOUT_S = 10
_QUERYCAP, _M2M = 0x80685600, 0x00008000 | 0x00004000


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """One way to decode with the ffmpeg command: whether it works here, else why not, and the arguments for it."""

    name: str
    ok: bool
    why: str = ""
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The decoder that was wanted and the one that is used; `fallback` says why they differ, empty when they do not."""

    wanted: str
    used: Decoder
    fallback: str = ""


@functools.cache
def ffmpeg() -> tuple[str | None, str]:
    """Return the path of the ffmpeg command and its version; None and nothing when there is none."""
    path = shutil.which("ffmpeg")
    if path is None:
        return None, ""
    found = re.match(r"ffmpeg version (\S+)", _output([path, "-version"]))
    return path, found.group(1) if found else ""


def keeps_rate() -> tuple[str, str]:
    """Return the option by which this ffmpeg neither drops nor doubles frames."""
    found = re.match(r"n?(\d+)\.(\d+)", ffmpeg()[1])
    old = found is not None and (int(found.group(1)), int(found.group(2))) < (5, 1)
    return ("-vsync", "passthrough") if old else ("-fps_mode", "passthrough")


@functools.cache
def decoders(codec: str = "h264") -> tuple[Decoder, ...]:
    """Return every decoder and whether it works here, hardware first; opens the devices.

    Args:
        codec: what the source is encoded in; only v4l2m2m has to know.
    """
    path, _ = ffmpeg()
    if path is None:
        why = "there is no ffmpeg command (apt-get install ffmpeg)"
        return tuple(Decoder(name=name, ok=False, why=why) for name in (*_HARDWARE, "software"))
    compiled = set(_output([path, "-hide_banner", "-hwaccels"]).split())
    known = _output([path, "-hide_banner", "-decoders"])
    hardware = tuple(_accelerated(path, name, compiled) for name in ("vaapi", "nvdec"))
    return (*hardware, _memory_to_memory(codec, known), Decoder(name="software", ok=True))


def choose(wanted: str, codec: str = "h264") -> Choice:
    """Return the decoder to use for what is wanted: `auto` takes the first hardware that works, else software."""
    table = {decoder.name: decoder for decoder in decoders(codec)}
    software = table["software"]
    if wanted == "auto":
        working = [table[name] for name in _HARDWARE if table[name].ok]
        return Choice(wanted=wanted, used=working[0] if working else software)
    used = table[wanted]
    if used.ok or used is software:
        return Choice(wanted=wanted, used=used)
    return Choice(wanted=wanted, used=software, fallback=f"{wanted} is not available here: {used.why}")


def _accelerated(path: str, name: str, compiled: set[str]) -> Decoder:
    """Try to open the device of a hardware acceleration."""
    method = _HWACCEL[name]
    if method not in compiled:
        return Decoder(name=name, ok=False, why=f"this ffmpeg is built without {method}")
    device = ""
    if name == "vaapi":
        nodes = sorted(Path("/dev/dri").glob("renderD*")) if Path("/dev/dri").is_dir() else []
        if not nodes:
            return Decoder(name=name, ok=False, why="no /dev/dri/renderD*: no graphics driver")
        device = str(nodes[0])
    words = [path, "-hide_banner", "-nostdin", "-loglevel", "error", "-init_hw_device", f"{method}=hw:{device}"]
    code, said = _run([*words, "-f", "lavfi", "-i", "nullsrc=s=16x16", "-frames:v", "1", "-f", "null", "-"])
    if code != 0:
        lines = [re.sub(r"^\[[^\]]*\]\s*", "", line) for line in said.splitlines() if line.strip()]
        why = f"its device cannot be opened: {lines[0] if lines else 'no reason given'}"
        return Decoder(name=name, ok=False, why=why)
    arguments = ("-hwaccel", method, *(("-hwaccel_device", device) if device else ()))
    return Decoder(name=name, ok=True, arguments=arguments)


def _memory_to_memory(codec: str, known: str) -> Decoder:
    decoder = f"{codec}_v4l2m2m"
    if not re.search(rf"\b{re.escape(decoder)}\b", known):
        return Decoder(name="v4l2m2m", ok=False, why=f"this ffmpeg is built without {decoder}")
    devices = sorted(Path("/dev").glob("video[0-9]*"))
    if not any(_is_m2m(device) for device in devices):
        return Decoder(name="v4l2m2m", ok=False, why="no /dev/video* is a memory-to-memory codec")
    return Decoder(name="v4l2m2m", ok=True, arguments=("-c:v", decoder))


def _is_m2m(device: Path) -> bool:
    """Ask a V4L2 device whether it is a codec (VIDIOC_QUERYCAP of linux/videodev2.h)."""
    import fcntl

    answer = bytearray(104)
    try:
        with device.open("rb", buffering=0) as file:
            fcntl.ioctl(file.fileno(), _QUERYCAP, answer)
    except OSError:
        return False
    capabilities, of_device = struct.unpack_from("=II", answer, 84)
    return bool((of_device or capabilities) & _M2M)


def _output(words: Sequence[str]) -> str:
    return _run(words)[1]


def _run(words: Sequence[str]) -> tuple[int, str]:
    """Run a command that must be quick; return its exit code and what it printed, on whatever stream."""
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return -1, f"{type(error).__name__}"
    return done.returncode, done.stdout.decode(errors="replace")
