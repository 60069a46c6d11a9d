"""Open Inference Protocol v2 over HTTP, with the binary tensor extension (KServe and Triton specifications)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_sdk.schemas.manifest import InputSpec, Manifest
from edge_sdk.serving.exchange import Answer, HttpError

JSON_LENGTH = "inference-header-content-length"
_DATATYPES = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
}
_KINDS = {"b": "b", "u": "iu", "i": "iu", "f": "iuf"}
_WORDS = {"b": "true or false", "u": "whole numbers", "i": "whole numbers", "f": "numbers"}


def datatype(dtype: str) -> str:
    """Return the protocol's name of a numpy dtype name."""
    return _DATATYPES.get(dtype, dtype.upper())


def metadata(manifest: Manifest) -> dict[str, Any]:
    """Return the model metadata response."""
    return {
        "name": manifest.name,
        "versions": [manifest.version],
        "platform": manifest.runtime.name,
        "inputs": [_tensor(manifest.input)],
        "outputs": [_tensor(o) for o in manifest.outputs],
    }


def _tensor(spec: Any) -> dict[str, Any]:
    return {"name": spec.name, "datatype": datatype(spec.dtype), "shape": list(spec.shape)}


def parse_json(body: bytes) -> Any:
    """Return a JSON document; NaN and infinity, which JSON has not, are refused.

    Raises:
        HttpError: 400, it is none.
    """

    def constant(name: str) -> Any:
        raise HttpError(400, f"the body holds `{name}`, which is no JSON number")

    try:
        return json.loads(body, parse_constant=constant)
    except RecursionError:
        raise HttpError(400, "the JSON is nested too deeply") from None
    except ValueError as error:
        raise HttpError(400, f"the body is no JSON: {error}") from None


class InferRequest:
    """A read infer request: the input tensor, and which outputs are asked for, as JSON or binary.

    Raises:
        HttpError: 400, with what was expected and found.
    """

    def __init__(self, body: bytes, headers: Mapping[str, str], manifest: Manifest) -> None:
        if headers.get("content-encoding", "identity") not in ("identity", ""):
            raise HttpError(415, "compressed bodies are not read", hint="send it without Content-Encoding")
        head, blob = _split(body, headers.get(JSON_LENGTH))
        request = parse_json(head)
        if not isinstance(request, dict):
            raise HttpError(400, "an infer request is a JSON object")
        self.id = request.get("id")
        if self.id is not None and not isinstance(self.id, str):
            raise HttpError(400, "`id` must be a string")
        self.tensor = _input(request.get("inputs"), blob, manifest.input)
        self.outputs = _outputs(request, manifest)

    def answer(self, values: Mapping[str, NDArray[Any]], manifest: Manifest) -> Answer:
        """Return the response with `values`.

        Raises:
            HttpError: 422, an output that JSON cannot hold is asked for as JSON.
        """
        described, blobs = [], []
        for name, binary in self.outputs.items():
            value = np.ascontiguousarray(values[name])
            row: dict[str, Any] = {"name": name, "shape": list(value.shape), "datatype": datatype(str(value.dtype))}
            if binary:
                blobs.append(value.astype(value.dtype.newbyteorder("<"), copy=False).tobytes())
                row["parameters"] = {"binary_data_size": len(blobs[-1])}
            else:
                if value.dtype.kind == "f" and not np.isfinite(value).all():
                    raise HttpError(
                        422, f"output `{name}` holds NaN or infinity", kind="nonfinite", hint="ask for binary_data"
                    )
                row["data"] = value.ravel().tolist()
            described.append(row)
        head: dict[str, Any] = {"model_name": manifest.name, "model_version": manifest.version}
        if self.id is not None:
            head["id"] = self.id
        data = json.dumps(head | {"outputs": described}, separators=(",", ":"), allow_nan=False).encode()
        if not blobs:
            return Answer(body=data)
        return Answer(
            body=b"".join([data, *blobs]),
            content_type="application/octet-stream",
            headers={"Inference-Header-Content-Length": str(len(data))},
        )


def _split(body: bytes, length: str | None) -> tuple[bytes, bytes]:
    if length is None:
        return body, b""
    if not (length.isascii() and length.isdigit()) or int(length[:20]) > len(body):
        raise HttpError(400, f"Inference-Header-Content-Length is `{length[:40]}`, the body has {len(body)} bytes")
    return body[: int(length)], body[int(length) :]


