"""How the factory and the weights of a PyTorch model are named, on the command line and in a recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxscript")


from converters.recipe import Recipe, from_flags
from edge_sdk.errors import UsageError


def recipe(**flags) -> Recipe:
    return from_flags(flags, None)


def test_the_factory_may_be_the_model_or_a_flag():
    one = recipe(model="a.b:net", weights="w.pth")
    two = recipe(model="w.pth", factory="a.b:net")

    assert one == two
    assert (one.model, one.factory) == (Path("w.pth"), "a.b:net")
    assert recipe(model="a.b:net", weights="none").model is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"model": "a.b:net"}, "`a.b:net` has no weights"),
        ({"model": "a.b:net", "factory": "c:d", "weights": "w.pth"}, "two factories are given"),
        ({"model": "w.pth", "weights": "v.pth"}, "--weights v.pth needs a factory as MODEL"),
        ({"model": "w.pth", "factory": "c:d", "weights": "v.pth"}, "--weights v.pth needs a factory as MODEL"),
    ],
)
def test_a_factory_and_weights_that_contradict_each_other_are_refused(flags, message):
    with pytest.raises(UsageError, match=message):
        recipe(**flags)


def test_paths_in_a_recipe_are_relative_to_it_and_a_factory_is_no_path(tmp_path):
    (tmp_path / "r.toml").write_text('model = "a.b:net"\nweights = "w.pth"\n')

    found = from_flags({}, tmp_path / "r.toml")

    assert (found.factory, found.model) == ("a.b:net", tmp_path / "w.pth")
