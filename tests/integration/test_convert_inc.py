"""neural-compressor as a back-end: from an exported PyTorch program to a build that ONNX Runtime runs."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

pytest.importorskip("neural_compressor")

sys.path.insert(0, str(Path(__file__).resolve().parent))
import backend_parts as parts

from converters.backends import inc, registry
from device_profiles.profile import Int8Scheme
from edge_sdk.errors import BackendError, CalibrationError, ConversionError

pytestmark = pytest.mark.slow


class Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(8)
        self.second = torch.nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.dense = torch.nn.Linear(16, 3)

    def forward(self, image):
        x = torch.relu(self.second(torch.relu(self.norm(self.first(image)))))
        y = self.dense(x.mean((2, 3)))
        return torch.softmax(y, 1), y


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("inc")
    torch.manual_seed(0)
    network = Network().eval()
    torch.export.save(torch.export.export(network, (torch.rand(1, 3, 24, 24),)), str(root / "m.pt2"))
    return root / "m.pt2", parts.pictures(root / "pictures", 8), network


def ask(world, out, **more):
    more.setdefault("images", world[1])
    return parts.request(world[0], out, precision="int8", form="torch", **({"outputs": ("probs", "scores")} | more))


def answers(world):
    from converters.images import read
    from edge_sdk.tasks.preprocess import Preprocessor

    prepare = Preprocessor(parts.spec())
    with torch.no_grad():
        return [[v.numpy() for v in world[2](torch.from_numpy(prepare(read(n))[0]))] for n in world[1]]


@pytest.mark.parametrize("method", registry().plugin("inc").capabilities["methods"]["int8"])
def test_a_program_becomes_int8_with_uint8_frames_and_the_names_of_the_source(world, tmp_path, method):
    built = inc.build(ask(world, tmp_path / "a", method=method))
    model = onnx.load(str(built.files[0]))
    found = parts.answers("onnxruntime", built, world[1])

    assert [o.name for o in model.graph.output] == ["probs", "scores"]
    assert (built.input.name, built.input.dtype, built.input.layout) == ("image", "uint8", "NHWC")
    assert {n.domain for n in model.graph.node} == {""}
    assert sum(t.data_type == onnx.TensorProto.INT8 and len(t.dims) > 1 for t in model.graph.initializer) == 3
    for row, (probs, scores) in zip(found, answers(world), strict=True):
        np.testing.assert_allclose(row["probs"], probs, atol=0.02)
        np.testing.assert_allclose(row["scores"], scores, atol=0.05)
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["model.onnx"]
    assert any("neural-compressor" in step for step in built.steps)


def test_equal_requests_give_equal_bytes_and_seven_bits_where_the_scheme_asks(world, tmp_path):
    first, again = (inc.build(ask(world, tmp_path / n, method="pt2e")).files[0].read_bytes() for n in "ab")
    narrow = inc.build(ask(world, tmp_path / "c", method="pt2e", scheme=Int8Scheme(reduce_range=True)))
    held = onnx.load(str(narrow.files[0])).graph.initializer
    weights = [onnx.numpy_helper.to_array(t) for t in held if t.data_type == onnx.TensorProto.INT8 and len(t.dims) > 1]

    assert first == again
    assert max(int(np.abs(w.astype(int)).max()) for w in weights) == 64


def test_what_it_cannot_do_is_said(world, tmp_path):
    with pytest.raises(BackendError, match="has no int8 method `fast`"):
        inc.build(ask(world, tmp_path / "a", method="fast"))
    with pytest.raises(BackendError, match="cannot keep single layers in float"):
        inc.build(ask(world, tmp_path / "b", float_layers=("conv",)))
    with pytest.raises(CalibrationError, match="int8 needs calibration images"):
        inc.build(ask(world, tmp_path / "c", images=()))
    with pytest.raises(BackendError, match="the inc back-end builds int8, not fp32"):
        inc.build(parts.request(world[0], tmp_path / "d", precision="fp32", form="torch"))
    (tmp_path / "bad.pt2").write_bytes(b"no program")
    with pytest.raises(ConversionError, match=r"`bad.pt2` cannot be read as an exported program"):
        inc.build(ask((tmp_path / "bad.pt2", world[1]), tmp_path / "e"))
