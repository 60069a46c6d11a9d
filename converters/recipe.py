"""A recipe: how to convert one model; a TOML file has the same keys as the flags of `edge convert`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from edge_sdk.config import parse, read_toml
from edge_sdk.errors import UsageError

Task = Literal["classification", "detection", "segmentation", "keypoints", "embedding", "regression"]
_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_LISTS = ("profile", "precision", "runtime", "backend", "mean", "std")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What to convert for, with what data, and within which limits.

    `factory` (package.module:function) builds a PyTorch network whose weights are `model`; without a model it loads its
    own. `opset` is the ONNX that PyTorch writes, `signature` one of a SavedModel's. `mean` and `std` are in pixel units
    (0 to 255). `max_drop` bounds the loss of the task metric, `min_metric` the metric itself. `budget_s` is wall time
    after which no new candidate is begun. `skip_classes` leading classes of the model stand for nothing that is
    labelled (1 for a background class first). `on` is the device (ssh://host) that verifies and times the builds.
    """

    model: Path | None = None
    factory: str | None = None
    signature: str | None = None
    opset: int | None = field(default=None, metadata={"min": 7, "max": 30})
    profile: tuple[str, ...] = ()
    calibration: Path | None = None
    golden: Path | None = None
    task: Task | None = None
    max_drop: float = field(default=0.01, metadata={"min": 0.0, "max": 1.0})
    min_metric: float | None = field(default=None, metadata={"min": 0.0, "max": 1.0})
    precision: tuple[Literal["fp32", "fp16", "int8", "dynamic", "int16x8"], ...] = ()
    runtime: tuple[str, ...] = ()
    backend: tuple[str, ...] = ()
    budget_s: float | None = field(default=None, metadata={"min": 0.0})
    out: Path = Path()
    name: str | None = None
    version: str = "1"
    decoder: str | None = None
    decoder_params: dict[str, Any] = field(default_factory=dict)
    resize: str | None = None
    color: Literal["bgr", "rgb", "gray"] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    layout: Literal["NCHW", "NHWC"] | None = None
    size: str | None = None
    labels: Path | None = None
    skip_classes: int = field(default=0, metadata={"min": 0})
    licences: dict[str, str] = field(default_factory=dict)
    base: Path | None = None
    prefer: Literal["throughput", "latency"] = "throughput"
    on: str | None = None
    cache: Path | None = None
    use_cache: bool = True
    cache_mb: float = field(default=2048.0, metadata={"min": 1.0})
    report: Path | None = None
    reference: str | None = None
    make_environments: bool = False
    job_limit_s: float = field(default=900.0, metadata={"min": 1.0})
    memory_mb: int = field(default=8192, metadata={"min": 256})


KEYS = frozenset(f.name for f in fields(Recipe)) | {"weights"}
"""Keys of a recipe; a flag of `edge convert` has the key of its name."""


def from_flags(flags: Mapping[str, Any], recipe_file: Path | None) -> Recipe:
    """Return the recipe file's values with the flags that were given on top.

    Paths in the file are relative to the file.

    Raises:
        ConfigError: the file has wrong keys; all of them are listed.
        UsageError: mean or std are not in pixel units.
    """
    data: dict[str, Any] = {}
    where = "the arguments"
    if recipe_file is not None:
        data = read_toml(recipe_file)
        where = str(recipe_file)
        for key in ("model", "weights", "calibration", "golden", "labels", "out", "base", "cache", "report"):
            value = data.get(key)
            named = (key == "model" and is_factory(str(value))) or (key == "weights" and value == "none")
            if isinstance(value, str) and not named:
                data[key] = str(recipe_file.parent / value)
    for key in _LISTS:
        if key in data and isinstance(data[key], (str, int, float)):
            data[key] = [data[key]]
    data.update({k: v for k, v in flags.items() if v is not None})
    _split_model(data)
    recipe = parse(data, Recipe, where=where)
    _check_units(recipe)
    return recipe


def is_factory(model: str) -> bool:
    """Return whether `model` is `package.module:function` and no file."""
    return _FACTORY.fullmatch(model) is not None and not Path(model).exists()


def _split_model(data: dict[str, Any]) -> None:
    """Put a factory given as MODEL and its weights under their own keys: `factory`, and `model` for the weights.

    Raises:
        UsageError: two models or two factories are given, or a factory without weights.
    """
    model, weights, factory = data.get("model"), data.pop("weights", None), data.get("factory")
    if isinstance(model, str) and is_factory(model):
        if factory is not None:
            raise UsageError(f"two factories are given, `{model}` and `{factory}`", hint="give one of them")
        data["factory"] = factory = data.pop("model")
        model = None
    if weights is not None and (factory is None or model is not None):
        raise UsageError(
            f"--weights {weights} needs a factory as MODEL",
            hint="edge convert package.module:function --weights W.pth, or edge convert W.pth --factory …",
        )
    if factory is not None and model is None:
        if weights is None:
            raise UsageError(
                f"`{factory}` has no weights",
                hint="--weights W.pth; --weights none when the function loads them itself",
            )
        if weights != "none":
            data["model"] = weights


def _check_units(recipe: Recipe) -> None:
    if recipe.std is not None and any(s == 0 for s in recipe.std):
        raise UsageError("--std has a zero", hint="the input becomes (pixels - mean) / std")
    if recipe.std is not None and all(abs(s) < 1 for s in recipe.std):
        scaled = ",".join(f"{s * 255:g}" for s in recipe.std)
        raise UsageError(
            f"--std {','.join(f'{s:g}' for s in recipe.std)} is not in pixel units (0 to 255)",
            hint=f"multiply mean and std by 255: --std {scaled}",
        )


def numbers(text: str) -> tuple[float, ...]:
    """Return the numbers of `a` or `a,b,c`.

    Raises:
        ValueError: it has another form.
    """
    return tuple(float(part) for part in text.split(","))


def parse_resize(text: str) -> dict[str, Any]:
    """Return the manifest's `resize` of `stretch`, `crop` or `letterbox[:center|topleft][:PAD]`.

    Raises:
        UsageError: it has another form.
    """
    words = text.split(":")
    out: dict[str, Any] = {"mode": words[0]}
    for word in words[1:]:
        if word in ("center", "topleft"):
            out["align"] = word
        elif word.isdigit() and int(word) <= 255:
            out["pad"] = int(word)
        else:
            out["mode"] = ""
    if out["mode"] not in ("stretch", "crop", "letterbox") or (len(words) > 1 and words[0] != "letterbox"):
        raise UsageError(
            f"--resize `{text}` is not known", hint="use stretch, crop, letterbox:center:114 or letterbox:topleft:0"
        )
    return out


def parse_size(text: str) -> tuple[int, int]:
    """Return (width, height) of `WxH`.

    Raises:
        UsageError: it has another form.
    """
    width, _, height = text.lower().partition("x")
    if not (width.isdigit() and height.isdigit() and 0 < int(width) <= 8192 and 0 < int(height) <= 8192):
        raise UsageError(f"--size `{text}` is not WIDTHxHEIGHT", hint="for example --size 320x240")
    return int(width), int(height)
