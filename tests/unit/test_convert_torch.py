"""PyTorch in: the user's factory, weights that run no code, exported programs."""

from __future__ import annotations

import importlib
import json
import sys
import textwrap
import uuid
import zipfile
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxscript")

import torch

from converters.frontends import inspect, torch_program, torch_weights
from converters.frontends.base import Source, sniff
from edge_sdk.errors import ConversionError, UsageError

NETS = """
    import torch
    from torch import nn

    print("imported")
    answer = 42

    def net(channels=3):
        return nn.Sequential(
            nn.Conv2d(channels, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(8, 3), nn.Softmax(1),
        )

    def gray():
        return net(1)

    def wider():
        return nn.Sequential(*list(net())[:5], nn.Linear(8, 5))

    def fails():
        raise RuntimeError("no such backbone")

    def leaves():
        raise SystemExit(3)

    def state():
        return net().state_dict()

    class Two(nn.Module):
        def forward(self, image):
            return {"small": image[:, :, ::2, ::2], "pair": [image.mean((2, 3)), image.amax((2, 3))]}

    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, image):
            found = self.conv(image).mean((2, 3))
            return found * 2 if found.sum().item() > 1e9 else found

    class TwoImages(nn.Module):
        def forward(self, image, other):
            return image + other
"""


@pytest.fixture
def nets(tmp_path, monkeypatch):
    """The name of a module in a folder of its own, which is the current one."""
    name = f"nets_{uuid.uuid4().hex[:8]}"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(NETS))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    return name


def network(nets, kind="net"):
    sys.path.insert(0, str(Path.cwd()))
    torch.manual_seed(0)
    return getattr(importlib.import_module(nets), kind)().eval()


def read(path, tmp_path, **options) -> Source:
    work = tmp_path / uuid.uuid4().hex
    work.mkdir()
    return Source.from_json(inspect(str(path), str(work), options))


def weights(nets, name="w.pth", wrap=lambda state: state) -> Path:
    path = Path(name)
    torch.save(wrap(network(nets).state_dict()), path)
    return path


def test_a_factory_and_its_weights_become_a_program_and_an_onnx_file_that_answer_alike(nets, tmp_path):
    found = read(weights(nets), tmp_path, factory=f"{nets}:net", size=(48, 32))

    assert found.format == "torch"
    assert (found.input.shape, found.layout, found.opset) == ((1, 3, 32, 48), "NCHW", 18)
    assert (found.decoder, found.classes) == ("softmax", 3)
    assert set(found.forms) == {"torch", "onnx"}
    assert any(line.startswith("PyTorch to ONNX: same answers") for line in found.because)
    import onnxruntime as ort

    value = np.random.default_rng(0).normal(size=(1, 3, 32, 48)).astype(np.float32)
    want = network(nets)
    want.load_state_dict(torch.load("w.pth", weights_only=True))
    session = ort.InferenceSession(found.forms["onnx"])
    assert np.allclose(session.run(None, {found.input.name: value})[0], want(torch.from_numpy(value)).detach().numpy())
    program = torch.export.load(found.forms["torch"]).module()
    assert torch.allclose(program(torch.from_numpy(value)), want(torch.from_numpy(value)))


def test_the_same_weights_make_the_same_onnx_bytes_without_paths(nets, tmp_path):
    weights(nets)
    first, second = (read("w.pth", tmp_path, factory=f"{nets}:net", size=(32, 32)) for _ in range(2))
    content = Path(first.forms["onnx"]).read_bytes()

    assert content == Path(second.forms["onnx"]).read_bytes()
    assert str(tmp_path).encode() not in content
    assert first.sha256 == second.sha256


def test_an_older_opset_comes_from_the_tracing_exporter_and_is_read_back(nets, tmp_path):
    found = read(weights(nets), tmp_path, factory=f"{nets}:net", size=(32, 32), opset=13)

    assert found.opset == 13


def test_code_that_only_tracing_follows_has_no_program_and_says_why(nets, tmp_path):
    torch.save(network(nets, "Branches").state_dict(), "b.pth")
    found = read("b.pth", tmp_path, factory=f"{nets}:Branches", size=(32, 32))

    assert set(found.forms) == {"onnx"}
    assert "torch.export cannot follow the code" in found.absent["torch"]


