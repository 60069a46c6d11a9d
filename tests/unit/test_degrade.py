"""Doing less when hot: the state machine, and what it reads from a real tree of files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from edge_sdk.config import parse
from edge_sdk.degrade import DegradeConfig, Level, Reading, less, lowest, step
from edge_sdk.errors import ConfigError
from edge_sdk.machine_load import LoadMeter, temperature_c

HOT, WARM, COOL = (Reading(temp_c=t) for t in (85.0, 78.0, 70.0))
CONFIG = DegradeConfig(cpu_temp_c=80, hold_s=5, recover_s=30, min_fps=5, factor=0.5)


def run(level: Level, reading: Reading, seconds: float, start: float, fps: float = 30.0) -> tuple[Level, float]:
    """Give the same reading once a second."""
    for _ in range(int(seconds)):
        start += 1.0
        level = step(CONFIG, level, reading, fps, start)
    return level, start


def test_the_rate_goes_down_in_steps_to_its_floor_and_only_then_the_gate_gets_stricter() -> None:
    level, now, seen = Level(), 0.0, []
    for _ in range(40):
        level, now = run(level, HOT, 1, now)
        if not seen or seen[-1] != less(CONFIG, level):
            seen.append(less(CONFIG, level))
    assert [s.rate for s in seen] == [None, 15.0, 7.5, 5.0, 5.0, 5.0]
    assert [s.stricter for s in seen] == [1, 1, 1, 1, 2, 4]
    assert level.number == lowest(CONFIG, level) == level.worst
    assert level.why == "CPU temperature 85 °C is above 80 °C"


def test_a_moment_above_the_limit_changes_nothing() -> None:
    level, now = run(Level(), HOT, 4, 0.0)
    level, now = run(level, COOL, 1, now)
    level, _ = run(level, HOT, 5, now)
    assert level.number == 0


def test_between_the_limit_and_the_margin_it_stays_where_it_is() -> None:
    level, now = run(Level(), HOT, 7, 0.0)
    assert level.number == 1
    level, now = run(level, WARM, 300, now)
    assert level.number == 1
    level, now = run(level, COOL, 20, now)
    level, now = run(level, WARM, 2, now)
    level, _ = run(level, COOL, 20, now)
    assert level.number == 1, "the time to recover begins again"


def test_it_recovers_step_by_step_and_remembers_how_far_down_it_was() -> None:
    level, now = run(Level(), HOT, 12, 0.0)
    assert level.number == 2
    level, now = run(level, COOL, 32, now)
    assert (level.number, less(CONFIG, level).rate) == (1, 15.0)
    level, now = run(level, COOL, 31, now)
    assert (level.number, level.worst, less(CONFIG, level).rate) == (0, 2, None)


def test_the_full_rate_is_that_before_the_first_step_not_the_lowered_one() -> None:
    level, now = run(Level(), HOT, 7, 0.0, fps=30)
    level, _ = run(level, HOT, 6, now, fps=15)
    assert less(CONFIG, level).rate == 7.5


def test_a_camera_below_the_floor_is_not_made_faster() -> None:
    level, _ = run(Level(), HOT, 7, 0.0, fps=0.0)
    assert less(CONFIG, level).rate == 5.0


def test_the_other_limits_count_as_well_and_a_missing_reading_holds_nothing_up() -> None:
    config = DegradeConfig(cpu_percent=90, throttled_percent=20, hold_s=0, recover_s=0)
    level = step(config, Level(), Reading(cpu_percent=95.0), 10, 1.0)
    assert level.why == "CPU use 95 % is above 90 %"
    level = step(config, Level(), Reading(throttled_percent=50.0), 10, 1.0)
    assert level.why == "CPU throttling 50 % is above 20 %"
    assert step(config, level, Reading(), 10, 2.0).number == 0
    assert step(config, Level(), Reading(temp_c=200.0), 10, 1.0).number == 0


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "names no limit: cpu_temp_c, cpu_percent or throttled_percent"),
        ({"cpu_temp": 80}, "cpu_temp: unknown key, did you mean `cpu_temp_c`"),
        ({"cpu_temp_c": 800}, "expected 20 to 150, found 800"),
    ],
)
def test_wrong_limits_are_told_so(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(keys, DegradeConfig, where="degrade")
    assert message in caught.value.message


def zone(root: Path, number: int, kind: str, temp: str) -> None:
    folder = root / "sys/class/thermal" / f"thermal_zone{number}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "type").write_text(kind + "\n")
    (folder / "temp").write_text(temp + "\n")


def test_the_hottest_cpu_sensor_counts_and_a_battery_does_not(tmp_path: Path) -> None:
    assert temperature_c(tmp_path) is None
    zone(tmp_path, 0, "battery", "95000")
    assert temperature_c(tmp_path) == 95.0
    zone(tmp_path, 1, "cpu-thermal", "61250")
    zone(tmp_path, 2, "soc-thermal", "72000")
    assert temperature_c(tmp_path) == 72.0


@pytest.mark.parametrize("temp", ["", "-274000", "not a number", "999999999", "nan"])
def test_a_sensor_that_says_nonsense_is_passed_over(tmp_path: Path, temp: str) -> None:
    zone(tmp_path, 0, "cpu-thermal", temp)
    assert temperature_c(tmp_path) is None
    (tmp_path / "sys/class/thermal/thermal_zone7").mkdir()
    assert temperature_c(tmp_path) is None


@pytest.mark.parametrize("version", [1, 2])
def test_quota_and_throttling_come_from_the_group_of_the_process(tmp_path: Path, version: int) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    line, place = ("0::/app\n", "app") if version == 2 else ("4:cpu,cpuacct:/app\n0::/x\n", "cpu,cpuacct/app")
    (tmp_path / "proc/self/cgroup").write_text(line)
    group = tmp_path / "sys/fs/cgroup" / place
    group.mkdir(parents=True)
    if version == 2:
        (group / "cpu.max").write_text("50000 100000\n")
    else:
        (group / "cpu.cfs_quota_us").write_text("50000\n")
        (group / "cpu.cfs_period_us").write_text("100000\n")
    (group / "cpu.stat").write_text("nr_periods 100\nnr_throttled 10\n")
    meter = LoadMeter(tmp_path)
    assert meter.cpus() == 0.5
    assert meter.read(10.0, 1.0) == Reading()
    (group / "cpu.stat").write_text("nr_periods 120\nnr_throttled 15\n")
    assert meter.read(12.0, 1.5) == Reading(cpu_percent=50.0, throttled_percent=25.0)


def test_without_a_quota_the_cores_that_the_process_may_use_count(tmp_path: Path) -> None:
    meter = LoadMeter(tmp_path)
    assert meter.cpus() == len(os.sched_getaffinity(0))
    meter.read(1.0, 0.0)
    found = meter.read(2.0, meter.cpus() / 2).cpu_percent
    assert found == pytest.approx(50.0)


def test_this_machine_can_be_read() -> None:
    meter = LoadMeter()
    meter.read()
    sum(i * i for i in range(200_000))
    reading = meter.read()
    assert reading.cpu_percent is not None
    assert reading.cpu_percent > 0
