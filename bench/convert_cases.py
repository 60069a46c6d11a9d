"""What an engineer would say of each model of the test material: flags of `edge convert` and the two data sets."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

TESTDATA = Path(os.environ.get("EDGE_TESTDATA", Path(__file__).resolve().parents[2] / "shared" / "testdata"))
PROFILES = ("x86-64-avx2", "raspberry-pi-5", "intel-nuc-vnni")
_COCO = "coco128_train2017"
_UNIT = ("--mean", "127.5", "--std", "127.5")


@dataclass(frozen=True, slots=True)
class Case:
    """`golden` and `calibration` are folders under datasets/; `images` alone means agreement with the source."""

    flags: tuple[str, ...] = ()
    golden: str = _COCO
    calibration: str = "imagenet_calib160"


def _photos(*flags: str) -> Case:
    return Case(flags=flags, golden=f"{_COCO}/images")


def _imagenet(*flags: str) -> Case:
    return Case(("--color", "rgb", "--resize", "crop", "--skip-classes", "1", *flags), golden="imagenet_eval380")


def _cifar(*flags: str) -> Case:
    return Case(("--color", "rgb", "--resize", "stretch", *flags), golden="cifar10_test", calibration="cifar10_test")


_VWW = ("--color", "rgb", "--resize", "stretch", "--task", "classification")
CASES: Mapping[str, Case] = {
    "yolox_nano_416.onnx": Case(),
    "yolox_nano_int8.tflite": Case(("--decoder", "yolox")),
    "nanodet_m_320.onnx": Case(),
    "fastestdet_352.onnx": Case(),
    "fastestdet_280e.pth": Case(),
    "ssd_mobilenet_v1_coco_quant.tflite": _photos("--color", "rgb", "--resize", "stretch"),
    "person-detection-retail-0013.xml": _photos("--color", "bgr", "--resize", "stretch", "--mean", "0", "--std", "1"),
    "ultraface_rfb_320.onnx": _photos(),
    "ultraface_slim_320_simplified.onnx": _photos(),
    "yunet_n_320.onnx": _photos(),
    "blazeface_short_range.tflite": _photos("--color", "rgb", "--resize", "stretch", *_UNIT),
    "blazeface.pth": _photos(),
    "mobilenet_v1_0.25_224_float.tflite": _imagenet(*_UNIT),
    "mobilenet_v1_0.25_224_quant.tflite": _imagenet(),
    "mobilenet_v1_0.25_128_quant.tflite": _imagenet(),
    "mobilenet_v2_1.0_224_quant.tflite": _imagenet(),
    "mlperf_resnet8_cifar10.h5": _cifar("--mean", "0", "--std", "1"),
    "mlperf_resnet8_cifar10_f.tflite": _cifar("--mean", "0", "--std", "1"),
    "mlperf_resnet8_cifar10_int8.tflite": _cifar("--mean", "0", "--std", "1"),
    "vww_96.h5": _photos(*_VWW, "--mean", "0", "--std", "255"),
    "vww_96_float.tflite": _photos(*_VWW, "--mean", "0", "--std", "255"),
    "vww_96_int8.tflite": _photos(*_VWW, "--mean", "0", "--std", "255"),
    "fer_mini_xception.hdf5": _photos("--color", "gray", "--resize", "stretch", *_UNIT, "--task", "classification"),
    "deeplabv3_float_257.onnx": _photos("--color", "rgb", "--resize", "stretch", *_UNIT),
    "deeplabv3_mnv2_dm05_quant.tflite": _photos("--color", "rgb", "--resize", "stretch"),
    "road_segmentation_adas.onnx": _photos("--color", "bgr", "--resize", "stretch", "--mean", "0", "--std", "1"),
    "movenet_lightning_ptq.tflite": _photos("--color", "rgb", "--resize", "letterbox:center:0"),
    "mtcnn_pnet.pt": _photos(),
    "mtcnn_rnet.pt": _photos(),
    "headpose_fsanet_1x1.onnx": _photos(
        *("--task", "regression", "--decoder", "regression", "--color", "bgr", "--resize", "stretch"),
        *("--mean", "127.5", "--std", "128"),
    ),
}


def words(model: str) -> list[str]:
    """Return the arguments of `edge convert` for a model, without profiles and places."""
    case = CASES[model]
    data = TESTDATA / "datasets"
    flags = [str(TESTDATA / "models" / model), *case.flags, "--golden", str(data / case.golden)]
    return [*flags, "--calibration", str(data / case.calibration)]


def check_complete() -> None:
    """Refuse to measure less than all the models there are."""
    if not (TESTDATA / "manifest.json").is_file():
        raise SystemExit(f"no test material at {TESTDATA}: set EDGE_TESTDATA")
    found = {p.name for p in (TESTDATA / "models").iterdir() if p.suffix != ".bin"}
    if found != set(CASES):
        raise SystemExit(f"models and cases differ: {sorted(found ^ set(CASES))}")
