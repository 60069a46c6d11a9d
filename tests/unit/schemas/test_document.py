"""JSON from machines: strict to read, canonical to write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from edge_sdk.errors import SchemaError
from edge_sdk.schemas import document


@dataclass(frozen=True, kw_only=True)
class Note:
    text: str
    n: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_a_number_that_json_does_not_have_is_refused(constant):
    with pytest.raises(SchemaError, match=f"note is not valid JSON: {constant} is not a JSON number"):
        document.loads(f'{{"n": {constant}}}', where="note")


def test_a_key_that_appears_twice_is_refused():
    with pytest.raises(SchemaError, match="key `n` appears twice"):
        document.loads('{"a": [{"n": 1, "n": 2}]}', where="note")


@pytest.mark.parametrize("opening", ["[", '{"a":', '[{"a":'])
def test_deep_nesting_is_refused_and_does_not_exhaust_the_stack(opening):
    with pytest.raises(SchemaError, match="note is nested more than 64 deep"):
        document.loads(opening * 100_000, where="note")


def test_brackets_inside_a_string_are_not_nesting():
    text = '{"text": "' + '[\\"{' * 500 + '"}'
    assert document.loads(text, where="note")["text"].count("[") == 500


def test_many_siblings_are_not_nesting():
    assert len(document.loads("[" + ",".join(["[]"] * 500) + "]", where="note")) == 500


def test_a_document_above_its_limit_is_refused_before_it_is_parsed():
    with pytest.raises(SchemaError, match="note is 11 bytes, the limit is 10"):
        document.loads(b"x" * 11, where="note", max_bytes=10)


def test_bytes_that_are_not_utf8_name_the_place():
    with pytest.raises(SchemaError, match="note is not UTF-8: invalid start byte at byte 1"):
        document.loads(b'"\xff"', where="note")


def test_cut_data_is_refused_with_a_hint():
    with pytest.raises(SchemaError, match="note is not valid JSON") as caught:
        document.loads('{"text": "ab', where="note")
    assert caught.value.hint == "the sender is wrong or the data is cut"


def test_a_huge_integer_is_refused_and_not_computed():
    with pytest.raises(SchemaError, match="is not valid JSON"):
        document.loads("9" * 10_000, where="note")


def test_the_top_level_must_be_an_object_where_one_is_wanted():
    with pytest.raises(SchemaError, match="note: expected an object, found list"):
        document.loads_object("[]", where="note")


def test_equal_values_give_equal_bytes():
    assert document.dumps({"b": 1, "a": "ü"}) == document.dumps({"a": "ü", "b": 1}) == '{"a":"ü","b":1}'.encode()


def test_nan_is_never_written():
    with pytest.raises(ValueError, match="JSON"):
        document.dumps({"n": float("nan")})


def test_a_newer_writer_s_keys_survive_a_round_trip():
    raw = {"text": "hello", "n": 2, "vendor.note": {"deep": [1]}}
    note = document.read(raw, Note, where="note")
    assert note.extra == {"vendor.note": {"deep": [1]}}
    assert document.write(note) == raw


def test_every_wrong_key_is_named_at_once():
    with pytest.raises(SchemaError, match="note: text: missing; n: expected an integer, found a string 'x'"):
        document.read({"n": "x"}, Note, where="note")


@pytest.mark.parametrize("found", ["edge.artifact/1", "edge.artifact/1.7"])
def test_the_same_major_version_is_read(found):
    document.check_schema(found, "edge.artifact", 1, where="manifest.json")


@pytest.mark.parametrize(
    ("found", "hint"),
    [
        ("edge.artifact/2", "upgrade edge-sdk to read it"),
        ("edge.artifact/", "upgrade edge-sdk to read it"),
        ("other/1", "this is not a edge.artifact document"),
        (None, "this is not a edge.artifact document"),
    ],
)
def test_another_family_or_major_version_is_refused(found, hint):
    with pytest.raises(SchemaError, match="this version reads `edge.artifact/1`") as caught:
        document.check_schema(found, "edge.artifact", 1, where="manifest.json")
    assert caught.value.hint == hint
