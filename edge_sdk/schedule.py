"""Overrides: what a pipeline does differently at times of day, or in the dark; standard library only.

Times are those of the wall clock in one time zone (`time_zone` of the pipeline, else that of the machine). A span is
judged by what the clock shows, so on the day when it goes back a span holds in both of the doubled hours, and when it
goes forward the missing hour belongs to whatever the clock shows next.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from edge_sdk.registry import near_miss

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY_S = 86400


@dataclass(frozen=True, slots=True, kw_only=True)
class When:
    """When an override holds: all of what is given.

    Args:
        start: `HH:MM` or `HH:MM:SS`, the first moment; in files the key is `from`.
        end: the moment after the last one, in files `to`; at or before `start` it is on the next day.
        days: days on which the span begins (`mon` to `sun`); none means every day.
        dark: mean luminance of the picture, 0 to 1, below which it is dark.
        light: luminance from which it is light again; default 1.25 times `dark`, at least 0.02 above it.
        hold_s: seconds for which the picture must be on the other side before that counts.
    """

    start: str | None = field(default=None, metadata={"key": "from"})
    end: str | None = field(default=None, metadata={"key": "to"})
    days: tuple[str, ...] = ()
    dark: float | None = field(default=None, metadata={"min": 0, "max": 1})
    light: float | None = field(default=None, metadata={"min": 0, "max": 1})
    hold_s: float = field(default=5.0, metadata={"min": 0, "max": 3600})

    def __post_init__(self) -> None:
        if (self.start is None) != (self.end is None):
            raise ValueError("`from` and `to` go together")
        for name, text in (("from", self.start), ("to", self.end)):
            if text is not None and _seconds(text) is None:
                raise ValueError(f"{name}: expected HH:MM, 00:00 to 24:00, found `{text}`")
        for day in self.days:
            if day not in DAYS:
                hint = near_miss(day, DAYS) or "mon to sun"
                raise ValueError(f"days: no day `{day}`, {hint}")
        if self.light is not None and (self.dark is None or self.light < self.dark):
            raise ValueError("light: must be at or above `dark`")
        if self.start is None and not self.days and self.dark is None:
            raise ValueError("names no time, no days and no darkness")

    @property
    def light_again(self) -> float:
        """The luminance from which it is light again."""
        dark = self.dark or 0.0
        return self.light if self.light is not None else max(1.25 * dark, dark + 0.02)

    def holds_at(self, local: dt.datetime) -> bool:
        """Say whether the clock and the day of `local` belong to it, whatever the picture is like."""
        now_s = local.hour * 3600 + local.minute * 60 + local.second
        start, end = _seconds(self.start or "00:00") or 0, _seconds(self.end or "24:00") or 0
        today = DAYS[local.weekday()]
        if start < end:
            return start <= now_s < end and (not self.days or today in self.days)
        if now_s >= start:
            return not self.days or today in self.days
        return now_s < end and (not self.days or DAYS[local.weekday() - 1] in self.days)

    def __str__(self) -> str:
        parts = [f"{self.start} to {self.end}"] if self.start is not None else []
        parts += [", ".join(self.days)] if self.days else []
        parts += [f"luminance below {self.dark:g}"] if self.dark is not None else []
        return ", ".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class OverrideConfig:
    """What is different while `when` holds.

    Args:
        stage: params by stage name, put over the stage's own.
        off: stages that do nothing meanwhile; their counts and tracks are kept.
        on: stages with `enabled = false` that work meanwhile.
        rate: frames a second at most, for live sources.
    """

    name: str
    when: When
    stage: dict[str, dict[str, Any]] = field(default_factory=dict)
    off: tuple[str, ...] = ()
    on: tuple[str, ...] = ()
    rate: float | None = field(default=None, metadata={"min": 0.01, "max": 1000})


@dataclass(frozen=True, slots=True)
class Darkness:
    """Whether it is dark for one override; `since_s` is when the picture began to say the other."""

    dark: bool | None = None
    since_s: float | None = None

    def after(self, when: When, luminance: float, now_s: float) -> Darkness:
        """Return what it is after a picture of mean `luminance` at `now_s` (any clock that does not go back)."""
        if when.dark is None:
            return self
        if self.dark is None:
            return Darkness(luminance < when.dark)
        says = luminance < when.light_again if self.dark else luminance < when.dark
        if says == self.dark:
            return Darkness(self.dark)
        since = self.since_s if self.since_s is not None else now_s
        return Darkness(says) if now_s - since >= when.hold_s else Darkness(self.dark, since)


def active(
    overrides: Sequence[OverrideConfig], local: dt.datetime, darkness: Mapping[str, Darkness]
) -> tuple[OverrideConfig, ...]:
    """Return those that hold at `local`, first the strongest; unknown darkness is not dark."""
    return tuple(
        o
        for o in overrides
        if o.when.holds_at(local) and (o.when.dark is None or darkness.get(o.name, Darkness()).dark is True)
    )


def local_time(now: float, zone: str | None) -> dt.datetime:
    """Return `now`, seconds since the epoch, on the clock of a zone (None: this machine's, `TZ` included).

    Raises:
        ValueError: the zone is unknown here.
    """
    if zone is None:
        return dt.datetime.fromtimestamp(now).astimezone()
    return dt.datetime.fromtimestamp(now, zone_of(zone))


def zone_of(name: str) -> ZoneInfo:
    """Return a zone by its name in the IANA data base.

    Raises:
        ValueError: there is none.
    """
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(
            f"no time zone `{name}` on this machine, expected a name such as Europe/Vienna (package tzdata)"
        ) from None


def problems(overrides: Sequence[OverrideConfig], stages: Sequence[str], steps: Sequence[str]) -> list[str]:
    """Return one line for each name in the overrides that means nothing; only `steps` can be switched off and on."""
    found = []
    names = [o.name for o in overrides]
    for i, override in enumerate(overrides):
        if override.name in names[:i]:
            found.append(f"override[{i}].name: two overrides are called `{override.name}`")
        where = {"stage": (override.stage, stages), "off": (override.off, steps), "on": (override.on, steps)}
        for key, (mentioned, known) in where.items():
            what = "stage" if key == "stage" else "switchable stage"
            for name in mentioned:
                if name not in known:
                    hint = near_miss(name, known) or f"it has {', '.join(known) or 'none'}"
                    found.append(f"override[{i}].{key}: the pipeline has no {what} `{name}`, {hint}")
    return found


def _seconds(text: str) -> int | None:
    """Return the seconds of the day that a clock text stands for; None when it is none."""
    parts = text.split(":")
    if len(parts) not in (2, 3) or not all(p.isascii() and p.isdigit() and len(p) <= 2 for p in parts):
        return None
    hour, minute, second = (*map(int, parts), 0)[:3]
    total = hour * 3600 + minute * 60 + second
    return total if minute < 60 and second < 60 and total <= _DAY_S else None
