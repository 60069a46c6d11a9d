"""LiteRT, with tflite-runtime as its fallback on old boards."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from edge_sdk.errors import ArtifactError, BackendError
from edge_sdk.runtimes.base import Tensor, Tensors, TensorSpec, check_model_file, closed, first_line, read_options

try:
    from ai_edge_litert import interpreter as litert
except ImportError:
    # Same interface, Python 3.7 to 3.11, numpy 1.x: what boards without ai-edge-litert wheels have.
    import tflite_runtime.interpreter as litert


@dataclass(frozen=True, slots=True, kw_only=True)
class LiteRtOptions:
    """Options of `litert`.

    `provider` is `cpu` or the path of a delegate's shared library, `delegate_options` go to that delegate; `xnnpack`
    false runs the built-in kernels.
    """

    threads: int = field(default=1, metadata={"min": 1, "max": 256})
    provider: str = "cpu"
    delegate_options: dict[str, Any] = field(default_factory=dict)
    xnnpack: bool = True


class LiteRtRuntime:
    """A model in one interpreter; integer inputs and outputs stay integers, their scales stand in the specs."""

    name: ClassVar[str] = "litert"
    keeps_outputs: ClassVar[bool] = True

    def __init__(self, model: Path, options: Mapping[str, Any]) -> None:
        chosen = read_options(options, LiteRtOptions, self.name)
        check_model_file(model, self.name)
        with model.open("rb") as file:
            if file.read(8)[4:] != b"TFL3":
                raise ArtifactError(
                    f"`{model.name}` is no LiteRT model: it has not the mark TFL3", hint="export or copy it again"
                )
        self._interpreter: Any = _open(model, chosen)
        self._inputs = {d["name"]: d["index"] for d in self._interpreter.get_input_details()}
        self._outputs = {d["name"]: d["index"] for d in self._interpreter.get_output_details()}
        self.inputs = tuple(_spec(d) for d in self._interpreter.get_input_details())
        if any(d["shape"].size == 0 for d in self._interpreter.get_output_details()):
            # Outputs of unknown shape get one with the first inference.
            self.infer({spec.name: np.zeros([d or 1 for d in spec.shape], spec.dtype) for spec in self.inputs})
        self.outputs = tuple(_spec(d) for d in self._interpreter.get_output_details())

    def infer(self, feeds: Tensors) -> dict[str, Tensor]:
        if self._interpreter is None:
            raise closed(self.name)
        if feeds.keys() != self._inputs.keys():
            raise BackendError(
                f"the model has inputs {', '.join(sorted(self._inputs))}, got {', '.join(sorted(feeds)) or 'none'}",
                hint="compare the feeds with `edge inspect`",
            )
        try:
            for name, value in feeds.items():
                self._interpreter.set_tensor(self._inputs[name], value)
            self._interpreter.invoke()
            return {name: self._interpreter.get_tensor(index) for name, index in self._outputs.items()}
        except (ValueError, RuntimeError) as error:
            raise BackendError(
                f"litert failed: {first_line(error)}", hint="compare the feeds with `edge inspect`"
            ) from None

    def close(self) -> None:
        """Drop the interpreter; `infer` must not be called after."""
        self._interpreter = None


def _open(model: Path, chosen: LiteRtOptions) -> Any:
    extra: dict[str, Any] = {}
    if chosen.provider.lower() != "cpu":
        try:
            # litert's own object trips over its destructor when the library is absent, so that is found out first.
            ctypes.CDLL(chosen.provider)
            extra["experimental_delegates"] = [litert.load_delegate(chosen.provider, chosen.delegate_options)]
        except (ValueError, OSError) as error:
            raise BackendError(
                f"litert cannot load the delegate `{chosen.provider}`: {first_line(error)}",
                hint="install the delegate's library, or name another provider in the profile",
            ) from None
    if not chosen.xnnpack:
        extra["experimental_op_resolver_type"] = litert.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    try:
        interpreter = litert.Interpreter(model_path=str(model), num_threads=chosen.threads, **extra)
    except (ValueError, RuntimeError) as error:
        raise ArtifactError(
            f"`{model.name}` is not a model that litert can read: {first_line(error)}",
            hint="the file is damaged: export or copy it again",
        ) from None
    try:
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise BackendError(
            f"litert cannot run `{model.name}`: {first_line(error)}",
            hint="the model needs an operator or an operator version that this build has not",
        ) from None
    return interpreter


def _spec(details: Mapping[str, Any]) -> TensorSpec:
    signature = details.get("shape_signature", details["shape"])
    source = signature if len(signature) == len(details["shape"]) else details["shape"]
    shape = tuple(int(d) if d >= 0 else None for d in source)
    quantization = details["quantization_parameters"]
    scales, zeros = quantization["scales"], quantization["zero_points"]
    kind = np.dtype(details["dtype"])
    scaled = len(scales) == 1 and kind.kind in "iu" and float(scales[0]) > 0
    return TensorSpec(
        name=details["name"],
        shape=shape,
        dtype=kind.name,
        scale=float(scales[0]) if scaled else None,
        zero=int(zeros[0]) if scaled else None,
    )
