"""Size of the delta from one int8 version to the next, with and without the scales of the first (`--base`).

A small classifier is trained on sign_digits, fine-tuned a little, and both are built; about a minute of one core.
"""

from __future__ import annotations

import copy
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import bsdiff4
import cv2
import numpy as np

from bench.run import RESULTS, machine

SIZE = 48
EPOCHS = 8
RATE, TUNED = 2e-3, {"a tenth of the rate": 2e-4, "a hundredth of the rate": 2e-5}
CALIBRATION, GOLDEN = 64, 400
WAYS = (("ort", ""), ("ort", "nncf"), ("openvino", ""))
_DATA = Path(os.environ.get("EDGE_TESTDATA", Path(__file__).resolve().parents[2] / "shared" / "testdata"))


def main(words: Sequence[str] | None = None) -> int:
    """Write bench/results/convert_delta.json."""
    del words
    if not (_DATA / "manifest.json").is_file():
        raise SystemExit(f"no test material at {_DATA}: set EDGE_TESTDATA")
    train, golden = _pictures()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        first, *tuned = _train(root, train)
        rows = {}
        for name, method in WAYS:
            for how, second in zip(TUNED, tuned, strict=True):
                label = f"{' '.join(filter(None, (name, 'int8', method)))}, one epoch at {how}"
                out = root / f"{len(rows)}"
                rows[label] = _compare(out, (name, method), (first, second), train, golden)
                sys.stderr.write(f"{label}: {json.dumps(rows[label])}\n")
    result = {
        "about": f"classifier of sign_digits after {EPOCHS} epochs and fine-tuned one more; bytes of "
        "the bsdiff4 delta between the int8 model files, top-1 on images that neither saw",
        "command": "python -m bench.run convert_delta",
        "machine": machine(),
        "images": {"train": len(train), "calibration": CALIBRATION, "golden": len(golden)},
        "cases": rows,
        "rows": [_row(label, figures) for label, figures in rows.items()],
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "convert_delta.json").write_text(json.dumps(result, indent=1) + "\n")
    return 0


def _row(label: str, figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return the line of the table for one case."""
    return {
        "build and fine-tuning": label,
        "fp32 bytes": figures["fp32_bytes"],
        "int8 bytes": figures["int8_bytes"],
        "delta without base": figures["delta_without_base"],
        "delta with base": figures["delta_with_base"],
        "with / without": round(figures["delta_with_base"] / figures["delta_without_base"], 3),
        "top-1 fp32": figures["top1"]["fp32"],
        "top-1 without": figures["top1"]["without_base"],
        "top-1 with": figures["top1"]["with_base"],
    }


def _pictures() -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Return (file, class) pairs to train on and to judge on, by the hash of the order of their names."""
    root = _DATA / "datasets" / "sign_digits"
    files = sorted(p for p in root.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    names = sorted({p.parent.name for p in files})
    rows = [(str(p), names.index(p.parent.name)) for p in files]
    order = np.random.default_rng(0).permutation(len(rows))
    return [rows[i] for i in order[GOLDEN:]], [rows[i] for i in order[:GOLDEN]]


def _tensor(rows: Sequence[tuple[str, int]]) -> Any:
    import torch

    images = [cv2.resize(cv2.imread(name), (SIZE, SIZE))[:, :, ::-1] for name, _ in rows]
    return torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2).astype(np.float32) / 255)


def _train(root: Path, rows: Sequence[tuple[str, int]]) -> list[Path]:
    """Train a network of four convolutions; return its ONNX file, then one for each way to fine-tune it."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    torch.set_num_threads(1)
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 16), (16, 32), (32, 64), (64, 96)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 10), nn.Softmax(1))
    images, labels = _tensor(rows), torch.tensor([label for _, label in rows])

    def epochs(count: int, rate: float) -> None:
        optimiser = torch.optim.Adam(network.parameters(), rate)
        network.train()
        for _ in range(count):
            for part in torch.randperm(len(images)).split(64):
                optimiser.zero_grad()
                nn.functional.nll_loss(torch.log(network(images[part]) + 1e-9), labels[part]).backward()
                optimiser.step()

    epochs(EPOCHS, RATE)
    files = [_export(network, root / "first.onnx")]
    trained = copy.deepcopy(network.state_dict())
    for index, rate in enumerate(TUNED.values()):
        network.load_state_dict(trained)
        epochs(1, rate)
        files.append(_export(network, root / f"tuned{index}.onnx"))
    return files


def _export(network: Any, path: Path) -> Path:
    import torch

    example = (torch.zeros(1, 3, SIZE, SIZE),)
    torch.onnx.export(
        network.eval(), example, str(path), dynamo=True, opset_version=18, external_data=False, verbose=False,
        input_names=["image"], output_names=["probs"],
    )  # fmt: skip
    return path


def _compare(
    out: Path,
    way: tuple[str, str],
    models: tuple[Path, Path],
    train: Sequence[tuple[str, int]],
    golden: Sequence[tuple[str, int]],
) -> dict[str, Any]:
    from converters import backends
    from converters.backends.base import BuildRequest, Built
    from edge_sdk.schemas.manifest import InputSpec

    spec = InputSpec(name="image", shape=(1, 3, SIZE, SIZE), dtype="float32", layout="NCHW", color="rgb", std=(255.0,))
    name, method = way
    back = backends.registry().load(name)

    def build(label: str, model: Path, precision: str = "int8", base: Path | None = None) -> Built:
        folder = out / label
        folder.mkdir(parents=True)
        images = tuple(file for file, _ in train[:CALIBRATION]) if precision == "int8" else ()
        how = method if precision == "int8" else ""
        built: Built = back(
            BuildRequest(
                model=model, out=folder, precision=precision, input=spec, outputs=("probs",), method=how,
                images=images, base=base,
            )
        )  # fmt: skip
        return built

    first = build("first", models[0])
    fresh, kept = build("fresh", models[1]), build("kept", models[1], base=first.files[0])
    source = build("source", models[1], "fp32")
    runtime = str(backends.registry().plugin(name).capabilities["runtime"])
    old = _bytes(first)
    return {
        "int8_bytes": len(old),
        "fp32_bytes": len(_bytes(source)),
        "delta_without_base": len(bsdiff4.diff(old, _bytes(fresh))),
        "delta_with_base": len(bsdiff4.diff(old, _bytes(kept))),
        "top1": {
            label: _top1(runtime, built, golden)
            for label, built in (("base", first), ("fp32", source), ("without_base", fresh), ("with_base", kept))
        },
        "step": next(s for s in kept.steps if s.startswith("scales of the base")),
    }


def _bytes(built: Any) -> bytes:
    return b"".join(f.read_bytes() for f in built.files)


def _top1(runtime: str, built: Any, rows: Sequence[tuple[str, int]]) -> float:
    from edge_sdk import runtimes
    from edge_sdk.tasks.preprocess import Preprocessor

    prepare = Preprocessor(built.input)
    engine = runtimes.registry().load(runtime)(built.files[0], {"threads": 1})
    try:
        right = [
            int(engine.infer({"image": prepare(cv2.imread(name))[0]})["probs"].argmax()) == label
            for name, label in rows
        ]
    finally:
        engine.close()
    return round(float(np.mean(right)), 4)


if __name__ == "__main__":
    sys.exit(main())
