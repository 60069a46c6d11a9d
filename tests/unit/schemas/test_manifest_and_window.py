"""The manifest and the telemetry window as documents."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from edge_sdk.errors import SchemaError
from edge_sdk.schemas.manifest import Manifest
from edge_sdk.schemas.telemetry import FeatureGroup, Window

SHA = "ab" * 32
MANIFEST: dict[str, Any] = {
    "schema": "edge.artifact/1",
    "name": "digits",
    "version": "1.0.0",
    "profile": "generic-cpu",
    "task": "classification",
    "source_sha256": SHA,
    "parent": None,
    "payload_digest": SHA,
    "files": {"model/model.onnx": {"sha256": SHA, "size": 3}},
    "input": {
        "name": "x",
        "shape": [1, 3, 32, 48],
        "dtype": "float32",
        "layout": "NCHW",
        "color": "rgb",
        "resize": {"mode": "letterbox", "align": "topleft", "pad": 114},
        "mean": [0.0, 0.0, 0.0],
        "std": [255.0, 255.0, 255.0],
    },
    "outputs": [{"name": "y", "shape": [1, 10], "dtype": "float32"}],
    "decoder": {"name": "softmax", "params": {}},
    "runtime": {"name": "onnxruntime", "options": {}},
    "licences": {},
}


def changed(path: str, value: Any) -> bytes:
    data = copy.deepcopy(MANIFEST)
    *parents, last = path.split(".")
    place = data
    for key in parents:
        place = place[key]
    place[last] = value
    return json.dumps(data).encode()


def test_a_manifest_comes_back_as_it_was_with_unknown_keys_at_every_level():
    data = json.loads(changed("input.vendor", {"a": 1})) | {"vendor.note": "x"}
    manifest = Manifest.from_json(json.dumps(data))
    assert manifest.input.extra == {"vendor": {"a": 1}}
    assert json.loads(manifest.to_json()) == data


def test_sizes_follow_the_layout():
    spec = Manifest.from_json(changed("input.layout", "NCHW")).input
    assert (spec.height, spec.width, spec.channels) == (32, 48, 3)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("schema", "edge.artifact/2", "schema is `edge.artifact/2`"),
        ("task", "telepathy", "task: expected one of classification"),
        ("input.shape", [1, 3, 32], "shape \\[1, 3, 32\\] is not four positive sizes"),
        ("input.shape", [1, 3, 0, 32], "is not four positive sizes"),
        ("input.layout", "NHWC", "has not the 3 channels of `rgb`"),
        ("input.mean", [0.0, 0.0], "mean has 2 values, expected 1 or 3"),
        ("input.std", [0.0], "std has a zero"),
        ("input.resize", {"mode": "squeeze"}, "input.resize.mode: expected one of stretch, letterbox, crop"),
        ("files", {"m": {"sha256": SHA, "size": -1}}, "files.m.size: expected 0 to inf"),
        ("outputs", {}, "outputs: expected an array"),
    ],
)
def test_a_wrong_manifest_is_refused_and_named(path, value, said):
    with pytest.raises(SchemaError, match=said):
        Manifest.from_json(changed(path, value))


def test_a_window_comes_back_as_it_was():
    group = FeatureGroup(names=("a", "b"), n=3, mean=(0.1, 0.2), m2=(0.0, 0.0, 0.0))
    window = Window(t=9.0, t0=1.0, t1=9.0, pipeline="p", model=SHA, n=3, groups={"image": group})
    assert Window.from_event({**window.to_event(), "seq": 4}).groups == {"image": group}


def test_moments_of_the_wrong_length_are_refused():
    event = Window(t=9.0, t0=1.0, t1=9.0, pipeline="p", model=SHA, n=3).to_event()
    event["groups"] = {"image": {"names": ["a", "b"], "n": 3, "mean": [0.1, 0.2], "m2": [0.0]}}
    with pytest.raises(SchemaError, match="2 names need 2 means and 3 m2, found 2 and 1"):
        Window.from_event(event)
