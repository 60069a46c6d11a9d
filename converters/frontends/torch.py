"""PyTorch in: the user's factory and its weights, or an exported program; out as exported program and ONNX."""

from __future__ import annotations

import hashlib
import io
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import torch
from onnx import helper

from converters import user_code
from converters.frontends import onnx as onnx_frontend
from converters.frontends import parity, torch_program, torch_weights
from converters.frontends.base import fix_sizes, one_image
from edge_sdk.errors import ConversionError, UsageError

OPSET = 18
"""What the exporter writes by itself; an older one comes from the tracing exporter."""


def inspect(path: str, work: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `Source` of a PyTorch model as JSON and write its forms `torch` and `onnx` into `work`.

    Args:
        path: weights or an exported program; empty when the factory loads its weights itself.
        options: `factory` (package.module:function), `size` (width, height), `layout`, `color`, `opset`.

    Raises:
        UsageError: a flag is missing (factory, size), or the factory cannot be found.
        ConversionError: the weights do not fit or hold more than weights, the model cannot be exported, or the export
            answers differently.
    """
    name, factory = Path(path).name, options.get("factory")
    if path and torch_program.is_program(_entries(Path(path))):
        if factory:
            raise UsageError(f"`{name}` is an exported program, it needs no factory", hint="leave out --factory")
        module, value, because = _program(Path(path), options)
        label = name
    else:
        module, value, because = _built(Path(path) if path else None, factory, options)
        label = str(factory)
    traced = _Traced(module=module, value=value, label=label)
    program, absent = traced.export()
    model = traced.onnx(program, options.get("opset"))
    return _source(path, work, options, traced=traced, program=program, model=model, because=because, absent=absent)


def _source(
    path: str,
    work: Path,
    options: Mapping[str, Any],
    *,
    traced: _Traced,
    program: Any,
    model: Any,
    because: tuple[str, ...],
    absent: dict[str, str],
) -> dict[str, Any]:
    fixed, source = onnx_frontend.fixed(traced.label, model.SerializeToString(), options)
    names = [o.name for o in source.outputs]
    found = parity.compare(source.input, source.outputs, traced.run(names), parity.onnx_run(fixed, names), rounds=False)
    line = parity.require(found, "PyTorch to ONNX", "try the other exporter: --opset 17 (tracing) or --opset 18")
    forms = {}
    if program is not None:
        forms["torch"] = str(work / "source.pt2")
        torch.export.save(program, forms["torch"])
    source = replace(
        source,
        path=path or traced.label.replace(":", "."),
        format="torch",
        sha256=hashlib.sha256(Path(path).read_bytes() if path else _weights(traced.module)).hexdigest(),
        because=(*because, f"exported to ONNX opset {source.opset}", line),
        forms=forms,
        absent=absent,
    )
    return onnx_frontend.write(fixed, source, work).to_json()


def _entries(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except zipfile.BadZipFile:
        return []


def _weights(module: Any) -> bytes:
    out = io.BytesIO()
    for key, tensor in sorted(module.state_dict().items()):
        out.write(key.encode() + tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return out.getvalue()


def _program(path: Path, options: Mapping[str, Any]) -> tuple[Any, Any, tuple[str, ...]]:
    """Return the program's module, an input for it, and what was recognised."""
    loaded = torch_program.load(path)
    named = set(loaded.graph_signature.user_inputs)
    inputs = [n for n in loaded.graph.nodes if n.op == "placeholder" and n.name in named]
    shapes = [list(n.meta["val"].shape) for n in inputs if isinstance(n.meta.get("val"), torch.Tensor)]
    if len(inputs) != 1 or len(shapes) != 1 or len(shapes[0]) != 4:
        raise one_image(", ".join(str([str(d) for d in s]) for s in shapes))
    named_sizes = [d if isinstance(d, int) else str(d) for d in shapes[0]]
    sizes = fix_sizes(inputs[0].name, named_sizes, options.get("layout"), options.get("size"))
    value = torch.zeros(sizes, dtype=inputs[0].meta["val"].dtype)
    return loaded.module(check_guards=False), value, (f"input {list(sizes)} of the exported program",)


def _built(path: Path | None, factory: str | None, options: Mapping[str, Any]) -> tuple[Any, Any, tuple[str, ...]]:
    if path is not None and torch_weights.is_torchscript(path):
        raise torch_weights.torchscript(path)
    if factory is None:
        assert path is not None
        count = len(torch_weights.read_state(path)[0])
        raise UsageError(
            f"`{path.name}` holds {count} tensors and no network",
            hint="name the function that builds it: --factory package.module:function, found from this folder or "
            "PYTHONPATH",
        )
    if options.get("size") is None:
        raise UsageError(
            "a PyTorch model does not tell the size of its input",
            hint="say the size that the device will use: --size WIDTHxHEIGHT",
        )
    because: tuple[str, ...] = ()
    state: torch_weights.State = {}
    if path is not None:
        state, because = torch_weights.read_state(path)
    module = _call(factory)
    if path is not None:
        line = torch_weights.fit(module, state, path.name, factory)
        because = (*because, line) if line else because
    module = module.cpu().float().eval()
    value, line = _example(module, options)
    return module, value, (*because, line)


def _call(factory: str) -> Any:
    """Import and call the user's function.

    Raises:
        UsageError: it cannot be imported, is absent, or cannot be called.
        ConversionError: it fails, or returns no module.
    """
    found = user_code.load(factory, "--factory")
    try:
        built = found()
    except BaseException as error:
        raise ConversionError(
            f"the factory `{factory}` failed: {user_code.said(error)}", hint="it is called without arguments"
        ) from None
    if not isinstance(built, torch.nn.Module):
        raise ConversionError(
            f"the factory `{factory}` returned a {type(built).__name__}, expected a torch.nn.Module",
            hint="return the network itself, not its weights or a trainer",
        )
    return built


def _example(module: Any, options: Mapping[str, Any]) -> tuple[Any, str]:
    """Return an input for the network: the flags' size and the channels that its first convolution takes."""
    width, height = options["size"]
    first = next((m for m in module.modules() if isinstance(m, torch.nn.Conv2d)), None)
    channels = first.in_channels if first is not None and first.in_channels in (1, 3) else 3
    if options.get("color") is not None:
        channels = 1 if options["color"] == "gray" else 3
    nhwc = options.get("layout") == "NHWC"
    shape = (1, height, width, channels) if nhwc else (1, channels, height, width)
    return torch.zeros(shape), f"input {list(shape)}: --size, and {channels} channels of the first convolution"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Traced:
    """The network with an input it takes; `label` names it for people."""

    module: Any
    value: Any
    label: str

    def run(self, names: list[str]) -> Callable[[Any], dict[str, Any]]:
        """Return a function from an input to the outputs by the names that the ONNX file gives them, in order."""

        def run(value: Any) -> dict[str, Any]:
            with torch.no_grad():
                tensors = _tensors(self.module(torch.from_numpy(np.array(value))))
            if len(tensors) != len(names):
                raise ConversionError(f"`{self.label}` gives {len(tensors)} tensors, its export {len(names)}")
            return {name: t.numpy() for name, t in zip(names, tensors, strict=True)}

        return run

    def export(self) -> tuple[Any, dict[str, str]]:
        """Return the exported program; or None and why there is none, when only tracing may work.

        Raises:
            ConversionError: the network does not take the input.
        """
        try:
            with torch.no_grad():
                self.module(self.value)
        except Exception as error:
            raise ConversionError(
                f"`{self.label}` fails on an input {list(self.value.shape)}: {user_code.said(error)}",
                hint="check --size, --layout and --color gray",
            ) from None
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                return torch.export.export(self.module, (self.value,)), {}
        except Exception as error:
            return None, {"torch": f"torch.export cannot follow the code: {user_code.said(error)}"}

    def onnx(self, program: Any, opset: int | None) -> Any:
        """Return the ONNX model of the program; without one, or below opset 18, of a trace.

        Raises:
            ConversionError: the exporter fails, or writes another opset than was asked for.
        """
        wanted = opset or OPSET
        out = io.BytesIO()
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                if program is not None and wanted >= OPSET:
                    exported = torch.onnx.export(
                        program, (), dynamo=True, opset_version=wanted, external_data=False, verbose=False
                    )
                    model = exported.model_proto
                else:
                    torch.onnx.export(
                        self.module,
                        (self.value,),
                        out,
                        dynamo=False,
                        training=torch.onnx.TrainingMode.PRESERVE,  # evaluating already; a program cannot be told so
                        opset_version=min(wanted, OPSET) if opset is None else wanted,
                        input_names=["image"],
                    )
                    model = onnx.load_from_string(out.getvalue())
        except Exception as error:
            raise ConversionError(
                f"`{self.label}` cannot be exported to ONNX opset {wanted}: {user_code.said(error)}",
                hint="try --opset 17 (tracing) or --opset 18; -v shows what the exporter said",
            ) from None
        onnx_frontend.check_opset(model, opset)
        return _plain(model)


def _tensors(result: Any) -> list[Any]:
    from torch.utils._pytree import tree_leaves

    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]


def _plain(model: Any) -> Any:
    """Return the model without stack traces and paths, which would differ from machine to machine."""
    for part in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer):
        if hasattr(part, "metadata_props"):
            part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for value in (*model.graph.input, *model.graph.output):
        value.ClearField("metadata_props")
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    used = {n.domain for n in model.graph.node} | {""}
    kept = [o for o in model.opset_import if o.domain in used]
    model.ClearField("opset_import")
    model.opset_import.extend(kept or [helper.make_opsetid("", OPSET)])
    return model
