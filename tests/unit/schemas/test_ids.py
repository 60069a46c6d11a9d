"""Ids and topics."""

from __future__ import annotations

import pytest

from edge_sdk.errors import SchemaError
from edge_sdk.schemas.ids import check_id, check_sha256, parse_topic, topic


@pytest.mark.parametrize("good", ["a", "0", "cam-01_x", "a" * 63])
def test_an_id_of_the_contract_is_accepted(good):
    assert check_id(good, "device") == good


@pytest.mark.parametrize("bad", ["", "A", "-a", "_a", "a/b", "a+", "#", "a" * 64, "ü", "a\n", None, 5, "../x"])
def test_what_could_mean_another_topic_is_no_id(bad):
    with pytest.raises(SchemaError, match="is not an id") as caught:
        check_id(bad, "device")
    assert "1 to 63" in str(caught.value.hint)


@pytest.mark.parametrize("bad", ["", "a" * 63, "A" * 64, "g" * 64, "a" * 64 + "\n", None])
def test_a_hash_is_sixty_four_lower_case_hex_digits(bad):
    assert check_sha256("0" * 64, "sha256") == "0" * 64
    with pytest.raises(SchemaError, match="is not a SHA-256"):
        check_sha256(bad, "sha256")


def test_a_topic_comes_back_in_its_parts():
    assert topic("acme", "cam-1", "t") == "edge/v1/acme/cam-1/t"
    assert parse_topic("edge/v1/acme/cam-1/desired") == ("acme", "cam-1", "desired")


@pytest.mark.parametrize(
    "bad", ["edge/v1/a/b", "edge/v1/a/b/c", "edge/v2/a/b/t", "edge/v1/+/b/t", "edge/v1/a/b/t/x", ""]
)
def test_another_topic_is_refused(bad):
    with pytest.raises(SchemaError):
        parse_topic(bad)


def test_an_unknown_leaf_is_refused():
    with pytest.raises(SchemaError, match="topic leaf `x` is not one of t, alarm"):
        topic("a", "b", "x")