def test_gray_networks_and_networks_that_take_rows_first_are_read_by_flags(nets, tmp_path):
    torch.save(network(nets, "gray").state_dict(), "g.pth")

    assert read("g.pth", tmp_path, factory=f"{nets}:gray", size=(32, 24)).input.shape == (1, 1, 24, 32)
    found = read("", tmp_path, factory=f"{nets}:Two", size=(32, 24), layout="NHWC")
    assert (found.input.shape, len(found.outputs)) == ((1, 24, 32, 3), 3)


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict"])
def test_the_wrappers_of_training_scripts_are_unwrapped_and_named(nets, key):
    path = weights(nets, wrap=lambda state: {"epoch": 3, key: state, "optimizer": {"lr": 0.1}})
    state, because = torch_weights.read_state(path)

    assert set(state) == set(network(nets).state_dict())
    assert because == (f"weights: `{key}` of `w.pth`",)


def test_a_moving_average_beside_the_weights_is_named_and_left(nets):
    path = weights(nets, wrap=lambda state: {"model": state, "ema": state})

    assert torch_weights.read_state(path)[1] == ("weights: `model` of `w.pth`, not its moving average `ema`",)


def test_the_prefix_of_data_parallel_training_goes_and_is_named(nets):
    path = weights(nets, wrap=lambda state: {f"module.{k}": v for k, v in state.items()})
    module = network(nets, "gray")
    with pytest.raises(ConversionError, match="1 of another shape"):
        torch_weights.fit(module, torch_weights.read_state(path)[0], "w.pth", "a:gray")
    line = torch_weights.fit(network(nets), torch_weights.read_state(path)[0], "w.pth", "a:net")

    assert line == "weights: every key of `w.pth` begins with `module.`, which was left out"


def test_safetensors_are_weights_too_and_damaged_ones_are_named(nets):
    save_file = pytest.importorskip("safetensors.torch").save_file
    save_file(network(nets).state_dict(), "w.safetensors")

    assert sniff(Path("w.safetensors")) == "torch"
    assert set(torch_weights.read_state(Path("w.safetensors"))[0]) == set(network(nets).state_dict())
    Path("w.safetensors").write_bytes(Path("w.safetensors").read_bytes()[:-9])
    with pytest.raises(ConversionError, match="`w.safetensors` cannot be read as PyTorch weights"):
        torch_weights.read_state(Path("w.safetensors"))


def test_weights_without_a_network_ask_for_the_factory(nets, tmp_path):
    with pytest.raises(UsageError, match=r"`w.pth` holds 9 tensors and no network") as caught:
        read(weights(nets), tmp_path)
    assert "--factory package.module:function" in (caught.value.hint or "")


def test_the_size_of_the_input_is_asked_for(nets, tmp_path):
    with pytest.raises(UsageError, match="does not tell the size of its input") as caught:
        read(weights(nets), tmp_path, factory=f"{nets}:net")
    assert "--size WIDTHxHEIGHT" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("factory", "error", "message"),
    [
        ("no_such_module_here:net", UsageError, "cannot import `no_such_module_here`"),
        ("{}:nothing", UsageError, "has no `nothing`"),
        ("{}:answer", UsageError, "is a int, expected a function"),
        ("{}:fails", ConversionError, "failed: RuntimeError: no such backbone"),
        ("{}:leaves", ConversionError, "failed: SystemExit: 3"),
        ("{}:state", ConversionError, "returned a OrderedDict, expected a torch.nn.Module"),
        ("{}:gray", ConversionError, r"1 of another shape \(`0.weight` \(\[8, 3, 3, 3\] in the file, \[8, 1, 3, 3\]"),
        ("{}:wider", ConversionError, r"2 of another shape \(`5.weight` \(\[3, 8\] in the file, \[5, 8\] in the model"),
        ("{}:Branches", ConversionError, r"2 missing \(`conv.weight`, `conv.bias`\); 9 unexpected \(`0.weight`, .*…\)"),
    ],
)
def test_a_factory_that_does_not_serve_is_named_with_what_is_wrong(nets, tmp_path, factory, error, message):
    with pytest.raises(error, match=message):
        read(weights(nets), tmp_path, factory=factory.format(nets), size=(32, 32))


