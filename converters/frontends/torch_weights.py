"""PyTorch weights: read without running code from the file, fitted to a module, every key that does not fit named."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from converters.frontends.base import nan_weights
from edge_sdk.errors import ConversionError, UsageError

WRAPPERS = ("state_dict", "model_state_dict", "model", "model_state", "net", "network", "weights", "params", "ema")
"""Keys under which training scripts keep the state dict, the plain one first."""
SHOWN = 3
State = dict[str, torch.Tensor]


def read_state(path: Path) -> tuple[State, tuple[str, ...]]:
    """Return the state dict of a .pth, .pt or .safetensors file, on the CPU, and lines on what was unwrapped.

    Raises:
        ConversionError: the file is damaged, holds Python objects, no tensors, or NaN.
        UsageError: it is a TorchScript archive or holds several state dicts that may be meant.
    """
    found = _safetensors(path) if path.suffix == ".safetensors" else _pickled(path)
    state, because = _unwrap(path, found)
    for name, tensor in state.items():
        if tensor.is_floating_point() and bool(torch.isnan(tensor).any()):
            raise nan_weights(path.name, name, int(torch.isnan(tensor).sum()))
    return state, because


def _safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(str(path), device="cpu")
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, error) from None


def _pickled(path: Path) -> Any:
    if is_torchscript(path):
        raise torchscript(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        text = str(error)
        unsafe = re.search(r"(?:GLOBAL|class|function) `?([\w.]+)`?(?: was not| is not|, which)", text)
        if "Weights only load failed" in text or "weights_only" in text:
            if unsafe is None and "Unsupported" not in text:
                raise _damaged(path, error) from None
            held = f"the Python object `{unsafe.group(1)}`" if unsafe else "Python objects"
            raise ConversionError(
                f"`{path.name}` holds {held}, not only weights; loading it would run code from the file",
                hint="where you trust it, save the weights alone: torch.save(model.state_dict(), 'weights.pth'), "
                "or as safetensors",
            ) from None
        raise _damaged(path, error) from None


def is_torchscript(path: Path) -> bool:
    """Return whether the file is a TorchScript archive (it carries code)."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(n.endswith("/constants.pkl") or "/code/" in n for n in archive.namelist())
    except zipfile.BadZipFile:
        return False


def torchscript(path: Path) -> UsageError:
    """Return the error for a TorchScript archive."""
    return UsageError(
        f"`{path.name}` is a TorchScript archive: it holds compiled code, no state dict",
        hint="export the eager model: torch.export.save(torch.export.export(model.eval(), (example,)), 'model.pt2'), "
        "or save its state dict and give --factory package.module:function",
    )


def _damaged(path: Path, error: Exception) -> ConversionError:
    line = " ".join(str(error).split())[:160]
    return ConversionError(
        f"`{path.name}` cannot be read as PyTorch weights: {type(error).__name__}: {line}",
        hint="the file is damaged or cut short: export or copy it again",
    )


def _unwrap(path: Path, found: Any) -> tuple[State, tuple[str, ...]]:
    because: list[str] = []
    for _ in range(3):
        if not isinstance(found, Mapping):
            raise ConversionError(
                f"`{path.name}` holds a {type(found).__name__}, expected a state dict (names to tensors)",
                hint="torch.save(model.state_dict(), 'weights.pth')",
            )
        tensors = {str(k): v for k, v in found.items() if isinstance(v, torch.Tensor)}
        inside = [k for k in WRAPPERS if isinstance(found.get(k), Mapping)]
        if not inside:
            break
        if "ema" in inside and len(inside) > 1:
            because.append(f"weights: `{inside[0]}` of `{path.name}`, not its moving average `ema`")
        else:
            because.append(f"weights: `{inside[0]}` of `{path.name}`")
        found = found[inside[0]]
    if not tensors:
        keys = ", ".join(f"`{k}`" for k in list(found)[:6]) or "nothing"
        raise ConversionError(
            f"`{path.name}` has no weights in it: it holds {keys}",
            hint="torch.save(model.state_dict(), 'weights.pth')",
        )
    return tensors, tuple(because)


def fit(module: torch.nn.Module, state: State, weights: str, factory: str) -> str | None:
    """Load the state into the module; return a line when a prefix such as `module.` had to go from every key.

    Raises:
        ConversionError: keys are missing, left over, or of another shape; the first of each are named.
    """
    wanted = module.state_dict()
    prefix = ""
    while not set(state) & set(wanted) and (head := _common_head(state)):
        state = {k[len(head) :]: v for k, v in state.items()}
        prefix += head
    optional = {k for k in wanted if k.endswith("num_batches_tracked")}
    missing = [k for k in wanted if k not in state and k not in optional]
    extra = [k for k in state if k not in wanted]
    shapes = [
        f"`{k}` ({list(state[k].shape)} in the file, {list(wanted[k].shape)} in the model)"
        for k in wanted
        if k in state and state[k].shape != wanted[k].shape
    ]
    if missing or extra or shapes:
        parts = [
            _few(f"{len(missing)} missing", [f"`{k}`" for k in missing]),
            _few(f"{len(extra)} unexpected", [f"`{k}`" for k in extra]),
            _few(f"{len(shapes)} of another shape", shapes),
        ]
        raise ConversionError(
            f"the weights of `{weights}` do not fit `{factory}`: " + "; ".join(p for p in parts if p),
            hint="the factory must build the network that was trained, with its number of classes",
        )
    module.load_state_dict(state, strict=False)
    return f"weights: every key of `{weights}` begins with `{prefix}`, which was left out" if prefix else None


def _few(title: str, names: list[str]) -> str:
    more = ", …" if len(names) > SHOWN else ""
    return f"{title} ({', '.join(names[:SHOWN])}{more})" if names else ""


def _common_head(state: Mapping[str, Any]) -> str:
    heads = {k.partition(".")[0] for k in state if "." in k}
    whole = all("." in k for k in state)
    return f"{heads.pop()}." if whole and len(heads) == 1 else ""
