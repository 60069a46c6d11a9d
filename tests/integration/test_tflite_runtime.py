"""The base on an old board: tflite-runtime 2.14 and numpy 1, in an environment of its own; builds proved in it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edge_sdk import Artifact, cli
from edge_sdk.schemas.manifest import InputSpec

ROOT = Path(__file__).resolve().parents[2]
BASE_TESTS = (
    *("tests/contract/test_runtimes.py", "tests/unit/test_preprocess.py", "tests/unit/test_decoders.py"),
    *("tests/unit/test_artifact.py", "tests/unit/test_artifact_manifest.py", "tests/unit/test_model.py"),
)


def run(python: Path, *words: object, timeout: float = 150) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | {"PYTHONPATH": str(ROOT)}
    command = [str(python), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment, cwd=ROOT)


@pytest.mark.slow
def test_the_base_keeps_its_contracts_on_tflite_runtime_and_numpy_1(tflite_python):
    done = run(tflite_python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *BASE_TESTS)
    if "No module named pytest" in done.stderr:
        pytest.skip("the environment has no pytest: `make tflite-env` installs it")

    assert done.returncode == 0, done.stdout[-3000:]
    assert "litert is not installed" not in done.stdout
    versions = "import numpy, tflite_runtime; print(numpy.__version__.split('.')[0], tflite_runtime.__version__)"
    assert run(tflite_python, "-c", versions).stdout.split() == ["1", "2.14.0"]


@pytest.fixture(scope="module")
def detector(real_artifact, coco_labels):
    return real_artifact("ssd_mobilenet_v1_coco_quant.tflite", "ssd_pp", params={"label_offset": 0})


def test_an_artifact_is_inspected_verified_and_run_there(tflite_python, detector, testdata, tmp_path):
    photo = next((testdata / "datasets" / "coco128_train2017" / "images").glob("*.jpg"))
    out = tmp_path / "out.jsonl"

    inspected = run(tflite_python, "-m", "edge_sdk", "inspect", detector, "--json")
    verified = run(tflite_python, "-m", "edge_sdk", "verify", detector, "--json")
    ran = run(tflite_python, "-m", "edge_sdk", "run", "--model", detector, "--source", photo, "--out", out, "--json")

    assert json.loads(inspected.stdout)["digest"]
    assert json.loads(verified.stdout)["ok"], verified.stdout
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["frames"]["processed"] == 1
    assert "detections" in json.loads(out.read_text().splitlines()[0])


def test_the_runtimes_that_answer_differently_are_told_apart_by_their_package(tflite_python):
    code = (
        "from edge_sdk import runtimes\n"
        "from edge_sdk.errors import BackendError\n"
        "from edge_sdk.runtimes.versions import check_version\n"
        "table = runtimes.registry()\n"
        "check_version(table, 'litert', '2.14', '2.15', 'tflite-runtime')\n"
        "try:\n"
        "    check_version(table, 'litert', '2.0', '3', 'ai-edge-litert')\n"
        "except BackendError as error:\n"
        "    print(error.message, '|', error.hint)\n"
    )

    said = run(tflite_python, "-c", code).stdout

    assert "runtime `litert` is tflite-runtime 2.14.0 here, the artifact was proved in ai-edge-litert" in said
    assert "pip install ai-edge-litert" in said


def dynamic_file(testdata: Path, out: Path, method: str) -> Path:
    """Return ResNet-8 with 8-bit weights and float activations, small layers included unless `method` is legacy."""
    litert = pytest.importorskip("converters.backends.litert")
    from converters.backends.base import BuildRequest

    spec = InputSpec(name="input_1", shape=(1, 32, 32, 3), dtype="float32", layout="NHWC", color="rgb")
    out.mkdir()
    model = testdata / "models" / "mlperf_resnet8_cifar10_f.tflite"
    request = BuildRequest(
        model=model, out=out, precision="dynamic", method=method, form="tflite", input=spec, outputs=("Identity",)
    )
    return litert.build(request).files[0]


@pytest.fixture(scope="module")
def some_cifar(testdata, tmp_path_factory):
    """Ninety pictures of CIFAR-10 in class folders."""
    root = tmp_path_factory.mktemp("cifar")
    for folder in sorted((testdata / "datasets" / "cifar10_test").iterdir()):
        if folder.is_dir():
            (root / folder.name).mkdir()
            for image in sorted(folder.iterdir())[:9]:
                shutil.copy(image, root / folder.name / image.name)
    return root


@pytest.mark.slow
@pytest.mark.parametrize(("method", "code"), [("", 5), ("legacy", 0)])
def test_the_guard_in_2_14_refuses_the_dynamic_file_that_answers_wrongly_there_and_only_there(
    method, code, tflite_python, testdata, some_cifar, tmp_path
):
    file = dynamic_file(testdata, tmp_path / "made", method)
    environments = {"EDGE_ENVIRONMENTS": str(tflite_python.parents[2])}

    done = subprocess.run(
        [
            *(sys.executable, "-m", "edge_sdk", "convert", file, "--profile", "raspberry-pi-4-tflite", "--json"),
            *("--golden", some_cifar, "--color", "rgb", "--resize", "stretch", "--out", tmp_path, "--no-cache"),
        ],
        capture_output=True,
        text=True,
        timeout=150,
        env=os.environ | environments,
    )

    assert done.returncode == code, done.stderr
    if code:
        error = json.loads(done.stdout)["error"]["message"]
        assert "litert dynamic refused: collapsed: no class score changes from image to image" in error
        others = "litert fp32 skipped, litert int8 skipped, litert fp16 skipped"
        assert f"{others}: the source is dynamic already" in error
    else:
        artifact = json.loads(done.stdout)["artifacts"][0]
        runtime = Artifact.open(artifact["path"]).manifest.runtime
        assert (runtime.distribution, runtime.min, runtime.max) == ("tflite-runtime", "2.14", "2.15")
        assert artifact["chosen"]["metric"]["value"] > 0.6
        assert run(tflite_python, "-m", "edge_sdk", "verify", artifact["path"]).returncode == 0
        here = cli.main(["verify", artifact["path"], "--json"])
        assert here == 3