def test_a_network_that_takes_something_else_fails_with_its_own_words(nets, tmp_path):
    with pytest.raises(ConversionError, match=r"fails on an input \[1, 3, 32, 32\]: TypeError"):
        read("", tmp_path, factory=f"{nets}:TwoImages", size=(32, 32))


class Trap:
    """An object whose unpickling would leave a file."""

    def __reduce__(self):
        return Path.touch, (Path("trapped"),)


def test_a_pickle_with_objects_is_refused_and_its_code_is_not_run(nets, tmp_path):
    torch.save(network(nets), "whole.pt")
    torch.save({"state_dict": network(nets).state_dict(), "trap": Trap()}, "trap.pth")

    with pytest.raises(ConversionError, match=r"holds the Python object `torch\.nn\.modules") as caught:
        read("whole.pt", tmp_path, factory=f"{nets}:net", size=(32, 32))
    assert "torch.save(model.state_dict()" in (caught.value.hint or "")
    with pytest.raises(ConversionError, match="`trap.pth` holds"):
        read("trap.pth", tmp_path, factory=f"{nets}:net", size=(32, 32))
    assert not Path("trapped").exists()


def test_torchscript_is_refused_with_the_way_out(nets, tmp_path):
    torch.jit.save(torch.jit.trace(network(nets), torch.zeros(1, 3, 32, 32)), "script.pt")

    with pytest.raises(UsageError, match="`script.pt` is a TorchScript archive") as caught:
        read("script.pt", tmp_path)
    assert "torch.export.save" in (caught.value.hint or "")


@pytest.mark.parametrize("zipped", [True, False])
def test_cut_short_weights_are_said_to_be_damaged(nets, tmp_path, zipped):
    path = Path("w.pth")
    torch.save(network(nets).state_dict(), path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[:700])

    with pytest.raises(ConversionError, match=r"`w.pth` cannot be read as PyTorch weights") as caught:
        read(path, tmp_path, factory=f"{nets}:net", size=(32, 32))
    assert "cut short" in (caught.value.hint or "")


def test_weights_that_were_saved_on_a_gpu_are_read_on_the_cpu(nets):
    torch.save(network(nets).state_dict(), "cpu.pth")

    def on_gpu(name, content):
        if not name.endswith("data.pkl"):
            return content
        moved = content.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
        assert moved != content
        return moved

    _changed(Path("cpu.pth"), Path("gpu.pth"), on_gpu)
    state, _ = torch_weights.read_state(Path("gpu.pth"))

    assert {t.device.type for t in state.values()} == {"cpu"}


def test_nan_weights_and_files_without_weights_are_named(nets, tmp_path):
    def spoil(state):
        state["0.bias"][1] = float("nan")
        return state

    with pytest.raises(ConversionError, match="1 NaN values in the weight `0.bias`"):
        read(weights(nets, wrap=spoil), tmp_path, factory=f"{nets}:net", size=(32, 32))
    torch.save({"epoch": 3}, "e.pth")
    with pytest.raises(ConversionError, match="has no weights in it: it holds `epoch`"):
        read("e.pth", tmp_path, factory=f"{nets}:net", size=(32, 32))
    torch.save([1, 2], "l.pth")
    with pytest.raises(ConversionError, match="holds a list, expected a state dict"):
        read("l.pth", tmp_path, factory=f"{nets}:net", size=(32, 32))


def test_an_exported_program_needs_no_factory_and_no_size(nets, tmp_path):
    torch.export.save(torch.export.export(network(nets), (torch.zeros(1, 3, 40, 32),)), "p.pt2")
    found = read("p.pt2", tmp_path)

    assert (found.input.shape, found.decoder) == ((1, 3, 40, 32), "softmax")
    with pytest.raises(UsageError, match="is an exported program, it needs no factory"):
        read("p.pt2", tmp_path, factory=f"{nets}:net")


