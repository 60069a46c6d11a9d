"""A TFLite file that another tool made of the source: compared with it, its tensors renamed. Runs in a worker."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from converters import tflite_graph as g
from converters.backends import match
from converters.frontends import parity
from converters.frontends.base import FORMS, Source
from edge_sdk import runtimes
from edge_sdk.errors import ConversionError
from edge_sdk.runtimes.litert import LiteRtRuntime


def adopt(source: dict[str, Any], made: str, out: str) -> dict[str, Any]:
    """Write `out`, the file `made` with the source's outputs by name and order, and return a line on its parity.

    Raises:
        ConversionError: it answers otherwise than the source's reference form, or an output cannot be found.
    """
    known = Source.from_json(source)
    names = tuple(o.name for o in known.outputs)
    model = g.load(Path(made))
    graph = model.subgraphs[0]
    if len(graph.inputs) != 1:
        raise ConversionError(f"the bridged model has {len(graph.inputs)} inputs, expected one image")
    run_source = _run(known)
    found = [g.name(graph.tensors[i]) for i in graph.outputs]
    shape = [int(d) for d in graph.tensors[graph.inputs[0]].shape]
    run_made = match.turned(_of_file(Path(made)), known.layout, shape)
    places, turns = match.by_answers(names, run_source, run_made, found, known.input)
    g.name_outputs(model, places, names, turns)
    g.name_input(model, known.input.name)
    g.save(model, Path(out))
    adopted = match.turned(_of_file(Path(out)), known.layout, shape)
    compared = parity.compare(known.input, known.outputs, run_source, adopted, rounds=known.quantized)
    return {"line": parity.require(compared, "bridge to TFLite", "give a TFLite file instead")}


def _of_file(path: Path) -> parity.Run:
    engine = LiteRtRuntime(path, {"threads": 1})
    name = engine.inputs[0].name

    def run(value: Any) -> Mapping[str, Any]:
        return {k: np.array(v) for k, v in engine.infer({name: value}).items()}

    return run


def _run(source: Source) -> parity.Run:
    runtime = FORMS[source.reference]
    if runtime is None:
        raise ConversionError(f"the form {source.reference} has no runtime to compare the bridge with")
    engine = runtimes.registry().load(runtime)(Path(source.forms[source.reference]), {"threads": 1})
    name = engine.inputs[0].name

    def run(value: Any) -> Mapping[str, Any]:
        return {k: np.array(v) for k, v in engine.infer({name: value}).items()}

    return run
