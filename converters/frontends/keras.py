"""Keras in: .keras and .h5 files, without the Python code that some of them carry."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from converters.frontends import onnx as onnx_frontend
from converters.frontends import tf_bridge
from converters.frontends.base import fix_sizes, nan_weights, one_image
from edge_sdk.errors import BackendError, ConversionError, UsageError

# isort: split
import keras

_UNKNOWN = re.compile(r"Unknown \w+: ['\"]?([\w.>]+)|[Cc]ould not (?:locate|find) (?:class |object )?['\"]?([\w.>]+)")
_OWN = ("keras", "tf_keras", "builtins", "tensorflow.python.keras")


class _Depthwise(keras.layers.DepthwiseConv2D):  # type: ignore[misc]
    """The layer of files that TensorFlow 2.3 and older wrote, with an argument that it never had a meaning for."""

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        return keras.layers.DepthwiseConv2D(**{k: v for k, v in config.items() if k != "groups"})


def inspect(path: str, work: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `Source` of a Keras file as JSON; write its forms `keras`, `savedmodel` and `onnx` into `work`.

    Args:
        options: `size` (width, height), `layout`, `color`, `opset`.

    Raises:
        ConversionError: the file is damaged, holds weights only, NaN, Python code or several inputs.
        BackendError: it needs a class that the file does not hold.
        UsageError: the size of its input is open.
    """
    file = Path(path)
    config = _config(file)
    _check_config(file, config)
    model = _load(file, work)
    for weight in model.weights:
        values = np.asarray(weight)
        if values.dtype.kind == "f" and np.isnan(values).any():
            raise nan_weights(file.name, str(weight.path), int(np.isnan(values).sum()))
    network = _network(file.name, model, options)
    fixed, source = tf_bridge.convert(network, path, work, options)
    saved = work / "source.keras"
    model.save(str(saved))
    _forget_date(saved)
    source = replace(
        source,
        format="keras",
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        forms={"keras": str(saved), **source.forms},
    )
    return onnx_frontend.write(fixed, source, work).to_json()


def _config(file: Path) -> Any:
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                return json.loads(archive.read("config.json"))
        with h5py.File(file, "r") as found:
            text = found.attrs.get("model_config")
            groups = list(found.keys())
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise _damaged(file, error) from None
    if text is None:
        raise ConversionError(
            f"`{file.name}` holds weights ({', '.join(groups[:4])}) and no network",
            hint="save the whole model: model.save('model.keras')",
        )
    return json.loads(text)


def _damaged(file: Path, error: Exception) -> ConversionError:
    return ConversionError(
        f"`{file.name}` cannot be read as a Keras model: {tf_bridge.said(error)}",
        hint="the file is damaged or cut short: export or copy it again",
    )


def _check_config(file: Path, config: Any) -> None:
    """Refuse what Keras would import or run."""
    for part in _dicts(config):
        kind, module = str(part.get("class_name", "")), part.get("module")
        if kind in ("Lambda", "__lambda__"):
            inner = part.get("config")
            name = inner.get("name", "") if isinstance(inner, Mapping) else ""
            raise ConversionError(
                f"`{file.name}` has the Lambda layer `{name or kind}`, whose Python code would run when it is loaded",
                hint="where you trust it, export it with the code at hand: model.export('folder'), then edge convert "
                "folder",
            )
        if "class_name" in part and isinstance(module, str) and not module.split(".")[0].startswith(_OWN):
            raise _foreign(file, f"{module}.{kind}")


def _foreign(file: Path, name: str) -> BackendError:
    return BackendError(
        f"`{file.name}` needs the class `{name}`, which is not in the file",
        hint="export it where the class is known: model.export('folder'), then edge convert folder",
    )


def _dicts(value: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, Mapping):
        yield value
        for part in value.values():
            yield from _dicts(part)
    elif isinstance(value, list):
        for part in value:
            yield from _dicts(part)


def _load(file: Path, work: Path) -> Any:
    # Keras goes by the ending.
    copy = work / ("given.keras" if zipfile.is_zipfile(file) else "given.h5")
    shutil.copyfile(file, copy)
    try:
        return keras.saving.load_model(
            str(copy), compile=False, safe_mode=True, custom_objects={"DepthwiseConv2D": _Depthwise}
        )
    except Exception as error:
        text = str(error)
        lost = _UNKNOWN.search(text)
        if lost is not None:
            raise _foreign(file, lost.group(1) or lost.group(2)) from None
        raise _damaged(file, error) from None


def _forget_date(saved: Path) -> None:
    """Write the file again without the time at which it was made, so that equal models have equal files."""
    with zipfile.ZipFile(saved) as archive:
        entries = {name: archive.read(name) for name in sorted(archive.namelist())}
    about = json.loads(entries["metadata.json"])
    about.pop("date_saved", None)
    entries["metadata.json"] = json.dumps(about, sort_keys=True).encode()
    with zipfile.ZipFile(saved, "w") as archive:
        for name, content in entries.items():
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content)


def _network(name: str, model: Any, options: Mapping[str, Any]) -> tf_bridge.Network:
    inputs = list(getattr(model, "inputs", None) or [])
    if not inputs:
        if options.get("size") is None:
            raise UsageError(
                f"`{name}` does not tell the size of its input",
                hint="say the size that the device will use: --size WIDTHxHEIGHT",
            )
        channels = 1 if options.get("color") == "gray" else 3
        model.build((1, options["size"][1], options["size"][0], channels))
        inputs = list(getattr(model, "inputs", None) or [])
    if len(inputs) != 1 or len(inputs[0].shape) != 4:
        raise one_image(", ".join(f"{i.name} {list(i.shape)}" for i in inputs))
    shape = fix_sizes(inputs[0].name, tuple(inputs[0].shape), options.get("layout"), options.get("size"))
    names = _names(model)

    def call(image: Any) -> dict[str, Any]:
        result = model(image, training=False)
        found = list(result.values()) if isinstance(result, Mapping) else result
        found = found if isinstance(found, (list, tuple)) else [found]
        return dict(zip(names, found, strict=True))

    return tf_bridge.Network(
        name=name,
        input=str(inputs[0].name),
        shape=shape,
        dtype=inputs[0].dtype,
        outputs=names,
        call=call,
        tracked=[v.value for v in model.variables],
    )


def _names(model: Any) -> tuple[str, ...]:
    names = [str(n) for n in getattr(model, "output_names", None) or []] or ["output"]
    return tuple(n if names.count(n) == 1 else f"{n}_{k}" for k, n in enumerate(names))
