"""TensorFlow SavedModel in: one signature that takes one image."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from converters.frontends import onnx as onnx_frontend
from converters.frontends import tf_bridge
from converters.frontends.base import fix_sizes, nan_weights, one_image
from edge_sdk.errors import ConversionError, UsageError

# isort: split
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

DEFAULT = "serving_default"
OUTSIDE = frozenset(
    {"PyFunc", "PyFuncStateless", "EagerPyFunc", "ReadFile", "WriteFile", "MatchingFiles", "ImmutableConst"}
    | {"LookupTableExport", "TextLineDataset", "FixedLengthRecordDataset", "RpcCall"}
)
"""Operations that reach files or Python from inside a graph."""


def inspect(path: str, work: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `Source` of a SavedModel as JSON; write its forms `savedmodel` and `onnx` into `work`.

    Args:
        options: `signature`, `size` (width, height), `layout`, `opset`.

    Raises:
        ConversionError: the folder is damaged or incomplete, the graph reaches outside, or has no single image input.
        UsageError: a signature must be chosen, or the size of the input is open.
    """
    folder = Path(path)
    _check_operations(folder)
    try:
        loaded = tf.saved_model.load(str(folder))
    except Exception as error:
        raise _damaged(folder, error) from None
    name, signature = _signature(folder.name, dict(loaded.signatures), options.get("signature"))
    for variable in signature.variables:
        values = np.asarray(variable) if variable.dtype.is_floating else np.zeros(0)
        if np.isnan(values).any():
            raise nan_weights(folder.name, variable.name, int(np.isnan(values).sum()))
    given = dict(signature.structured_input_signature[1])
    if len(given) != 1 or next(iter(given.values())).shape.rank != 4:
        raise one_image(", ".join(f"{k} {v.shape}" for k, v in given.items()))
    key, spec = next(iter(given.items()))
    shape = fix_sizes(key, spec.shape.as_list(), options.get("layout"), options.get("size"))
    network = tf_bridge.Network(
        name=folder.name,
        input=key,
        shape=shape,
        dtype=spec.dtype,
        outputs=tuple(signature.structured_outputs),
        call=lambda image: signature(**{key: image}),
        tracked=loaded,
    )
    fixed, source = tf_bridge.convert(network, path, work, options)
    source = replace(
        source,
        format="savedmodel",
        sha256=_sha256(folder),
        because=(f"signature `{name}` of {', '.join(f'`{k}`' for k in loaded.signatures)}", *source.because),
    )
    return onnx_frontend.write(fixed, source, work).to_json()


def _damaged(folder: Path, error: Exception) -> ConversionError:
    return ConversionError(
        f"`{folder.name}` cannot be read as a SavedModel: {tf_bridge.said(error)}",
        hint="copy the whole folder again: saved_model.pb and variables/",
    )


def _check_operations(folder: Path) -> None:
    saved = saved_model_pb2.SavedModel()
    try:
        saved.ParseFromString((folder / "saved_model.pb").read_bytes())
    except Exception as error:
        raise _damaged(folder, error) from None
    for graph in saved.meta_graphs:
        nodes = [*graph.graph_def.node, *(n for f in graph.graph_def.library.function for n in f.node_def)]
        bad = next((n for n in nodes if n.op in OUTSIDE), None)
        if bad is not None:
            raise ConversionError(
                f"`{folder.name}` has the operation `{bad.op}` (`{bad.name}`), which reaches outside the graph",
                hint="export the network alone, without reading files or calling Python",
            )


def _signature(name: str, found: dict[str, Any], asked: str | None) -> tuple[str, Any]:
    if not found:
        raise ConversionError(
            f"`{name}` has no signature, so its input cannot be known",
            hint="save it with one: tf.saved_model.save(model, folder, signatures=model.call)",
        )
    if asked is not None and asked not in found:
        raise UsageError(f"`{name}` has no signature `{asked}`", hint=f"it has {', '.join(found)}")
    if asked is None and DEFAULT not in found and len(found) > 1:
        raise UsageError(
            f"`{name}` has the signatures {', '.join(found)}", hint=f"choose one: --signature {next(iter(found))}"
        )
    chosen = asked or (DEFAULT if DEFAULT in found else next(iter(found)))
    return chosen, found[chosen]


def _sha256(folder: Path) -> str:
    """Return a hash over names and contents of all files, whatever order the folder lists them in."""
    total = hashlib.sha256()
    for file in sorted(f for f in folder.rglob("*") if f.is_file()):
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        total.update(f"{file.relative_to(folder).as_posix()} {content}\n".encode())
    return total.hexdigest()
