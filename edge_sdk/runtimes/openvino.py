"""OpenVINO."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import edge_sdk.runtimes.no_analytics  # noqa: F401  (before openvino)

# isort: split
import openvino as ov

from edge_sdk.errors import ArtifactError, BackendError
from edge_sdk.runtimes.base import (
    Started,
    Tensor,
    Tensors,
    TensorSpec,
    check_model_file,
    closed,
    first_line,
    read_options,
)

_VERSION = ov.__version__.partition("-")[0]
_DTYPES = {"f32": "float32", "f16": "float16", "f64": "float64", "u8": "uint8", "i8": "int8", "i16": "int16"}
_DTYPES |= {"u16": "uint16", "i32": "int32", "i64": "int64", "boolean": "bool"}
_CORE = ov.Core()
"""The one core of this process, which is never let go.

The CPU plugin of each core gives its thread a stack for signals (sigaltstack). Of several cores, or of one that another
thread lets go, it leaves a stack behind that is gone, and the next signal ends the process (seen with OpenVINO 2026.4).
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenVinoOptions:
    """Options of `openvino`.

    `threads` is for one inference, `requests` how many inferences may run at once in one engine (its asynchronous mode,
    see `start`). `provider` is an OpenVINO device (`CPU`, `GPU`, `NPU`, `AUTO`); `precision` is what the CPU computes
    in, fp32 unless the profile allows less; `properties` holds further properties by OpenVINO's own keys.
    """

    threads: int = field(default=1, metadata={"min": 1, "max": 256})
    requests: int = field(default=1, metadata={"min": 1, "max": 64})
    provider: str = "CPU"
    hint: Literal["latency", "throughput"] = "latency"
    precision: Literal["f32", "f16", "bf16"] = "f32"
    cache_dir: str | None = None
    properties: dict[str, Any] = field(default_factory=dict)


class OpenVinoRuntime:
    """A model compiled for one device, `requests` streams and `threads` threads for each of them."""

    name: ClassVar[str] = "openvino"
    keeps_outputs: ClassVar[bool] = True

    def __init__(self, model: Path, options: Mapping[str, Any]) -> None:
        chosen = read_options(options, OpenVinoOptions, self.name)
        check_model_file(model, self.name)
        _check_format(model)
        device = _device(chosen.provider)
        try:
            network = _CORE.read_model(str(model))
        except Exception as error:
            raise _load_error(model, error) from None
        try:
            compiled = _CORE.compile_model(network, device, _properties(chosen, device))
            self._request: Any = compiled.create_infer_request()
            self._compiled: Any = compiled
        except Exception as error:
            raise BackendError(
                f"openvino {_VERSION} cannot run `{model.name}` on {device}: {_said(error)}",
                hint="the model needs an operator or an option that this device has not",
            ) from None
        self.inputs = tuple(_spec(port) for port in compiled.inputs)
        self.outputs = tuple(_spec(port) for port in compiled.outputs)
        self._aliases = [(index, name) for index, port in enumerate(compiled.outputs) for name in _names(port)]
        self._dtypes = {name: _spec(port).dtype for port in compiled.inputs for name in _names(port)}
        self.requests = chosen.requests
        self._idle: list[Any] = []
        self._under_way: list[_Started] = []

    def infer(self, feeds: Tensors) -> dict[str, Tensor]:
        self._check(feeds)
        try:
            values = list(self._request.infer(dict(feeds), share_inputs=True, share_outputs=False).values())
        except Exception as error:
            raise _failed(error) from None
        return {name: values[index] for index, name in self._aliases}

    def start(self, feeds: Tensors) -> Started:
        """Begin an inference; `requests` of them run at once, those begun after them wait their turn in OpenVINO.

        `feeds` must not change before the answer is there.

        Raises:
            BackendError: as `infer`; what fails later is raised by the answer.
        """
        self._check(feeds)
        request = self._idle.pop() if self._idle else self._compiled.create_infer_request()
        try:
            request.start_async(dict(feeds), share_inputs=True)
        except Exception as error:
            self._idle.append(request)
            raise _failed(error) from None
        started = _Started(self, request, feeds)
        self._under_way.append(started)
        return started

    def _answered(self, started: _Started, request: Any) -> dict[str, Tensor]:
        """Wait for one inference and copy its outputs, so that its request can be used again."""
        try:
            request.wait()
            values = [request.get_output_tensor(i).data.copy() for i in range(len(self.outputs))]
        except Exception as error:
            raise _failed(error) from None
        finally:
            self._under_way.remove(started)
            if self._request is not None:
                self._idle.append(request)
        return {name: values[index] for index, name in self._aliases}

    def _check(self, feeds: Tensors) -> None:
        if self._request is None:
            raise closed(self.name)
        # OpenVINO would cast another dtype and reuse the last value of an input that is left out.
        given = {name: value.dtype.name for name, value in feeds.items()}
        if len(given) != len(self.inputs) or any(self._dtypes.get(name) != dtype for name, dtype in given.items()):
            wanted = ", ".join(f"{spec.name} {spec.dtype}" for spec in self.inputs)
            found = ", ".join(f"{name} {dtype}" for name, dtype in given.items())
            raise BackendError(
                f"the model has inputs {wanted}, got {found or 'none'}", hint="compare the feeds with `edge inspect`"
            )

    def close(self) -> None:
        """Drop the compiled model once what was started has its answer, which can still be fetched."""
        for started in tuple(self._under_way):
            started.settle()
        self._request = self._compiled = None
        self._idle.clear()