def test_a_program_with_a_dynamic_size_is_asked_for_one_and_several_inputs_are_refused(nets, tmp_path):
    batch, height = torch.export.Dim("batch", min=1, max=8), torch.export.Dim("height", min=8, max=512)
    shapes = ({0: batch, 2: height},)
    program = torch.export.export(network(nets), (torch.zeros(2, 3, 40, 32),), dynamic_shapes=shapes)
    torch.export.save(program, "d.pt2")

    with pytest.raises(UsageError, match="has the dynamic shape"):
        read("d.pt2", tmp_path)
    assert read("d.pt2", tmp_path, size=(32, 24)).input.shape == (1, 3, 24, 32)
    pair = (torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))
    torch.export.save(torch.export.export(network(nets, "TwoImages"), pair), "t.pt2")
    with pytest.raises(ConversionError, match="needs one image input"):
        read("t.pt2", tmp_path)


def _changed(source: Path, target: Path, change) -> Path:
    """Write the archive with every entry passed through `change(name, content)`."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = change(name, old.read(name))
            if content is not None:
                new.writestr(name, content)
    return target


def _target(name, content):
    return content.replace(b'"torch.ops.aten.relu.default"', b'"torch.os.system"')


def _expression(name, content):
    if not name.endswith("models/model.json"):
        return content
    text = content.decode()
    assert '"as_int": 32' in text
    evil = {"as_expr": {"expr_str": "__import__('pathlib').Path('trapped').touch()", "hint": None}}
    return text.replace('{"as_int": 32}', json.dumps(evil), 1).encode()


def _pickled(name, content):
    import io

    if not name.endswith("model_weights_config.json"):
        if name.endswith("weights/weight_0"):
            out = io.BytesIO()
            torch.save(Trap(), out)
            return out.getvalue()
        return content
    config = json.loads(content)
    next(iter(config["config"].values()))["use_pickle"] = True
    return json.dumps(config).encode()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_target, r"calls `torch\.os\.system`, which is no operator"),
        (_expression, "has a size in .* that is no plain arithmetic"),
        (_pickled, "keeps Python objects in"),
    ],
)
def test_a_program_that_would_run_code_when_it_is_opened_is_refused_before(nets, tmp_path, change, message):
    torch.export.save(torch.export.export(network(nets), (torch.zeros(1, 3, 32, 32),)), "p.pt2")

    with pytest.raises(ConversionError, match=message):
        torch_program.load(_changed(Path("p.pt2"), Path("evil.pt2"), change))
    assert not Path("trapped").exists()


def test_a_program_with_native_code_or_cut_short_is_refused(nets, tmp_path):
    torch.export.save(torch.export.export(network(nets), (torch.zeros(1, 3, 32, 32),)), "p.pt2")
    with zipfile.ZipFile("p.pt2", "a") as archive:
        archive.writestr("p/data/aotinductor/model/kernel.so", b"\x7fELF")

    with pytest.raises(ConversionError, match="holds native code"):
        torch_program.load(Path("p.pt2"))
    Path("cut.pt2").write_bytes(Path("p.pt2").read_bytes()[:2000])
    with pytest.raises(ConversionError, match="`cut.pt2` cannot be read as an exported program"):
        torch_program.load(Path("cut.pt2"))


def test_real_weights_fit_their_network_and_another_network_is_told_apart(testdata):
    state, _ = torch_weights.read_state(testdata / "models/mtcnn_pnet.pt")
    conv = torch.nn.Module()
    conv.conv1 = torch.nn.Conv2d(3, 10, 3)

    assert sniff(testdata / "models/mtcnn_pnet.pt") == sniff(testdata / "models/fastestdet_280e.pth") == "torch"
    assert state["conv1.weight"].shape == (10, 3, 3, 3)
    with pytest.raises(ConversionError, match=r"do not fit `a:b`: 11 unexpected \(`prelu1.weight`"):
        torch_weights.fit(conv, state, "mtcnn_pnet.pt", "a:b")
