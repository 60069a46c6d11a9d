"""What the tests of the back-ends share: a request, and the answers of a build in its own runtime."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import onnx
from convert_parts import const, save
from onnx import helper

from converters.backends.base import BuildRequest, Built
from device_profiles.machine import this_machine
from device_profiles.profile import INT8_DOT_FLAGS, Int8Scheme
from edge_sdk import runtimes
from edge_sdk.schemas.manifest import InputSpec

SIZE = 24
ADDS_UP = bool(INT8_DOT_FLAGS & set(this_machine().isa))
"""Whether products of full 8-bit ranges are added up here without saturating; else weights need 7 bits."""


def pictures(root: Path, count: int, *, size: int = SIZE, seed: int = 0) -> tuple[str, ...]:
    """Write pictures of smooth noise and return their paths."""
    rng = np.random.default_rng(seed)
    root.mkdir(parents=True, exist_ok=True)
    names = []
    for index in range(count):
        image = cv2.resize(rng.integers(0, 256, (6, 6, 3), np.uint8), (size, size), interpolation=cv2.INTER_CUBIC)
        names.append(str(root / f"{index:03}.png"))
        cv2.imwrite(names[-1], image)
    return tuple(names)


def spec(size: int = SIZE) -> InputSpec:
    return InputSpec(name="image", shape=(1, 3, size, size), dtype="float32", layout="NCHW", color="rgb", std=(255.0,))


def request(model: Path, out: Path, **more) -> BuildRequest:
    """A request for a model of the tests; `out` is made. Integers are such that this machine adds them up rightly."""
    out.mkdir(parents=True)
    more.setdefault("scheme", Int8Scheme(reduce_range=not ADDS_UP))
    more.setdefault("outputs", tuple(o.name for o in onnx.load(str(model)).graph.output) if "form" not in more else ())
    more.setdefault("input", spec(more.pop("size", SIZE)))
    return BuildRequest(model=model, out=out, **more)


def answers(runtime: str, built: Built, names: tuple[str, ...]) -> list[dict[str, np.ndarray]]:
    """The outputs of a build on pictures, each by its name."""
    from converters.images import read
    from edge_sdk.tasks.preprocess import Preprocessor

    prepare = Preprocessor(built.input)
    engine = runtimes.registry().load(runtime)(built.files[0], {"threads": 1})
    try:
        return [
            {k: np.array(v) for k, v in engine.infer({built.input.name: prepare(read(n))[0]}).items()} for n in names
        ]
    finally:
        engine.close()


def network(path: Path, *, uneven: bool = False, size: int = SIZE) -> Path:
    """Three convolutions and a softmax; `uneven`: the input of the third has one channel 3000 times the others, of
    which it reads next to nothing: a single 8-bit range leaves nothing of the rest."""
    rng = np.random.default_rng(0)
    weights = [rng.normal(0, 0.4, (8, 3, 3, 3)), rng.normal(0, 0.2, (8, 8, 3, 3)), rng.normal(0, 0.4, (8, 8, 1, 1))]
    if uneven:
        weights[1][0] *= 3000
        weights[2][:, 0] /= 3e5
    nodes, constants, last = [], [], "image"
    for index, weight in enumerate(weights):
        nodes.append(
            helper.make_node(
                "Conv", [last, f"w{index}"], [f"c{index}"], pads=[weight.shape[2] // 2] * 4, name=f"conv{index}"
            )
        )
        nodes.append(helper.make_node("Relu", [f"c{index}"], [f"r{index}"], name=f"relu{index}"))
        constants.append(const(f"w{index}", weight))
        last = f"r{index}"
    constants.append(const("wf", rng.normal(0, 1.5, (4, 8))))
    nodes += [
        helper.make_node("GlobalAveragePool", [last], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "wf"], ["logits"], transB=1, name="dense"),
        helper.make_node("Softmax", ["logits"], ["probs"], axis=1),
    ]
    return save(path, nodes, constants, [1, 3, size, size], [("probs", [1, 4])])
