"""When a refused int8 build is worth a rescue: only where it could be the fastest that a profile has."""

from __future__ import annotations

from dataclasses import replace

from converters.candidates import Allowed, Candidate
from converters.search import Outcome, worth
from device_profiles import profile
from device_profiles.machine import Machine

HERE = Machine(arch="x86_64", isa=("avx2", "avx512f", "avx512_vnni", "fma"), cpu="c", cores=2, ram_mb=8000, runtimes={})
DEVICE = profile.load("x86-64-avx512-vnni")


def outcome(precision: str, ms: float, *, runtime: str = "onnxruntime", status: str = "passed", **more) -> Outcome:
    candidate = Candidate(runtime=runtime, backend=runtime, form="onnx", precision=precision, **more)
    latency = {"p50": ms, "p95": ms}
    return Outcome(candidate=candidate, status=status, size_bytes=2**20, latency_ms=latency)


REFUSED = outcome("int8", 8.0, status="refused")


def hopeless(*passed: Outcome, device: profile.Profile = DEVICE, asked: tuple[str, ...] = ()) -> str | None:
    support = {r.name: r for r in device.runtimes}
    rows = [Allowed(candidate=o.candidate, support=support[o.candidate.runtime]) for o in (REFUSED, *passed)]
    return worth.hopeless(REFUSED, passed, {device.name: rows}, [device], HERE, asked=asked)


def test_a_rescue_that_another_runtime_beats_already_is_not_tried_and_both_latencies_are_said():
    assert hopeless(outcome("fp32", 8.3, runtime="openvino")) == (
        "not rescued: with layers in float it would take 8.40 ms or more, openvino fp32 passed with 8.30 ms"
    )
    assert hopeless(outcome("fp32", 8.5, runtime="openvino")) is None


def test_int8_that_was_asked_for_is_rescued_however_slow():
    assert hopeless(outcome("fp32", 1.0), asked=("int8", "fp32")) is None
    assert hopeless(outcome("fp32", 1.0), asked=("fp32",)) is not None


def test_where_a_profile_allows_nothing_but_int8_it_is_rescued():
    assert hopeless(outcome("int8", 1.0, runtime="openvino")) is None


def test_builds_that_the_limits_refuse_do_not_count():
    small = replace(DEVICE, limits=profile.Limits(artifact_mb=0.5))
    memory = replace(DEVICE, limits=profile.Limits(ram_mb=100))

    assert hopeless(outcome("fp32", 1.0), device=small) is None
    assert hopeless(outcome("fp32", 1.0), device=memory) is None


def test_one_profile_in_which_it_may_win_is_enough():
    without = profile.load("x86-64-avx2")
    rows = {
        d.name: [
            Allowed(candidate=c, support=d.runtimes[0]) for c in (REFUSED.candidate, outcome("fp32", 9.0).candidate)
        ]
        for d in (DEVICE, without)
    }
    passed = [outcome("fp32", 9.0)]

    assert worth.hopeless(REFUSED, passed, rows, [without], HERE).startswith(
        "not rescued: with layers in float it would "
    )
    assert worth.hopeless(REFUSED, passed, rows, [without, DEVICE], HERE) is None


def test_another_int8_build_of_the_runtime_that_is_about_as_fast_makes_a_rescue_needless():
    assert "onnxruntime int8 nncf passed with 8.30 ms" in worth.twin(REFUSED, [outcome("int8", 8.3, method="nncf")])
    assert worth.twin(REFUSED, [outcome("int8", 8.5, method="nncf")]) is None
    assert worth.twin(REFUSED, [outcome("fp32", 1.0)]) is None
