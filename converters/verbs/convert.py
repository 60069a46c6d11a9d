"""`edge convert MODEL --profile P`: the fastest build that keeps accuracy, as one artifact per profile."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from edge_sdk.output import Output, table

_TASKS = ("classification", "detection", "segmentation", "keypoints", "embedding", "regression")
_SHORT = 48
"""Letters of a reason that stands in the table itself."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "edge convert MODEL --profile P [--calibration DIR] [--golden DIR] [--out DIR] [more]"
    parser.epilog = (
        "Every flag has the key of its name in a recipe. Exit code 5: no build passed the guard or the limits, the "
        "message has the reason of each; 2: something must be said by a flag, which the message names; 6: the model "
        "cannot be converted, or a disk is full; 130: interrupted, the same command goes on from the cache. Of several "
        "profiles those that can have an artifact get it; when one has none, the code is what that one alone gives."
    )
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="a file: ONNX, PyTorch (.pt2, or weights with --factory), Keras, TFLite, OpenVINO .xml; a SavedModel "
        "folder; or package.module:function with --weights",
    )
    what = parser.add_argument_group("what for")
    what.add_argument(
        "--profile", action="append", metavar="P", help="device profile, by name or .toml file; may be repeated"
    )
    what.add_argument("--out", type=Path, metavar="DIR", help="folder for the artifacts (default: this one)")
    what.add_argument("--name", help="name of the model in the artifact (default: made from the file's)")
    what.add_argument("--version", help="version of the model in the artifact (default: 1)")
    what.add_argument("--recipe", type=Path, metavar="F", help="TOML file with the same keys; flags win over it")
    data = parser.add_argument_group("images")
    data.add_argument("--calibration", type=Path, metavar="DIR", help="images like the device's, for int8 ranges")
    data.add_argument(
        "--golden",
        type=Path,
        metavar="DIR",
        help="images that judge: class folders, labels.csv, YOLO, VOC, COCO, masks, or no labels: agreement with the "
        "source",
    )
    data.add_argument(
        "--reference",
        metavar="PKG:FN",
        help="your own predict, fn(image_bgr): run beside the model on golden images, and what parts them is named",
    )
    limits = parser.add_argument_group("limits")
    limits.add_argument("--max-drop", type=float, metavar="X", help="largest fall of the task metric (default: 0.01)")
    limits.add_argument("--min-metric", type=float, metavar="X", help="smallest task metric")
    limits.add_argument(
        "--precision",
        action="append",
        choices=("fp32", "fp16", "int8", "dynamic", "int16x8"),
        help="allow only this one; may be repeated",
    )
    limits.add_argument(
        "--runtime", action="append", metavar="R", help="allow only this one: onnxruntime, openvino, litert"
    )
    limits.add_argument(
        "--backend",
        action="append",
        metavar="B",
        help="allow only this one, such as ort, openvino; inc is tried only so",
    )
    limits.add_argument("--budget-s", type=float, metavar="S", help="begin no new candidate after this many seconds")
    search = parser.add_argument_group("the search")
    search.add_argument(
        "--prefer",
        choices=("throughput", "latency"),
        help="what threads are chosen for where the profile is this machine's (default: throughput)",
    )
    search.add_argument(
        "--on", metavar="ssh://HOST", help="verify and time every build on this device, whose figures then count"
    )
    search.add_argument(
        "--base",
        type=Path,
        metavar="A",
        help="artifact of an earlier version: its scales are used again for a small delta",
    )
    search.add_argument("--cache", type=Path, metavar="DIR", help="keep builds here (default: the user's cache folder)")
    search.add_argument(
        "--no-cache",
        action="store_false",
        dest="use_cache",
        default=None,
        help="build everything again and keep nothing",
    )
    search.add_argument(
        "--make-environments",
        action="store_true",
        default=None,
        help="make the environments of tools that cannot live beside the others, where this conversion needs them",
    )
    search.add_argument("--report", type=Path, metavar="F", help="write the report, one HTML file with plots")
    model = parser.add_argument_group("the model, where its graph does not tell")
    model.add_argument(
        "--factory", metavar="M:F", help="package.module:function that builds the PyTorch network of these weights"
    )
    model.add_argument("--weights", metavar="W", help="weights of the factory given as MODEL; none: it loads its own")
    model.add_argument("--opset", type=int, metavar="N", help="ONNX opset that PyTorch writes (default: 18)")
    model.add_argument("--signature", metavar="S", help="signature of a SavedModel with several")
    model.add_argument("--task", choices=_TASKS, metavar="T", help=", ".join(_TASKS))
    model.add_argument("--decoder", metavar="D", help="how outputs become results: softmax, yolox, nanodet, …")
    model.add_argument("--resize", metavar="R", help="stretch, crop, letterbox[:center|topleft][:PAD]")
    model.add_argument("--color", choices=("bgr", "rgb", "gray"), help="what the channels of its input are")
    model.add_argument("--mean", metavar="A,B,C", help="subtracted from the pixels, in pixel units 0 to 255")
    model.add_argument("--std", metavar="A,B,C", help="then divides, in pixel units 0 to 255")
    model.add_argument("--layout", choices=("NCHW", "NHWC"), help="where the channels stand in its input")
    model.add_argument("--size", metavar="WxH", help="input size, where the model does not fix it")
    model.add_argument("--labels", type=Path, metavar="F", help="class names, one a line")
    model.add_argument(
        "--skip-classes", type=int, metavar="N", help="leading classes that stand for nothing, such as a background"
    )


