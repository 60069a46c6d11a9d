"""The contract of a runtime, over every runtime that is installed, with real models."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sdk import runtimes
from edge_sdk.errors import ArtifactError, BackendError, EdgeError, UsageError
from edge_sdk.runtimes.base import Runtime
from edge_sdk.runtimes.versions import check_version, in_range, parse_version, runtime_version
from edge_sdk.testing import tiny_classifier_onnx, tiny_detector_onnx

MODELS = {
    "onnxruntime": ("fastestdet_352.onnx", "yunet_n_320.onnx", "headpose_fsanet_1x1.onnx"),
    "openvino": ("fastestdet_352.onnx", "yunet_n_320.onnx", "person-detection-retail-0013.xml"),
    "litert": (
        "blazeface_short_range.tflite",
        "mlperf_resnet8_cifar10_int8.tflite",
        "ssd_mobilenet_v1_coco_quant.tflite",
    ),
}
CASES = [(engine, name) for engine, names in MODELS.items() for name in names]
ENGINES = list(MODELS)
# How the answers of two runs of the same graph in two engines may differ on float32.
ACROSS_ENGINES = {"rtol": 1e-3, "atol": 2e-3}


def open_runtime(engine: str, path: Path, **options: Any) -> Runtime:
    table = runtimes.registry()
    if table.missing(engine):
        pytest.skip(f"{engine} is not installed")
    runtime: Runtime = table.load(engine)(path, options)
    return runtime


def feeds_of(runtime: Runtime, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {spec.name: rng.integers(0, 100, [d or 1 for d in spec.shape]).astype(spec.dtype) for spec in runtime.inputs}


@pytest.mark.parametrize(("engine", "name"), CASES)
def test_a_runtime_gives_every_output_with_the_shape_and_dtype_it_declares(
    engine: str, name: str, testdata: Path
) -> None:
    runtime = open_runtime(engine, testdata / "models" / name)
    outputs = runtime.infer(feeds_of(runtime))
    for spec in runtime.outputs:
        value = outputs[spec.name]
        assert value.dtype.name == spec.dtype
        assert len(value.shape) == len(spec.shape)
        assert all(want is None or want == got for want, got in zip(spec.shape, value.shape, strict=True))
    runtime.close()


@pytest.mark.parametrize(("engine", "name"), CASES)
def test_a_runtime_answers_the_same_for_the_same_input(engine: str, name: str, testdata: Path) -> None:
    runtime = open_runtime(engine, testdata / "models" / name)
    feeds = feeds_of(runtime)
    first = {k: v.copy() for k, v in runtime.infer(feeds).items()}
    runtime.infer(feeds_of(runtime, seed=1))
    again = runtime.infer(feeds)
    for key, value in first.items():
        np.testing.assert_array_equal(value, again[key])
    runtime.close()


@pytest.mark.parametrize(("engine", "name"), CASES)
def test_two_runtimes_of_one_model_work_side_by_side_in_threads(engine: str, name: str, testdata: Path) -> None:
    pair = [open_runtime(engine, testdata / "models" / name) for _ in range(2)]
    feeds = [feeds_of(r, seed) for seed, r in enumerate(pair)]
    alone = [{k: v.copy() for k, v in r.infer(f).items()} for r, f in zip(pair, feeds, strict=True)]
    seen: list[dict[str, Any]] = [{}, {}]

    def work(index: int) -> None:
        for _ in range(3):
            seen[index] = {k: v.copy() for k, v in pair[index].infer(feeds[index]).items()}

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(alone, seen, strict=True):
        for key, value in one.items():
            np.testing.assert_array_equal(value, other[key])


@pytest.mark.parametrize("name", ["fastestdet_352.onnx", "yunet_n_320.onnx", "headpose_fsanet_1x1.onnx"])
def test_the_same_onnx_answers_alike_in_onnxruntime_and_openvino(name: str, testdata: Path) -> None:
    one, other = (open_runtime(e, testdata / "models" / name) for e in ("onnxruntime", "openvino"))
    assert [o.name for o in one.outputs] == [o.name for o in other.outputs]
    feeds = feeds_of(one)
    expected, found = one.infer(feeds), other.infer(feeds)
    for spec in one.outputs:
        np.testing.assert_allclose(found[spec.name], expected[spec.name], **ACROSS_ENGINES)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_wrong_feed_is_a_backend_error_and_the_runtime_lives_on(engine: str, testdata: Path) -> None:
    runtime = open_runtime(engine, testdata / "models" / MODELS[engine][0])
    good = feeds_of(runtime)
    spec = runtime.inputs[0]
    wrong_shape = {spec.name: np.zeros((1, 2, 3), spec.dtype)}
    wrong_dtype = {spec.name: good[spec.name].astype("int64")}
    for feeds in ({}, {"nothing": good[spec.name]}, wrong_shape, wrong_dtype):
        with pytest.raises(BackendError) as caught:
            runtime.infer(feeds)
        assert caught.value.hint
    runtime.infer(good)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_closed_runtime_says_so_and_may_be_closed_again(engine: str, testdata: Path) -> None:
    runtime = open_runtime(engine, testdata / "models" / MODELS[engine][0])
    feeds = feeds_of(runtime)
    runtime.close()
    runtime.close()
    with pytest.raises(BackendError, match="the model is closed"):
        runtime.infer(feeds)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_unknown_option_is_named_with_the_nearest_one(engine: str, testdata: Path) -> None:
    with pytest.raises(UsageError, match="treads: unknown key, did you mean `threads`"):
        open_runtime(engine, testdata / "models" / MODELS[engine][0], treads=2)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_provider_that_is_absent_is_refused_with_what_there_is(engine: str, testdata: Path) -> None:
    with pytest.raises(BackendError, match="no-such-device"):
        open_runtime(engine, testdata / "models" / MODELS[engine][0], provider="no-such-device")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("threads", [1, 2])
def test_the_answer_does_not_depend_on_the_threads(engine: str, threads: int, testdata: Path) -> None:
    one = open_runtime(engine, testdata / "models" / MODELS[engine][0])
    other = open_runtime(engine, testdata / "models" / MODELS[engine][0], threads=threads)
    feeds = feeds_of(one)
    expected, found = one.infer(feeds), other.infer(feeds)
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"\x00\x01\x02 this is no model at all" * 20, "is no|is not|neither"),
    ],
)
def test_a_file_that_is_no_model_is_an_artifact_error(
    engine: str, content: bytes, message: str, tmp_path: Path
) -> None:
    suffix = runtimes.registry().plugin(engine).capabilities["suffixes"][0]
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=message) as caught:
        open_runtime(engine, path)
    assert caught.value.hint


@pytest.mark.parametrize("engine", ENGINES)
def test_a_missing_file_is_an_artifact_error(engine: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no model file"):
        open_runtime(engine, tmp_path / "absent")


BAD = {
    ("coral_model_invoking_error.tflite", "litert"): (BackendError, "fake-op-double"),
    ("person_detect_micro_badquant.tflite", "litert"): (ArtifactError, "quantized_dimension"),
    ("superres_needs_ort_extensions.onnx", "onnxruntime"): (BackendError, "DecodeImage"),
    ("superres_needs_ort_extensions.onnx", "openvino"): (BackendError, "cannot run"),
    ("lfs_pointer_yunet.onnx", "onnxruntime"): (ArtifactError, "Git LFS pointer"),
    ("lfs_pointer_yunet.onnx", "openvino"): (ArtifactError, "Git LFS pointer"),
    ("ir_v4_unsupported.xml", "openvino"): (BackendError, "IR of version 4"),
}


@pytest.mark.parametrize(("name", "engine"), BAD, ids=[f"{n}-{e}" for n, e in BAD])
def test_a_broken_model_is_refused_with_its_reason(name: str, engine: str, testdata: Path) -> None:
    kind, message = BAD[name, engine]
    with pytest.raises(kind, match=message) as caught:
        open_runtime(engine, testdata / "bad" / name)
    assert "\n" not in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("name", "engine"),
    [
        ("light_squeezenet_const.onnx", "onnxruntime"),
        ("light_squeezenet_const.onnx", "openvino"),
        ("keras_lstm_mnist_ptq.tflite", "litert"),
    ],
)
def test_an_odd_but_valid_model_runs(name: str, engine: str, testdata: Path) -> None:
    runtime = open_runtime(engine, testdata / "bad" / name)
    assert all(np.isfinite(v).all() for v in runtime.infer(feeds_of(runtime)).values())


@pytest.mark.parametrize(("engine", "name"), [c for c in CASES if c[1] != "person-detection-retail-0013.xml"][::2])
def test_a_truncated_model_is_refused_without_taking_the_process_down(
    engine: str, name: str, testdata: Path, tmp_path: Path
) -> None:
    raw = (testdata / "models" / name).read_bytes()
    for share in (0.1, 0.5, 0.98):
        (tmp_path / f"{share}{Path(name).suffix}").write_bytes(raw[: int(len(raw) * share)])
    code = (
        "import sys, pathlib\n"
        "from edge_sdk import runtimes\n"
        "from edge_sdk.errors import EdgeError\n"
        "for path in sorted(pathlib.Path(sys.argv[2]).iterdir()):\n"
        "    try:\n"
        "        runtimes.registry().load(sys.argv[1])(path, {})\n"
        "        print('opened')\n"
        "    except EdgeError as error:\n"
        "        print('refused')\n"
    )
    if runtimes.registry().missing(engine):
        pytest.skip(f"{engine} is not installed")
    if runtimes.registry().plugin(engine).capabilities["distribution"] == "tflite-runtime":
        pytest.skip(
            "tflite-runtime 2.14 does not verify a model: a truncated one ends the process, the worker contains it"
        )
    run = subprocess.run(
        [sys.executable, "-c", code, engine, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.split() == ["refused"] * 3


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("build", [tiny_classifier_onnx, tiny_detector_onnx])
def test_the_small_models_of_the_testing_module_run(engine: str, build: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(build())
    runtime = open_runtime(engine, path)
    assert all(np.isfinite(v).all() for v in runtime.infer(feeds_of(runtime)).values())


def test_versions_compare_by_number() -> None:
    assert parse_version("2026.4.1-22982-e213a147257") == (2026, 4, 1)
    assert parse_version("1.31.0rc1") == parse_version("v1.31") == (1, 31)
    assert in_range("1.31.1", "1.9", "2")
    assert not in_range("1.31.1", None, "1.31")
    assert not in_range("1.9", "1.20", None)
    assert in_range("1.20.0", "1.20", None)


def test_a_runtime_outside_the_proved_versions_is_refused_with_the_pip_line() -> None:
    table = runtimes.registry()
    found = runtime_version(table, "onnxruntime")
    if found is None:
        pytest.skip("onnxruntime is not installed")
    check_version(table, "onnxruntime", found, None)
    with pytest.raises(BackendError, match=f"is version {found}, the artifact was proved with <1.0") as caught:
        check_version(table, "onnxruntime", None, "1.0")
    assert caught.value.exit_code == 3
    assert caught.value.hint is not None
    assert "pip install 'onnxruntime<1.0'" in caught.value.hint


def test_the_table_of_runtimes_says_what_each_opens_without_importing_it() -> None:
    code = "import sys; from edge_sdk import runtimes; t = runtimes.registry()\n"
    code += "[t.plugin(n).capabilities for n in t.names()]\n"
    code += "print([m for m in ('numpy', 'onnxruntime', 'openvino', 'ai_edge_litert') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_every_error_of_a_runtime_is_one_that_users_may_see() -> None:
    assert issubclass(BackendError, EdgeError)
    assert (BackendError.exit_code, ArtifactError.exit_code) == (3, 4)
