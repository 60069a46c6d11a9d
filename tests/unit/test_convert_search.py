"""The order of the search, its choices, and the words for its refusals."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from converters.candidates import Allowed, Candidate
from converters.reasons import ABOUT, Reason
from converters.recipe import KEYS, Recipe, from_flags
from converters.search import Outcome, choose, order, timing
from converters.search.queue import Queue, Task
from device_profiles import profile
from device_profiles.machine import Machine
from edge_sdk.parsing import write_dataclass

DOCS = Path(__file__).parents[2] / "docs"
HERE = Machine(arch="x86_64", isa=("avx2", "avx512f", "avx512_vnni", "fma"), cpu="c", cores=2, ram_mb=8000, runtimes={})


def candidate(runtime: str = "onnxruntime", precision: str = "int8", **more) -> Candidate:
    return Candidate(runtime=runtime, backend=runtime, form="onnx", precision=precision, **more)


def ordered(name: str, baselines: dict[str, float]) -> list[tuple[str, str]]:
    device = profile.load(name)
    rows = tuple(
        Allowed(candidate=candidate(r.name, p), support=r) for r in device.runtimes for p in r.precisions if p != "fp32"
    )
    ranked = sorted(
        (row.candidate for row in rows), key=lambda c: order.expected(c, {name: rows}, {name: device}, baselines)
    )
    return [(c.runtime, c.precision) for c in ranked]


def test_the_runtime_that_is_faster_in_float_is_tried_first_and_storage_only_precisions_last():
    fast_ort = ordered("x86-64-avx512-vnni", {"onnxruntime": 7.0, "openvino": 9.0})
    fast_openvino = ordered("x86-64-avx512-vnni", {"onnxruntime": 9.0, "openvino": 7.0})

    assert next(c for c in fast_ort if c[1] == "int8") == ("onnxruntime", "int8")
    assert next(c for c in fast_openvino if c[1] == "int8") == ("openvino", "int8")
    assert fast_ort[-1][1] == fast_openvino[-1][1] == "fp16"


def test_int8_is_expected_to_gain_only_where_the_cpu_has_an_8_bit_dot_product():
    with_dot, without = (profile.load(n) for n in ("x86-64-avx512-vnni", "x86-64-avx2"))

    assert order.factor(with_dot, with_dot.runtimes[0], "int8") < 1 < order.factor(without, without.runtimes[0], "int8")
    assert order.factor(without, without.runtimes[0], "dynamic") > order.factor(without, without.runtimes[0], "int8")


def test_a_rescue_is_expected_to_be_slower_than_what_it_rescues():
    device = profile.load("x86-64-avx512-vnni")
    rows = {"p": (Allowed(candidate=candidate(), support=device.runtimes[0]),)}
    plain, rescued = (
        order.expected(c, rows, {"p": device}, {"onnxruntime": 7.0})
        for c in (candidate(), candidate(float_layers=("a",)))
    )
    assert rescued > plain


def test_a_runtime_works_on_one_candidate_at_a_time_while_another_goes_on():
    first, second, other = (
        Task(candidate=c) for c in (candidate(), candidate(precision="fp16"), candidate("openvino"))
    )
    queue = Queue(lambda task: 0 if task is first else 1 if task is second else 2)
    queue.add(first, second, other)

    assert queue.take() is first
    assert queue.take() is other
    got = []
    waiting = threading.Thread(target=lambda: got.append(queue.take()))
    waiting.start()
    queue.done(first)
    waiting.join(60)
    assert got == [second]
    queue.done(second)
    queue.done(other)
    assert queue.take() is None


def test_a_stopped_queue_gives_nothing_out():
    queue = Queue(lambda task: 0.0)
    queue.add(Task(candidate=candidate()))
    queue.stop()
    assert queue.take() is None


def outcome(ms: float, size: int = 2**20, value: float = 0.5, status: str = "passed", **more) -> Outcome:
    latency = {"p50": ms, "p95": ms, "kind": "measured"}
    return Outcome(
        candidate=candidate(), status=status, size_bytes=size, latency_ms=latency, metric={"value": value}, **more
    )


def test_the_pareto_front_holds_what_nothing_usable_beats_in_all_three():
    rows = [
        outcome(8.0, 4, 0.50),
        outcome(9.0, 1, 0.49),
        outcome(9.5, 2, 0.49),
        outcome(10.0, 4, 0.51),
        outcome(1.0, 1, 0.9, status="refused"),
    ]
    assert [o.pareto for o in choose.front(rows)] == [True, True, False, True, False]


def test_memory_is_a_limit_on_every_machine_and_says_when_it_was_not_measured_there():
    device = replace(profile.load("x86-64-avx512-vnni"), limits=profile.Limits(ram_mb=100))
    there = replace(device, isa=("avx2", "fma"))
    row = replace(outcome(8.0), ram_mb={"peak": 120.4, "start": 50.0})

    here = choose.limited(choose.figures(row, device, HERE), device)
    foreign = choose.limited(choose.figures(row, there, HERE), there)

    assert (here.status, here.reason_kind) == ("refused", Reason.RAM)
    assert here.reason == "120 MiB resident, the profile `x86-64-avx512-vnni` allows 100"
    assert "120 MiB resident (an estimate: measured on this machine)" in foreign.reason


def test_a_latency_limit_counts_the_threads_that_were_chosen():
    device = replace(profile.load("x86-64-avx512-vnni"), limits=profile.Limits(latency_ms=6))
    threads = ({"threads": 2, "sessions": 1, "latency_ms": {"p50": 5.0}, "fps": 200.0, "chosen": True},)

    assert choose.limited(outcome(8.0), device).reason_kind is Reason.LATENCY
    assert choose.limited(outcome(8.0, threads=threads), device).status == "passed"


@pytest.mark.parametrize(
    ("prefer", "limit", "threads"), [("throughput", None, 1), ("latency", None, 4), ("throughput", 7.0, 2)]
)
def test_threads_are_chosen_for_frames_of_all_cores_or_for_one_frame_within_the_limit(prefer, limit, threads):
    rows = [
        {"threads": 1, "sessions": 4, "latency_ms": {"p50": 10.0}, "fps": 400.0},
        {"threads": 2, "sessions": 2, "latency_ms": {"p50": 6.0}, "fps": 330.0},
        {"threads": 4, "sessions": 1, "latency_ms": {"p50": 4.0}, "fps": 250.0},
    ]
    assert timing.choose_setting(rows, prefer=prefer, limit=limit)["threads"] == threads


def test_thread_counts_are_powers_of_two_and_the_cores():
    assert [timing.thread_counts(n) for n in (1, 2, 6, 8)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]


def test_every_word_for_a_refusal_is_explained_in_the_docs():
    text = (DOCS / "concepts" / "search.md").read_text()
    assert set(ABOUT) == set(Reason)
    for kind, about in ABOUT.items():
        assert f"| `{kind.value}` | {about} |" in text


def test_every_flag_has_its_recipe_key_and_every_key_its_line_in_the_guide():
    from edge_sdk.cli import verb_parser

    parser, _ = verb_parser("convert")
    flags = {a.dest for a in parser._actions} - {"help", "json", "verbose", "recipe"}
    assert flags <= KEYS
    text = (DOCS / "guides" / "recipe.md").read_text()
    for key in KEYS:
        assert f"| `{key}` |" in text, key


def test_a_recipe_comes_back_from_its_file_as_it_was(tmp_path):
    recipe = Recipe(
        model=tmp_path / "m.onnx",
        profile=("raspberry-pi-5", "intel-n100"),
        calibration=tmp_path / "photos",
        golden=tmp_path / "golden",
        task="detection",
        max_drop=0.02,
        precision=("fp32", "int8"),
        out=tmp_path,
        mean=(1.5, 2.0, 3.0),
        std=(58.0,),
        skip_classes=1,
        use_cache=False,
        prefer="latency",
        base=tmp_path / "old.edge",
    )
    lines = [f"{k} = {json.dumps(v)}" for k, v in write_dataclass(recipe).items() if v not in ({}, [])]
    (tmp_path / "recipe.toml").write_text("\n".join(lines))

    assert from_flags({}, tmp_path / "recipe.toml") == recipe
    assert from_flags({"max_drop": 0.5}, tmp_path / "recipe.toml") == replace(recipe, max_drop=0.5)
