"""Outputs of a built file are matched with the source's by name or by answers, never by a guess."""

from __future__ import annotations

import numpy as np
import pytest

from converters.backends import match
from converters.backends.base import BuildRequest
from converters.frontends.base import TensorInfo
from edge_sdk.errors import ConversionError
from edge_sdk.schemas.manifest import InputSpec

IMAGE = TensorInfo(name="image", shape=(1, 8, 8, 3), dtype="float32")


def source(value):
    mean = value.mean((1, 2))
    return {"boxes": mean * 2, "scores": mean + 1, "grid": value.transpose(0, 3, 1, 2)}


def test_names_that_are_kept_decide_alone():
    assert match.by_name(("b", "a"), (("a", "x"), ("b",), ("c",))) == (1, 0)
    assert match.by_name(("scores",), (("Identity",),)) == (0,)
    assert match.by_name(("a", "b"), (("Identity",), ("Identity_1",))) is None
    assert match.by_name(("a", "b"), (("a", "b"), ("c",))) is None


def test_lost_names_are_found_by_what_the_outputs_answer_whatever_their_order_and_layout():
    def built(value):
        found = source(value)
        return {"2": found["scores"], "0": found["boxes"], "1": found["grid"].transpose(0, 2, 3, 1)}

    places, turns = match.by_answers(("boxes", "scores", "grid"), source, built, ("0", "1", "2"), IMAGE)

    assert places == (0, 2, 1)
    assert turns == (None, None, (0, 3, 1, 2))


def test_two_outputs_that_answer_alike_are_not_told_apart():
    def twice(value):
        found = source(value)
        return {"0": found["boxes"], "1": found["boxes"] * 1.001, "2": found["scores"]}

    with pytest.raises(ConversionError, match="`boxes` is like 0, 1 of the converted file's outputs") as caught:
        match.by_answers(("boxes", "scores"), source, twice, ("0", "1", "2"), IMAGE)
    assert "same names" in str(caught.value.hint)


def test_an_output_that_no_other_is_like_is_named():
    def other(value):
        return {"0": value.mean((1, 2)) * -3}

    with pytest.raises(ConversionError, match="`scores` is like none of"):
        match.by_answers(("scores",), source, other, ("0",), IMAGE)


def test_without_a_reference_to_run_the_names_are_asked_for(tmp_path):
    spec = InputSpec(name="image", shape=(1, 8, 8, 3), dtype="float32", layout="NHWC", color="rgb")
    request = BuildRequest(model=tmp_path, out=tmp_path, precision="fp32", input=spec, outputs=("a", "b"))

    with pytest.raises(ConversionError, match="cannot be told apart: the source calls them a, b"):
        match.reference_run(request)


def test_an_answer_of_nan_matches_nothing():
    with pytest.raises(ConversionError, match="answers NaN or infinity on plain pictures"):
        match.by_answers(("a",), lambda v: {"a": v * np.nan}, lambda v: {"0": v}, ("0",), IMAGE)
