"""Overrides by time of day, day and darkness, as pure functions of a moment."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from edge_sdk.config import parse
from edge_sdk.degrade import Less
from edge_sdk.errors import ConfigError
from edge_sdk.pipeline.effective import effective, rate_of
from edge_sdk.pipeline_config import PipelineConfig, StageConfig
from edge_sdk.schedule import Darkness, OverrideConfig, When, active, local_time

VIENNA = "Europe/Vienna"


def when(**keys: Any) -> When:
    return parse(keys, When, where="when")


def override(name: str = "night", *, stage: Any = None, **more: Any) -> OverrideConfig:
    keys = {k: more.pop(k) for k in ("from", "to", "days", "dark", "light", "hold_s") if k in more}
    return parse({"name": name, "when": keys, "stage": stage or {}, **more}, OverrideConfig, where="override")


def at(text: str, zone: str = VIENNA) -> dt.datetime:
    """The moment of an ISO time with its offset, on the clock of a zone."""
    return local_time(dt.datetime.fromisoformat(text).timestamp(), zone)


@pytest.mark.parametrize(
    ("clock", "holds"),
    [
        ("19:59:59", False),
        ("20:00:00", True),
        ("23:59:59", True),
        ("00:00:00", True),
        ("05:59:59", True),
        ("06:00:00", False),
        ("12:00:00", False),
    ],
)
def test_a_span_over_midnight_holds_on_both_sides_of_it(clock: str, holds: bool) -> None:
    assert when(**{"from": "20:00", "to": "06:00"}).holds_at(at(f"2026-07-01T{clock}+02:00")) is holds


def test_the_days_are_those_on_which_a_span_begins() -> None:
    friday = when(**{"from": "20:00", "to": "06:00", "days": ["fri"]})
    assert friday.holds_at(at("2026-07-03T21:00+02:00"))
    assert friday.holds_at(at("2026-07-04T05:00+02:00")), "Saturday morning belongs to Friday night"
    assert not friday.holds_at(at("2026-07-04T21:00+02:00"))
    assert not friday.holds_at(at("2026-07-03T05:00+02:00"))


def test_days_alone_are_whole_days_and_equal_times_a_whole_day() -> None:
    weekend = when(days=["sat", "sun"])
    assert weekend.holds_at(at("2026-07-04T00:00+02:00"))
    assert weekend.holds_at(at("2026-07-05T23:59:59+02:00"))
    assert not weekend.holds_at(at("2026-07-06T00:00+02:00"))
    assert when(**{"from": "08:00", "to": "08:00"}).holds_at(at("2026-07-06T03:00+02:00"))


def test_on_the_day_when_the_clock_goes_forward_the_missing_hour_does_not_hold() -> None:
    missing = when(**{"from": "02:00", "to": "03:00"})
    assert not missing.holds_at(at("2026-03-29T00:59:59+00:00")), "01:59:59"
    assert not missing.holds_at(at("2026-03-29T01:00:00+00:00")), "03:00"
    assert when(**{"from": "02:30", "to": "04:00"}).holds_at(at("2026-03-29T01:00:00+00:00"))


def test_on_the_day_when_the_clock_goes_back_the_doubled_hour_holds_twice() -> None:
    doubled = when(**{"from": "02:00", "to": "03:00"})
    for utc in ("2026-10-25T00:30:00+00:00", "2026-10-25T01:30:00+00:00"):
        assert doubled.holds_at(at(utc)), utc
    assert not doubled.holds_at(at("2026-10-25T02:00:00+00:00"))


def test_the_zone_decides_what_the_clock_shows() -> None:
    night = when(**{"from": "20:00", "to": "06:00"})
    moment = "2026-07-01T18:30:00+00:00"
    assert night.holds_at(at(moment, VIENNA))
    assert not night.holds_at(at(moment, "UTC"))
    assert not night.holds_at(at(moment, "America/New_York"))


def test_darkness_has_a_hysteresis_and_must_last() -> None:
    dusk = when(dark=0.2, light=0.3, hold_s=5)
    state = Darkness().after(dusk, 0.5, 0.0)
    assert state.dark is False
    state = state.after(dusk, 0.1, 1.0)
    assert state.dark is False, "for a moment"
    state = state.after(dusk, 0.4, 3.0).after(dusk, 0.1, 4.0)
    assert state.after(dusk, 0.1, 8.9).dark is False, "the time begins again"
    state = state.after(dusk, 0.1, 9.0)
    assert state.dark is True
    assert state.after(dusk, 0.25, 20.0).after(dusk, 0.25, 60.0).dark is True, "between the two limits it stays"
    state = state.after(dusk, 0.35, 20.0).after(dusk, 0.35, 25.0)
    assert state.dark is False


def test_the_first_picture_decides_at_once() -> None:
    assert Darkness().after(when(dark=0.2), 0.1, 0.0).dark is True


def test_those_that_hold_come_in_the_order_of_the_file_and_unknown_darkness_is_not_dark() -> None:
    night, dark, day = (
        override("night", **{"from": "20:00", "to": "06:00"}),
        override("dark", dark=0.1),
        override("day", **{"from": "06:00", "to": "20:00"}),
    )
    moment = at("2026-07-01T22:00+02:00")
    assert [o.name for o in active((dark, day, night), moment, {})] == ["night"]
    assert [o.name for o in active((dark, day, night), moment, {"dark": Darkness(True)})] == ["dark", "night"]


def test_the_first_override_is_the_strongest_and_none_takes_a_default_back() -> None:
    stages = (
        StageConfig(name="detect", kind="detect", model="m", params={"score": 0.5, "iou": 0.6}),
        StageConfig(name="door", kind="zone", params={"polygon": []}),
        StageConfig(name="yard", kind="zone", params={"polygon": []}, enabled=False),
    )
    first = override("a", dark=1.0, stage={"detect": {"score": 0.1}}, off=["door"], rate=2)
    second = override("b", dark=1.0, stage={"detect": {"score": 0.9, "iou": None}}, on=["door", "yard"], rate=9)
    found = effective(stages, (first, second), Less())
    assert found[0].params == {"score": 0.1}
    assert [s.enabled for s in found] == [True, False, True]
    assert rate_of((first, second), Less()) == 2
    assert rate_of((first,), Less(rate=0.5)) == 0.5
    assert effective(stages, (), Less()) == stages


def test_stricter_means_a_stricter_gate_or_fewer_inferences() -> None:
    model = StageConfig(name="detect", kind="detect", model="m", every=2)
    gate = StageConfig(kind="motion_gate", params={"min_area": 0.01})
    assert effective((model, gate), (), Less(stricter=4))[1].params == {"min_area": 0.04}
    assert effective((model, gate), (), Less(stricter=4))[0].every == 2
    assert effective((model,), (), Less(stricter=2))[0].every == 4


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "names no time, no days and no darkness"),
        ({"from": "20:00"}, "`from` and `to` go together"),
        ({"from": "25:00", "to": "06:00"}, "from: expected HH:MM, 00:00 to 24:00, found `25:00`"),
        ({"from": "8pm", "to": "06:00"}, "found `8pm`"),
        ({"days": ["mond"]}, "no day `mond`, did you mean `mon`"),
        ({"dark": 0.2, "light": 0.1}, "light: must be at or above `dark`"),
        ({"light": 0.1}, "light: must be at or above `dark`"),
        ({"dark": 2}, "expected 0 to 1, found 2"),
    ],
)
def test_a_time_that_is_none_is_told_so(keys: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        when(**keys)
    assert message in caught.value.message


def pipeline(**more: Any) -> dict[str, Any]:
    zone = {"kind": "zone", "name": "door", "params": {"polygon": [[0, 0], [1, 0], [1, 1]]}}
    return {"source": {"uri": "0"}, "stage": [{"kind": "detect", "model": "m.edge"}, zone], **more}


def test_every_wrong_word_of_overrides_is_listed_with_its_place() -> None:
    data = pipeline(
        time_zone="Europe/Wien",
        override=[
            {"name": "a", "when": {"dark": 0.1}, "stage": {"dor": {}}, "off": ["detect"]},
            {"name": "a", "when": {"days": ["mon"]}, "stage": {"door": {"min_frames": "x"}}, "on": ["gate"]},
        ],
    )
    with pytest.raises(ConfigError) as caught:
        PipelineConfig.from_mapping(data)
    for line in (
        "override[0].stage: the pipeline has no stage `dor`, did you mean `door`",
        "override[0].off: the pipeline has no switchable stage `detect`, it has door",
        "override[1].name: two overrides are called `a`",
        "override[1].on: the pipeline has no switchable stage `gate`",
        "override[1].stage.door.min_frames: expected an integer",
        "time_zone: no time zone `Europe/Wien` on this machine",
    ):
        assert line in caught.value.message


def test_the_model_that_sees_the_frames_cannot_be_switched_off() -> None:
    data = pipeline()
    data["stage"][0]["enabled"] = False
    with pytest.raises(ConfigError, match=r"stage\[0\].enabled: the model that sees the frames cannot be switched off"):
        PipelineConfig.from_mapping(data)


def test_overrides_limits_and_service_survive_the_way_to_the_worker() -> None:
    data = pipeline(
        time_zone="UTC",
        override=[{"name": "n", "when": {"from": "20:00", "to": "06:00"}, "stage": {"door": {"min_frames": 3}}}],
        degrade={"cpu_temp_c": 80},
        serve={"port": 0, "rate": 5, "tokens": ["abc"], "batches": {"queued": 2}},
    )
    config = PipelineConfig.from_mapping(data)
    assert PipelineConfig.from_mapping(config.to_json()) == config
    assert config.serve is not None
    assert config.serve.batches.queued == 2
    assert "abc" not in repr(config)
