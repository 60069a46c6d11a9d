"""Doing less while the device is too hot or its CPU is short: a pure state machine; standard library only.

The rate goes down first, step by step; only at its floor do the motion gate and `every` become stricter. Nothing is
queued at any level: what is not done is dropped before it is decoded.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

STRICTER_STEPS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class DegradeConfig:
    """`[degrade]`: the limits, at least one, and how fast to react.

    Args:
        cpu_temp_c: temperature of the hottest CPU sensor, degrees Celsius.
        cpu_percent: share of the CPUs that this process may use that it does use.
        throttled_percent: share of the scheduling periods in which a CPU quota held this process's group back.
        margin_c: degrees below `cpu_temp_c` before it counts as cool again; the other limits have `margin_percent`.
        hold_s: seconds over a limit before each step down.
        recover_s: seconds clear of every limit before each step up.
        min_fps: the rate does not go below it.
        factor: each step leaves this share of the rate before it.
    """

    cpu_temp_c: float | None = field(default=None, metadata={"min": 20, "max": 150})
    cpu_percent: float | None = field(default=None, metadata={"min": 1, "max": 100})
    throttled_percent: float | None = field(default=None, metadata={"min": 0, "max": 100})
    margin_c: float = field(default=5.0, metadata={"min": 0, "max": 50})
    margin_percent: float = field(default=15.0, metadata={"min": 0, "max": 50})
    hold_s: float = field(default=5.0, metadata={"min": 0, "max": 3600})
    recover_s: float = field(default=30.0, metadata={"min": 0, "max": 86400})
    min_fps: float = field(default=1.0, metadata={"min": 0.01, "max": 1000})
    factor: float = field(default=0.7, metadata={"min": 0.1, "max": 0.95})

    def __post_init__(self) -> None:
        if self.cpu_temp_c is None and self.cpu_percent is None and self.throttled_percent is None:
            raise ValueError("names no limit: cpu_temp_c, cpu_percent or throttled_percent")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What the machine says: degrees Celsius, per cent; None where it cannot be read."""

    temp_c: float | None = None
    cpu_percent: float | None = None
    throttled_percent: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """How far down a pipeline is.

    `number` is 0 at full rate; `full_fps` is the rate before the first step down, `over_s` and `clear_s` are since when
    the readings are over a limit or clear of all; `why` names the limit that led here, `worst` is the lowest level yet.
    """

    number: int = 0
    full_fps: float | None = None
    over_s: float | None = None
    clear_s: float | None = None
    why: str = ""
    worst: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Less:
    """What a level means: frames a second at most, and how many times stricter gate and `every` are."""

    rate: float | None = None
    stricter: int = 1


def step(config: DegradeConfig, level: Level, reading: Reading, fps: float, now_s: float) -> Level:
    """Return the level after a reading at `now_s`; `fps` is the present rate of results."""
    why = over(config, reading)
    if why is not None:
        since = level.over_s if level.over_s is not None else now_s
        if now_s - since < config.hold_s or level.number >= lowest(config, level):
            return replace(level, over_s=since, clear_s=None, why=why if level.number else level.why)
        full = level.full_fps if level.number and level.full_fps else max(fps, config.min_fps)
        number = level.number + 1
        return Level(number=number, full_fps=full, over_s=now_s, why=why, worst=max(number, level.worst))
    if level.number == 0 or not _clear(config, reading):
        return replace(level, over_s=None, clear_s=None)
    since = level.clear_s if level.clear_s is not None else now_s
    if now_s - since < config.recover_s:
        return replace(level, over_s=None, clear_s=since)
    return replace(level, number=level.number - 1, over_s=None, clear_s=now_s, why="")


def less(config: DegradeConfig, level: Level) -> Less:
    """Return what a level means."""
    if level.number == 0 or level.full_fps is None:
        return Less()
    rates = _rate_steps(config, level.full_fps)
    rate = max(config.min_fps, level.full_fps * config.factor ** min(level.number, rates))
    return Less(rate=rate, stricter=2 ** max(0, level.number - rates))


def lowest(config: DegradeConfig, level: Level) -> int:
    """Return the number of the last level there is."""
    return (_rate_steps(config, level.full_fps) if level.full_fps else 1) + STRICTER_STEPS


def over(config: DegradeConfig, reading: Reading) -> str | None:
    """Say which limit a reading is over; None for none."""
    for what, value, limit, unit in _limits(config, reading):
        if value is not None and value > limit:
            return f"{what} {value:.0f}{unit} is above {limit:g}{unit}"
    return None


def _clear(config: DegradeConfig, reading: Reading) -> bool:
    """Say whether every reading is below its limit by the margin; one that is missing does not hold it up."""
    margins = {" °C": config.margin_c, " %": config.margin_percent}
    return all(
        value is None or value <= max(0.0, limit - margins[unit]) for _, value, limit, unit in _limits(config, reading)
    )


def _limits(config: DegradeConfig, reading: Reading) -> list[tuple[str, float | None, float, str]]:
    rows = [
        ("CPU temperature", reading.temp_c, config.cpu_temp_c, " °C"),
        ("CPU use", reading.cpu_percent, config.cpu_percent, " %"),
        ("CPU throttling", reading.throttled_percent, config.throttled_percent, " %"),
    ]
    return [(what, value, limit, unit) for what, value, limit, unit in rows if limit is not None]


def _rate_steps(config: DegradeConfig, full_fps: float) -> int:
    """Return how many steps bring `full_fps` to the floor, 20 at most."""
    steps, rate = 0, full_fps
    while rate > config.min_fps * 1.001 and steps < 20:
        rate *= config.factor
        steps += 1
    return steps
