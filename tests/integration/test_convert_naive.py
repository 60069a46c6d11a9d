"""What the tool alone makes of boxes and scores in one output is refused; our build of it is not."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("nncf")

sys.path.insert(0, str(Path(__file__).resolve().parent))
import convert_parts as parts

from converters import search
from converters.backends.base import BuildRequest
from converters.backends.onnx_prepare import fold, optimise
from converters.cache import Cache
from converters.candidates import Candidate
from converters.datasets import load
from converters.frontends.base import Source, TensorInfo
from converters.jobs import describe
from converters.metrics import task
from converters.plan import Plan
from converters.recipe import Recipe
from converters.workers import Workshop
from edge_sdk.parsing import write_dataclass
from edge_sdk.schemas.manifest import InputSpec, Resize

pytestmark = pytest.mark.slow
INT8 = Candidate(runtime="onnxruntime", backend="ort", form="onnx", precision="int8")


def search_of(tmp_path: Path, worker: Workshop) -> search.Search:
    """A search over a detector whose boxes in pixels and scores share one output, its source measured."""
    model = parts.detector(tmp_path / "d.onnx")
    golden = load(parts.bright_cells(tmp_path / "golden", 12, seed=3))
    spec = InputSpec(
        name="image", shape=(1, 3, 544, 544), dtype="float32", layout="NCHW", color="rgb",
        resize=Resize(mode="stretch"), std=(255.0,),
    )  # fmt: skip
    plan = Plan(
        task="detection", decoder="yolov8", decoder_params={"classes": 2}, input=spec, classes=2,
        labels=("red", "green"), name="d",
    )  # fmt: skip
    sizes = {s.image: (544, 544) for s in golden.samples}
    job = search.Job(
        recipe=Recipe(max_drop=1.0),
        plan=plan,
        source=Source(
            path=str(model),
            format="onnx",
            sha256="0" * 64,
            input=TensorInfo(name="image", shape=spec.shape, dtype="float32"),
            layout="NCHW",
            outputs=(TensorInfo(name="output", shape=(1, 6, 6069), dtype="float32"),),
            forms={"onnx": str(model)},
        ),
        calibration=tuple(str(s.image) for s in golden.samples),
        golden=tuple(str(s.image) for s in golden.samples),
        judge=task.labelled("detection", golden, sizes, 2, ("red", "green")),
        work=tmp_path,
    )
    builds = search.Builds(job, Cache(None, limit_mb=1, say=print))
    found = search.Search(job, builds, {"onnxruntime": worker}, say=print, clock=time.monotonic)
    found.measure_source(worker)
    return found


def test_naive_int8_of_boxes_and_scores_in_one_output_is_refused_whatever_the_drop_allowed(tmp_path):
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    worker = Workshop("test", job_limit_s=120, memory_mb=8192)
    try:
        found = search_of(tmp_path, worker)
        request = BuildRequest(
            model=Path(found.job.source.forms["onnx"]),
            out=tmp_path,
            precision="int8",
            input=found.job.plan.input,
            images=found.job.calibration,
        )
        folded, spec, _, _ = fold(request)
        optimise(folded, tmp_path / "prepared.onnx")

        class Reader(CalibrationDataReader):
            def __init__(self):
                from converters.backends.base import calibration_tensors

                self.tensors = calibration_tensors(request, spec)

            def get_next(self):
                tensor = next(self.tensors, None)
                return None if tensor is None else {"image": tensor}

        quantize_static(str(tmp_path / "prepared.onnx"), str(tmp_path / "naive.onnx"), Reader(), per_channel=True)
        manifest = found.job.source_manifest() | {
            "input": write_dataclass(spec),
            "outputs": describe("onnxruntime", tmp_path / "naive.onnx", {"threads": 1}),
        }
        naive = search.Outcome(
            candidate=INT8,
            status="passed",
            files=(tmp_path / "naive.onnx",),
            manifest=manifest,
        )

        verdict = found.verify(worker, naive)
        ours = found.run([INT8])
    finally:
        worker.stop()

    assert verdict.status == "refused"
    assert verdict.reason.startswith("collapsed: every class score is 0")
    kept = next(iter(ours.values()))
    assert (kept.status, abs(kept.metric["drop"]) < 0.01) == ("passed", True), kept
