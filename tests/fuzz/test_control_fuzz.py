"""Whatever a clock, a sensor or a client says: spans part the day, levels stay in bounds, bodies get an answer."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.degrade import DegradeConfig, Level, Reading, less, lowest, step
from edge_sdk.errors import ConfigError
from edge_sdk.pipeline.models import ModelSet
from edge_sdk.pipeline_config import PipelineConfig
from edge_sdk.schedule import When, local_time
from edge_sdk.serve_config import ServeConfig
from edge_sdk.serving.exchange import HttpError, Request
from edge_sdk.serving.service import Service
from edge_sdk.testing import fake_model

CLOCKS = st.times().map(lambda t: t.strftime("%H:%M:%S"))
MOMENTS = st.integers(0, 2_000_000_000)
ZONES = st.sampled_from(["UTC", "Europe/Vienna", "America/St_Johns", "Asia/Kathmandu", "Pacific/Apia"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)


@given(first=CLOCKS, second=CLOCKS, moment=MOMENTS, zone=ZONES)
@settings(max_examples=300, deadline=None)
def test_a_span_and_its_opposite_part_the_day(first: str, second: str, moment: int, zone: str) -> None:
    local = local_time(moment, zone)
    a, b = When(start=first, end=second).holds_at(local), When(start=second, end=first).holds_at(local)
    assert (a and b) if first == second else (a != b)


@given(moment=MOMENTS, zone=ZONES, start=CLOCKS, end=CLOCKS)
@settings(max_examples=200, deadline=None)
def test_the_seven_days_part_what_a_span_holds(moment: int, zone: str, start: str, end: str) -> None:
    local = local_time(moment, zone)
    days = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
    each = [When(start=start, end=end, days=(day,)).holds_at(local) for day in days]
    assert sum(each) == When(start=start, end=end).holds_at(local) or (start == end and sum(each) == 1)
    assert isinstance(local, dt.datetime)


NUMBERS = st.none() | st.floats(-100, 1000, allow_nan=False)


@given(
    readings=st.lists(st.tuples(NUMBERS, NUMBERS, st.floats(0, 240), st.floats(0, 60)), max_size=60),
    factor=st.floats(0.1, 0.95),
    min_fps=st.floats(0.01, 100),
)
@settings(max_examples=200, deadline=None)
def test_the_level_stays_in_its_bounds_and_the_rate_above_its_floor(
    readings: list[Any], factor: float, min_fps: float
) -> None:
    config = DegradeConfig(cpu_temp_c=80, cpu_percent=90, factor=factor, min_fps=min_fps)
    level, now = Level(), 0.0
    for temp_c, percent, fps, seconds in readings:
        now += seconds
        before = level.number
        level = step(config, level, Reading(temp_c=temp_c, cpu_percent=percent), fps, now)
        assert abs(level.number - before) <= 1
        assert 0 <= level.number <= max(lowest(config, level), before)
        found = less(config, level)
        assert found.rate is None or found.rate >= min_fps
        assert 1 <= found.stricter <= 4


@given(override=JSON, degrade=JSON, serve=JSON, zone=JSON)
@settings(max_examples=200, deadline=None)
def test_a_file_with_nonsense_in_it_is_a_config_error(override: Any, degrade: Any, serve: Any, zone: Any) -> None:
    base = {"source": {"uri": "0"}, "stage": [{"kind": "detect", "model": "m"}]}
    data = {**base, "override": override, "degrade": degrade, "serve": serve, "time_zone": zone}
    with contextlib.suppress(ConfigError):
        PipelineConfig.from_mapping(data)


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    service = Service(ServeConfig(port=0))
    service.serve(ModelSet((fake_model(lambda _: {"logits": np.zeros((1, 3), np.float32)}),)))
    yield service
    service.close()


@given(body=JSON | st.fixed_dictionaries({"images": JSON, "webhook": JSON}), path=st.text("abc/?&=-_.%", max_size=30))
@settings(max_examples=200, deadline=None)
def test_whatever_is_submitted_gets_a_state_or_a_reason(service: Service, body: Any, path: str) -> None:
    data = json.dumps(body).encode()
    for method, where in (("POST", "/v1/batches"), ("GET", f"/v1/batches/{path}"), ("DELETE", f"/v1/batches/{path}")):
        request = Request(method=method, path=where, query={"after": path}, headers={}, body=data)
        try:
            status = service.answer(request).status
        except HttpError as error:
            status = error.status
        assert status in (200, 202, 400, 404, 405, 410, 413, 429)