def run(args: argparse.Namespace, output: Output) -> int:
    import time

    from converters import convert as converter
    from converters.recipe import from_flags

    recipe = from_flags(flags_of(args), args.recipe)
    found = converter.convert(recipe, say=output.note, clock=time.monotonic)
    output.result(found.to_json(), "\n\n".join(_text(a) for a in found.done))
    if found.error is None:
        return 0
    if not output.as_json:
        output.error(found.error.message, found.error.hint)
    return found.error.exit_code


def flags_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return the flags that were given by the recipe keys that mean the same."""
    from converters.recipe import KEYS

    found = {key: value for key, value in vars(args).items() if key in KEYS and value is not None}
    flags: dict[str, Any] = {key: str(value) if isinstance(value, Path) else value for key, value in found.items()}
    return flags | {key: _numbers(key, flags[key]) for key in ("mean", "std") if key in flags}


def _numbers(key: str, text: str) -> list[float]:
    from converters.recipe import numbers
    from edge_sdk.errors import UsageError

    try:
        return list(numbers(text))
    except ValueError:
        raise UsageError(
            f"--{key} `{text}` is not numbers", hint=f"for example --{key} 123.675,116.28,103.53"
        ) from None


def _text(artifact: Any) -> str:
    from converters.results import by_use

    rows, notes = [], _Notes()
    for o in by_use(artifact.rows):
        c, metric, latency = o.candidate, o.metric or {}, o.latency_ms or {}
        about = "~" if latency.get("kind") == "estimate" else ""
        rows.append(
            (
                f"{c.runtime} {c.precision}" + (f" ({c.variant})" if c.variant else ""),
                o.status,
                f"{metric['value']:.4f}" if metric else "",
                f"{metric['drop']:+.4f}" if metric else "",
                f"{about}{latency['p50']:.2f}" if latency else "",
                f"{o.size_bytes / 2**20:.2f}" if o.size_bytes else "",
                notes.short(o.reason or "", o.reason_kind.value if o.reason_kind else ""),
            )
        )
    name = (artifact.chosen.metric or {}).get("name", "metric")
    head = ("candidate", "status", name, "drop", "CPU ms", "MiB", "reason")
    lines = [artifact.profile, table(rows, head), *notes.lines()]
    if (artifact.chosen.latency_ms or {}).get("kind") == "estimate":
        lines.append("~ estimated: measured on this machine, whose ISA is not the profile's")
    lines.append(f"{artifact.path}  ({artifact.size_bytes / 2**20:.2f} MiB, sha256 {artifact.digest[:12]}…)")
    return "\n".join(lines)


class _Notes:
    """Long reasons, each once below the table, so that its lines stay short."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def short(self, reason: str, kind: str) -> str:
        """Return the reason, or its word and the number of its note."""
        if len(reason) <= _SHORT:
            return reason
        if reason not in self._texts:
            self._texts.append(reason)
        return f"{kind} [{self._texts.index(reason) + 1}]".lstrip()

    def lines(self) -> list[str]:
        return [f"[{number}] {text}" for number, text in enumerate(self._texts, 1)]