def _input(inputs: Any, blob: bytes, spec: InputSpec) -> NDArray[Any]:
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise HttpError(400, f"`inputs` must be a list of one tensor, `{spec.name}`")
    tensor = inputs[0]
    if tensor.get("name") != spec.name:
        raise HttpError(400, f"the model's input is `{spec.name}`, found `{str(tensor.get('name'))[:80]}`")
    if tensor.get("datatype") != datatype(spec.dtype):
        found = str(tensor.get("datatype"))[:20]
        raise HttpError(400, f"input `{spec.name}` is {datatype(spec.dtype)}, found {found}")
    shape = tensor.get("shape")
    if shape != list(spec.shape) or any(isinstance(d, bool) for d in shape):
        raise HttpError(400, f"input `{spec.name}` has shape {list(spec.shape)}, found {str(shape)[:80]}")
    params = tensor.get("parameters")
    size = params.get("binary_data_size") if isinstance(params, dict) else None
    if size is not None:
        return _binary(size, blob, spec)
    if blob:
        raise HttpError(400, f"{len(blob)} bytes follow the JSON, no input has `binary_data_size`")
    if "data" not in tensor:
        raise HttpError(400, f"input `{spec.name}` has no `data`")
    return _json_tensor(tensor["data"], spec)


def _binary(size: Any, blob: bytes, spec: InputSpec) -> NDArray[Any]:
    dtype = np.dtype(spec.dtype)
    expected = math.prod(spec.shape) * dtype.itemsize
    if size != expected or len(blob) != expected:
        raise HttpError(
            400, f"input `{spec.name}` needs {expected} bytes, binary_data_size is {size}, found {len(blob)}"
        )
    value = np.frombuffer(blob, dtype.newbyteorder("<")).astype(dtype).reshape(spec.shape)
    _check_finite(value, spec.name)
    return value


def _json_tensor(data: Any, spec: InputSpec) -> NDArray[Any]:
    dtype = np.dtype(spec.dtype)
    try:
        raw = np.asarray(data)
    except (ValueError, OverflowError, RecursionError):
        raise HttpError(400, f"`data` of input `{spec.name}` has rows of different lengths") from None
    if raw.dtype.kind not in _KINDS[dtype.kind] or (raw.ndim > 1 and raw.shape != spec.shape):
        found = f"shape {list(raw.shape)}" if raw.ndim > 1 and raw.dtype.kind != "O" else "something else"
        raise HttpError(
            400,
            f"`data` of input `{spec.name}` must be {_WORDS[dtype.kind]} of shape {list(spec.shape)}, found {found}",
        )
    if raw.size != math.prod(spec.shape):
        raise HttpError(400, f"input `{spec.name}` has {math.prod(spec.shape)} values, found {raw.size}")
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if raw.min() < limits.min or raw.max() > limits.max:
            raise HttpError(400, f"input `{spec.name}` is {datatype(spec.dtype)}, {limits.min} to {limits.max}")
    with np.errstate(over="ignore"):
        value = raw.astype(dtype).reshape(spec.shape)
    _check_finite(value, spec.name)
    return value


def _check_finite(value: NDArray[Any], name: str) -> None:
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise HttpError(400, f"input `{name}` holds NaN or infinity")


def _outputs(request: Mapping[str, Any], manifest: Manifest) -> dict[str, bool]:
    """Return the outputs that are asked for, and whether each is to be binary."""
    known = [o.name for o in manifest.outputs]
    whole = _flag(request.get("parameters"), "binary_data_output", default=False)
    asked: Sequence[Any] | Any = request.get("outputs") or [{"name": name} for name in known]
    if not isinstance(asked, list) or not all(isinstance(o, dict) for o in asked):
        raise HttpError(400, "`outputs` must be a list of objects")
    found: dict[str, bool] = {}
    for output in asked:
        name = output.get("name")
        if name not in known:
            raise HttpError(400, f"the model has no output `{str(name)[:80]}`, it has {', '.join(known)}")
        params = output.get("parameters")
        if isinstance(params, dict) and "classification" in params:
            raise HttpError(400, "the classification extension is not served", hint="POST an image to /v1/predict")
        found[name] = _flag(params, "binary_data", default=whole)
    return found


def _flag(params: Any, key: str, *, default: bool) -> bool:
    value = params.get(key, default) if isinstance(params, dict) else default
    if not isinstance(value, bool):
        raise HttpError(400, f"`{key}` must be true or false")
    return value
