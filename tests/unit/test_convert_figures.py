"""Threads are searched for the build that is chosen, whichever that is."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from converters.candidates import Allowed, Candidate
from converters.errors import ConversionError
from converters.figures import Figures
from converters.recipe import Recipe
from converters.search import Outcome
from device_profiles import profile
from device_profiles.machine import Machine

HERE = Machine(arch="x86_64", isa=("avx2", "fma"), cpu="a", cores=4, ram_mb=8000, runtimes={})
PROFILE = replace(profile.load("x86-64-avx2"), cores=4, limits=profile.Limits())


@dataclass
class Timer:
    """Answers the job `threads` with a latency that falls with the threads, or not at all."""

    one_thread_ms: float = 8.0
    fails: bool = False
    asked: list[str] = field(default_factory=list)

    def call(self, job: str, *, model: str, settings: list[dict[str, int]], **_: Any) -> list[dict[str, Any]]:
        assert job == "threads"
        self.asked.append(Path(model).name)
        if self.fails:
            raise ConversionError("the worker ended")
        times = [self.one_thread_ms / s["threads"] for s in settings]
        return [s | {"latency_ms": {"p50": t, "p95": t}, "fps": 1e3 / t} for s, t in zip(settings, times, strict=True)]


def passed(precision: str, ms: float, mb: int = 1) -> Outcome:
    return Outcome(
        candidate=Candidate(runtime="onnxruntime", backend="ort", form="onnx", precision=precision),
        status="passed",
        files=(Path(precision),),
        size_bytes=mb * 2**20,
        latency_ms={"p50": ms, "p95": ms},
        ram_mb={"peak": 90.0, "start": 50.0},
        metric={"value": 0.5},
    )


def finish(outcomes: list[Outcome], timer: Timer, limits: profile.Limits) -> tuple[Outcome, ...]:
    job = SimpleNamespace(plan=SimpleNamespace(labels=()), golden=("image.png",))
    device = replace(PROFILE, limits=limits)
    figures = Figures(recipe=Recipe(), profiles=[device], job=job, machine=HERE, timer=timer, device=None)
    allowed = [Allowed(candidate=o.candidate, support=PROFILE.runtimes[0]) for o in outcomes]
    return figures.finish(device, allowed, {o.candidate.key: o for o in outcomes})


@pytest.mark.parametrize(
    ("int8", "limits"),
    [
        (passed("int8", 7.95), profile.Limits()),
        (passed("int8", 4.0, mb=50), profile.Limits(artifact_mb=10)),
    ],
    ids=["a simpler build is as fast", "a limit refuses the fastest"],
)
def test_threads_of_the_chosen_build_are_searched_where_it_is_not_the_fastest(int8, limits):
    timer = Timer()
    rows = finish([passed("fp32", 8.0), int8], timer, limits)
    chosen = next(o for o in rows if o.status == "chosen")

    assert chosen.candidate.precision == "fp32"
    assert [r["threads"] for r in chosen.threads] == [1, 2, 4]
    assert [r["chosen"] for r in chosen.threads].count(True) == 1
    assert chosen.options == {"threads": next(r["threads"] for r in chosen.threads if r["chosen"])}
    assert timer.asked == ["fp32"]


def test_a_latency_limit_that_only_more_threads_keep_is_kept():
    rows = finish([passed("fp32", 8.0)], Timer(), profile.Limits(latency_ms=5))

    assert rows[0].status == "chosen"
    assert rows[0].options["threads"] >= 2


def test_a_build_whose_threads_cannot_be_searched_is_chosen_and_the_cause_is_said(caplog):
    timer = Timer(fails=True)
    rows = finish([passed("fp32", 8.0)], timer, profile.Limits())

    assert (rows[0].status, rows[0].threads, timer.asked) == ("chosen", (), ["fp32"])
    assert "threads of" in caplog.text
    assert "were not searched: the worker ended" in caplog.text