class _Started:
    """An inference under way in a request of its own, and later its answer; two threads may ask for it."""

    def __init__(self, runtime: OpenVinoRuntime, request: Any, feeds: Tensors) -> None:
        self._runtime, self._request = runtime, request
        self._feeds: Tensors | None = feeds
        self._outputs: dict[str, Tensor] | None = None
        self._error: BackendError | None = None
        self._lock = threading.Lock()

    def result(self) -> dict[str, Tensor]:
        self.settle()
        if self._error is not None:
            raise self._error
        assert self._outputs is not None
        return self._outputs

    def settle(self) -> None:
        """Wait for the answer, whatever it is."""
        with self._lock:
            if self._feeds is None:
                return
            try:
                self._outputs = self._runtime._answered(self, self._request)
            except BackendError as error:
                self._error = error
            self._feeds = self._request = None


def _failed(error: Exception) -> BackendError:
    return BackendError(f"openvino failed: {_said(error)}", hint="compare the feeds with `edge inspect`")


def _properties(chosen: OpenVinoOptions, device: str) -> dict[str, Any]:
    properties: dict[str, Any] = {"PERFORMANCE_HINT": chosen.hint.upper()}
    if device.partition(".")[0] == "CPU":
        properties |= {
            "INFERENCE_NUM_THREADS": chosen.threads * chosen.requests,
            "NUM_STREAMS": chosen.requests,
            "INFERENCE_PRECISION_HINT": chosen.precision,
            "ENABLE_CPU_PINNING": False,
        }
    elif chosen.requests > 1:
        properties["PERFORMANCE_HINT_NUM_REQUESTS"] = chosen.requests
    if chosen.cache_dir is not None:
        properties["CACHE_DIR"] = chosen.cache_dir
    return properties | chosen.properties


def _device(provider: str) -> str:
    available = list(_CORE.available_devices)
    wanted = provider.upper()
    base = wanted.split(":")[0]
    if base in ("AUTO", "MULTI", "HETERO") or any(wanted == d or d.split(".")[0] == wanted for d in available):
        return wanted
    raise BackendError(
        f"this openvino has no device `{provider}`, it has {', '.join(available) or 'none'}",
        hint="install the device's driver, or name another provider in the profile",
    )


def _names(port: Any) -> list[str]:
    """Return every name of a port, the one the model's author gave first (the others are of nodes folded into it)."""
    node = port.get_node()
    friendly = node.get_friendly_name().partition("/sink_port_")[0]
    names = sorted(port.get_names(), key=lambda name: (name != friendly, name))
    return names or [friendly]


def _spec(port: Any) -> TensorSpec:
    shape = tuple(d.get_length() if d.is_static else None for d in port.get_partial_shape())
    kind = port.get_element_type().get_type_name()
    return TensorSpec(name=_names(port)[0], shape=shape, dtype=_DTYPES.get(kind, kind))


def _check_format(model: Path) -> None:
    """Refuse what is not an IR of version 10 or later, before OpenVINO tries every front end on it."""
    if model.suffix == ".onnx":
        return
    with model.open("rb") as file:
        head = file.read(4096)
    net = re.search(rb"<net\b[^>]*>", head)
    if model.suffix != ".xml" or net is None:
        raise ArtifactError(
            f"`{model.name}` is neither an OpenVINO IR (.xml) nor an ONNX model", hint="export or copy it again"
        )
    version = re.search(rb'\bversion="(\d+)"', net.group())
    if version is None or int(version.group(1)) < 10:
        found = version.group(1).decode() if version else "unknown"
        raise BackendError(
            f"`{model.name}` is an OpenVINO IR of version {found}, openvino {_VERSION} reads 10 and later",
            hint="convert the original model again",
        )


def _load_error(model: Path, error: Exception) -> ArtifactError | BackendError:
    detail = _said(error)
    if "OpConversionFailure" in str(error) or "NotImplemented" in str(error):
        return BackendError(
            f"openvino {_VERSION} cannot run `{model.name}`: {detail}",
            hint="the model needs an operator that openvino has not",
        )
    return ArtifactError(
        f"`{model.name}` is not a model that openvino can read: {detail}",
        hint="the file or its .bin is damaged or missing: export or copy both again",
    )


def _said(error: Exception) -> str:
    """Return OpenVINO's message without the places in its own source."""
    return first_line(ValueError(re.sub(r"(Exception from|Check '.*?' failed at) src/\S+:\s?", "", str(error))))
