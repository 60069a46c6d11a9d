"""How hot and how busy this machine is, from /sys and /proc of Linux; standard library only.

Sources: the kernel's documentation of thermal sysfs (`thermal_zone*/temp`, thousandths of a degree), cgroup-v2
(`cpu.max`, `cpu.stat`) and cgroup v1 CFS bandwidth control (`cpu.cfs_quota_us`).
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from edge_sdk.degrade import Reading

_CPU_SENSORS = ("cpu", "soc", "pkg", "core", "x86", "acpitz", "big", "little", "cluster")
_PLAUSIBLE_C = (-50.0, 150.0)


@dataclass(frozen=True, slots=True)
class _Moment:
    at_s: float
    cpu_s: float
    periods: int | None
    throttled: int | None


class LoadMeter:
    """Reads temperature at once, and CPU use and throttling over the time since the call before.

    Args:
        root: where `sys` and `proc` are; `/` but in tests.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._cgroup = _cgroup_folder(root)
        self._before: _Moment | None = None

    def read(self, now_s: float | None = None, cpu_s: float | None = None) -> Reading:
        """Return what can be read; `now_s` is the monotonic clock, `cpu_s` the CPU seconds of this process."""
        periods, throttled = _throttling(self._cgroup)
        moment = _Moment(
            time.monotonic() if now_s is None else now_s,
            time.process_time() if cpu_s is None else cpu_s,
            periods,
            throttled,
        )
        before, self._before = self._before, moment
        used = held = None
        if before is not None and moment.at_s > before.at_s:
            used = 100 * (moment.cpu_s - before.cpu_s) / (moment.at_s - before.at_s) / self.cpus()
            if moment.periods is not None and before.periods is not None and moment.periods > before.periods:
                held = 100 * ((moment.throttled or 0) - (before.throttled or 0)) / (moment.periods - before.periods)
        return Reading(temp_c=temperature_c(self._root), cpu_percent=used, throttled_percent=held)

    def cpus(self) -> float:
        """Return how many CPUs this process may use: its affinity, or the quota of its group when that is less."""
        cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
        quota = _quota(self._cgroup)
        return min(cores, quota) if quota else cores


def temperature_c(root: Path = Path("/")) -> float | None:
    """Return the temperature of the hottest CPU sensor, of the hottest sensor where none is named after a CPU.

    A sensor that cannot be read, or is not between -50 and 150 °C, is passed over; None without any.
    """
    found: list[tuple[bool, float]] = []
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        text = _text(zone / "temp")
        try:
            value = float(text or "") / 1000
        except ValueError:
            continue
        if _PLAUSIBLE_C[0] <= value <= _PLAUSIBLE_C[1]:
            kind = (_text(zone / "type") or "").strip().lower()
            found.append((any(word in kind for word in _CPU_SENSORS), value))
    of_cpu = [value for is_cpu, value in found if is_cpu]
    return max(of_cpu or [value for _, value in found], default=None)


def _cgroup_folder(root: Path) -> Path | None:
    """Return the folder of this process's CPU group: cgroup v2, or the `cpu` controller of v1."""
    text = _text(root / "proc/self/cgroup") or ""
    for line in text.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        base = root / "sys/fs/cgroup"
        if "cpu" in controllers.split(","):
            folders = [base / "cpu" / path.lstrip("/"), base / "cpu,cpuacct" / path.lstrip("/"), base / "cpu"]
        elif not controllers:
            folders = [base / path.lstrip("/"), base]
        else:
            continue
        for folder in folders:
            if (folder / "cpu.stat").is_file():
                return folder
    return None


def _throttling(folder: Path | None) -> tuple[int | None, int | None]:
    text = _text(folder / "cpu.stat") if folder is not None else None
    values = dict(line.split(None, 1) for line in (text or "").splitlines() if " " in line)
    try:
        return int(values["nr_periods"]), int(values["nr_throttled"])
    except (KeyError, ValueError):
        return None, None


def _quota(folder: Path | None) -> float | None:
    """Return the CPUs that a group's quota allows; None without one."""
    if folder is None:
        return None
    both = (_text(folder / "cpu.max") or "").split()
    if not both:
        both = [(_text(folder / f"cpu.cfs_{name}_us") or "").strip() for name in ("quota", "period")]
    try:
        quota, period = float(both[0]), float(both[1])
    except (ValueError, IndexError):
        return None
    return quota / period if quota > 0 and period > 0 else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return None
