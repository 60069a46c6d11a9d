"""SavedModel folders as frozen TensorFlow functions with a fixed input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_sdk.errors import ConversionError


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    """A function of one image whose weights are constants; `names` are all names of each output, in its order."""

    function: Any
    names: tuple[tuple[str, ...], ...]


def frozen(path: Path, shape: Sequence[int], dtype: str) -> Frozen:
    """Load the folder `path` for an input of `shape`.

    Raises:
        ConversionError: it cannot be loaded, or does not take one image of that shape.
    """
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    call, names, keep = _saved(path)
    image = tf.TensorSpec(list(shape), tf.dtypes.as_dtype(dtype), name="image")

    @tf.function(input_signature=[image])  # type: ignore[untyped-decorator]
    def answer(value: Any) -> Any:
        return {f"output_{k:03}": tensor for k, tensor in enumerate(call(value))}

    try:
        function = convert_variables_to_constants_v2(answer.get_concrete_function())
    except Exception as error:
        raise ConversionError(
            f"`{path.name}` does not take one image of {list(shape)}: {_line(error)}",
            hint="say its size with --size, or export the part that takes one image",
        ) from None
    del keep
    return Frozen(function=function, names=names)


def _saved(path: Path) -> tuple[Any, tuple[tuple[str, ...], ...], Any]:
    import tensorflow as tf

    try:
        model = tf.saved_model.load(str(path))
    except Exception as error:
        raise ConversionError(f"tensorflow cannot load `{path.name}`: {_line(error)}", hint="export it again") from None
    signatures = model.signatures
    if not signatures:
        raise ConversionError(
            f"`{path.name}` has no signature to call it by", hint="save it with `model.export(FOLDER)`"
        )
    signature = signatures["serving_default" if "serving_default" in signatures else sorted(signatures)[0]]
    given = list(signature.structured_input_signature[1])
    if len(given) != 1:
        raise ConversionError(f"`{path.name}` takes {len(given)} inputs ({', '.join(given)}), expected one image")
    keys = sorted(signature.structured_outputs)
    names = [(key, str(signature.structured_outputs[key].name)) for key in keys]

    def call(value: Any) -> list[Any]:
        found = signature(**{given[0]: value})
        return [found[key] for key in keys]

    return call, tuple(names), model


def _line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0][:200] if text else type(error).__name__
