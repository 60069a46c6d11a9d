"""Which candidates a profile allows, and which one wins."""

from __future__ import annotations

from dataclasses import replace

import pytest

from converters.candidates import Allowed, Candidate, of_profile, unique
from converters.frontends.base import Source, TensorInfo
from converters.recipe import Recipe
from converters.search import Outcome, for_profile
from converters.search.order import INT8_DOT_GAIN
from device_profiles import profile
from device_profiles.machine import Machine

HERE = Machine(
    arch="x86_64", isa=("avx2", "avx512f", "avx512_vnni", "fma"), cpu="c", cores=2, ram_mb=8000,
    runtimes={"onnxruntime": "1.31.1", "openvino": "2026.4.1"},
)  # fmt: skip
SOURCE = Source(
    path="m.onnx",
    format="onnx",
    sha256="0" * 64,
    input=TensorInfo(name="x", shape=(1, 3, 8, 8), dtype="float32"),
    layout="NCHW",
    outputs=(TensorInfo(name="y", shape=(1, 3), dtype="float32"),),
    opset=13,
    forms={"onnx": "source.onnx"},
)


def reasons(name: str, recipe: Recipe | None = None, **more) -> dict[tuple[str, str], str | None]:
    facts = {"source": SOURCE, "machine": HERE, "calibrated": True} | more
    rows = of_profile(profile.load(name), recipe or Recipe(), facts.pop("source"), facts.pop("machine"), **facts)
    return {(r.candidate.runtime, r.candidate.precision): r.reason for r in rows}


def test_float_comes_first_and_every_legal_build_is_tried():
    found = reasons("x86-64-avx2")

    assert [key for key in found if key[0] != "litert"] == [
        ("onnxruntime", "fp32"),
        ("openvino", "fp32"),
        ("onnxruntime", "int8"),
        ("openvino", "int8"),
        ("openvino", "fp16"),
    ]
    assert all(reason is None for key, reason in found.items() if key[0] != "litert")


def test_each_build_that_is_not_tried_has_its_reason():
    only = Recipe(precision=("int8",), runtime=("openvino",))
    newer = replace(SOURCE, opset=23)
    old = replace(HERE, runtimes={"onnxruntime": "1.10.0", "openvino": "2026.4.1"})

    assert reasons("x86-64-avx2", only)["onnxruntime", "int8"] == "not asked for: --runtime openvino"
    assert reasons("x86-64-avx2", only)["openvino", "fp32"] == "not asked for: --precision int8"
    assert reasons("x86-64-avx2", calibrated=False)["openvino", "int8"] == "int8 needs --calibration"
    assert (
        reasons("generic-cpu", source=newer)["onnxruntime", "fp32"]
        == "the model has opset 23, the profile reads up to 21"
    )
    assert "onnxruntime 1.10.0 is installed here" in reasons("generic-cpu", machine=old)["onnxruntime", "fp32"]


def test_builds_that_profiles_share_are_made_once_and_schemes_are_kept_apart():
    names = ("generic-cpu", "x86-64-avx2", "x86-64-avx512-vnni")
    rows = {n: of_profile(profile.load(n), Recipe(), SOURCE, HERE, calibrated=True) for n in names}

    assert [c.key for c in unique(rows) if c.runtime == "onnxruntime" and not c.method] == [
        "ort-onnx-fp32",
        "ort-onnx-int8-u8i8cr-0-0",
        "ort-onnx-int8-u8i8c-0-0",
    ]


def verdict(name: str, times: dict[str, float], **limits) -> dict[str, Outcome]:
    chosen = replace(profile.load(name), limits=profile.Limits(**limits))
    allowed = tuple(
        Allowed(
            candidate=Candidate(
                runtime="onnxruntime", backend="ort", form="onnx", precision=p, scheme=chosen.int8_scheme("onnxruntime")
            ),
            support=chosen.runtimes[0],
        )
        for p in times
    )
    outcomes = {
        a.candidate.key: Outcome(
            candidate=a.candidate, status="passed", size_bytes=2**20, latency_ms={"p50": ms, "p95": ms}
        )
        for a, ms in zip(allowed, times.values(), strict=True)
    }
    return {o.candidate.precision: o for o in for_profile(chosen, allowed, outcomes, HERE)}


def test_fp32_wins_when_it_is_faster():
    found = verdict("x86-64-avx512-vnni", {"fp32": 8.0, "int8": 9.0})

    assert (found["fp32"].status, found["int8"].status) == ("chosen", "passed")
    assert found["int8"].reason == "1.12 times the latency of onnxruntime fp32"
    assert found["fp32"].latency_ms["kind"] == "measured"


def test_equal_latency_goes_to_fp32():
    assert verdict("x86-64-avx512-vnni", {"int8": 8.0, "fp32": 8.0})["fp32"].status == "chosen"


def test_figures_for_another_isa_are_estimates_that_do_not_count_on_vnni():
    found = verdict("x86-64-avx2", {"fp32": 8.0, "int8": 7.0})

    assert found["int8"].latency_ms["kind"] == found["fp32"].latency_ms["kind"] == "estimate"
    assert found["int8"].latency_ms["p50"] == pytest.approx(7.0 * INT8_DOT_GAIN)
    assert found["int8"].latency_ms["measured_p50"] == 7.0
    assert found["fp32"].status == "chosen"


def test_the_limits_of_a_profile_refuse_what_is_too_large_or_too_slow():
    large = verdict("x86-64-avx512-vnni", {"fp32": 8.0}, artifact_mb=0.5)["fp32"]
    slow = verdict("x86-64-avx512-vnni", {"fp32": 8.0}, latency_ms=5.0)["fp32"]
    unknown = verdict("x86-64-avx2", {"fp32": 8.0}, latency_ms=5.0)["fp32"]

    assert (large.status, large.reason) == ("refused", "1.0 MiB, the profile `x86-64-avx512-vnni` allows 0.5")
    assert (slow.status, slow.reason) == ("refused", "8.0 ms, the profile `x86-64-avx512-vnni` allows 5")
    assert unknown.status == "chosen"
