"""ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import edge_sdk.runtimes.no_analytics  # noqa: F401  (before onnxruntime)

# isort: split
import numpy as np
import onnxruntime as ort

from edge_sdk.errors import ArtifactError, BackendError
from edge_sdk.runtimes.base import Tensor, Tensors, TensorSpec, check_model_file, closed, first_line, read_options

_UNREADABLE = ("InvalidProtobuf", "InvalidGraph", "NoSuchFile", "NoModel", "InvalidArgument")
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(int16)": "int16",
    "tensor(uint16)": "uint16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class OrtOptions:
    """Options of `onnxruntime`.

    `provider` is an execution provider, by ORT's name or its short form (`cpu`, `cuda`, `tensorrt`); `spin` lets idle
    threads burn CPU for latency; `config` holds session configuration entries by ORT's own keys.
    """

    threads: int = field(default=1, metadata={"min": 1, "max": 256})
    provider: str = "CPUExecutionProvider"
    provider_options: dict[str, Any] = field(default_factory=dict)
    graph_optimization: Literal["all", "extended", "basic", "none"] = "all"
    spin: bool = False
    config: dict[str, str] = field(default_factory=dict)


class OrtRuntime:
    """A model in one ONNX Runtime session of `threads` threads that do not spin."""

    name: ClassVar[str] = "onnxruntime"
    keeps_outputs: ClassVar[bool] = True

    def __init__(self, model: Path, options: Mapping[str, Any]) -> None:
        chosen = read_options(options, OrtOptions, self.name)
        check_model_file(model, self.name)
        ort.disable_telemetry_events()  # nothing that runs a customer's model reports to anybody
        provider = _provider(chosen.provider)
        try:
            session = ort.InferenceSession(
                str(model), _session_options(chosen), providers=[(provider, chosen.provider_options)]
            )
        except Exception as error:
            raise _load_error(model, error) from None
        if session.get_providers()[0] != provider:
            raise BackendError(
                f"onnxruntime could not use {provider}, it fell back to {session.get_providers()[0]}",
                hint="check the driver, or name another provider in the profile",
            )
        self.inputs = tuple(_spec(i) for i in session.get_inputs())
        self.outputs = tuple(_spec(o) for o in session.get_outputs())
        self._session: Any = session
        self._names = [o.name for o in self.outputs]

    def infer(self, feeds: Tensors) -> dict[str, Tensor]:
        if self._session is None:
            raise closed(self.name)
        try:
            values = self._session.run(self._names, dict(feeds))
        except Exception as error:
            raise BackendError(
                f"onnxruntime failed: {first_line(error)}", hint="compare the feeds with `edge inspect`"
            ) from None
        return {name: np.asarray(value) for name, value in zip(self._names, values, strict=True)}

    def close(self) -> None:
        """Drop the session; `infer` must not be called after."""
        self._session = None


def _session_options(chosen: OrtOptions) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = chosen.threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4
    options.enable_mem_pattern = False  # 4 MB less for YOLOX-nano, and no slower: sizes never change here
    options.graph_optimization_level = {
        "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
        "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
        "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
        "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    }[chosen.graph_optimization]
    spin = "1" if chosen.spin else "0"
    options.add_session_config_entry("session.intra_op.allow_spinning", spin)
    options.add_session_config_entry("session.inter_op.allow_spinning", spin)
    for key, value in chosen.config.items():
        options.add_session_config_entry(key, value)
    return options


def _provider(name: str) -> str:
    available: list[str] = ort.get_available_providers()
    for known in available:
        if name.lower() in (known.lower(), known.lower().removesuffix("executionprovider")):
            return known
    raise BackendError(
        f"this onnxruntime has no provider `{name}`, it has {', '.join(available)}",
        hint="install the onnxruntime build for this accelerator, or name another provider in the profile",
    )


def _spec(node: Any) -> TensorSpec:
    shape = tuple(d if isinstance(d, int) else None for d in node.shape)
    return TensorSpec(name=node.name, shape=shape, dtype=_DTYPES.get(node.type, node.type))


def _load_error(model: Path, error: Exception) -> ArtifactError | BackendError:
    detail = first_line(error)
    if type(error).__name__ in _UNREADABLE:
        return ArtifactError(
            f"`{model.name}` is not a model that onnxruntime can read: {detail}",
            hint="the file is damaged or no ONNX model: export or copy it again",
        )
    return BackendError(
        f"onnxruntime {ort.__version__} cannot run `{model.name}`: {detail}",
        hint="the model needs an operator, opset or provider that this build has not",
    )
