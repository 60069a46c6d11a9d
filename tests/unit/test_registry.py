"""The plug-in table."""

from __future__ import annotations

import sys

import pytest

from edge_sdk.errors import BackendError, UsageError
from edge_sdk.registry import Plugin, Registry, near_miss


@pytest.fixture
def shapes() -> Registry:
    return Registry(
        "shape",
        {
            "square": Plugin(target="fractions:Fraction", capabilities={"corners": 4}),
            "circle": Plugin(target="no_such_module:Circle", requires=("no_such_module",), extra="round"),
            "ring": Plugin(target="no_such_module:Ring", requires=("no_such_module",)),
        },
    )


def test_a_plugin_is_imported_when_it_is_loaded(shapes):
    from fractions import Fraction

    assert shapes.load("square") is Fraction


def test_capabilities_are_readable_without_an_import(shapes):
    assert shapes.plugin("square").capabilities["corners"] == 4
    assert shapes.plugin("circle").extra == "round"
    assert "no_such_module" not in sys.modules


def test_an_unknown_name_gets_the_nearest_known_one(shapes):
    with pytest.raises(UsageError) as caught:
        shapes.load("sqare")
    assert caught.value.message == "unknown shape `sqare`"
    assert caught.value.hint == "did you mean `square`?"


def test_a_name_like_none_other_gets_the_list(shapes):
    with pytest.raises(UsageError) as caught:
        shapes.load("xyzzy")
    assert caught.value.hint == "known: circle, ring, square"


def test_a_missing_package_names_the_extra_that_has_it(shapes):
    with pytest.raises(BackendError) as caught:
        shapes.load("circle")
    assert caught.value.message == "shape `circle` needs `no_such_module`, which is not installed"
    assert caught.value.hint == "pip install 'edge-sdk[round]'"
    assert shapes.missing("circle") == ("no_such_module",)


def test_a_missing_package_without_an_extra_is_named_itself(shapes):
    with pytest.raises(BackendError) as caught:
        shapes.load("ring")
    assert caught.value.hint == "pip install 'no_such_module'"


def test_a_name_taken_twice_is_refused_and_names_both(shapes):
    with pytest.raises(UsageError) as caught:
        shapes.register("square", Plugin(target="decimal:Decimal"))
    assert caught.value.message == "shape `square` is registered twice: fractions:Fraction and decimal:Decimal"
    assert caught.value.hint == "rename one of the two entry points"


def test_a_third_party_adds_a_plugin_by_entry_point(shapes, tmp_path, monkeypatch):
    info = tmp_path / "hexagons-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hexagons\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[edge_sdk.shape]\nhexagon = decimal:Decimal\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "hexagon" in shapes.names()
    assert shapes.load("hexagon").__name__ == "Decimal"
    assert "hexagon" not in Registry("shape", {}).names(third_party=False)


def test_a_word_close_to_none_has_no_near_miss():
    assert near_miss("convrt", ["convert", "run"]) == "did you mean `convert`?"
    assert near_miss("zzz", ["convert", "run"]) is None
