"""Errors: exit code, kind, message and hint."""

from __future__ import annotations

import inspect
import pickle

import pytest

from edge_sdk import errors
from edge_sdk.errors import ConfigError, EdgeError, GuardrailError, SourceError

CONTRACT = {
    "UsageError": 2,
    "ConfigError": 2,
    "ProfileError": 2,
    "BackendError": 3,
    "ArtifactError": 4,
    "SchemaError": 4,
    "TrustError": 4,
    "GuardrailError": 5,
    "CalibrationError": 5,
    "ConversionError": 6,
    "SourceError": 6,
    "SinkError": 6,
    "WorkerError": 6,
    "SyncError": 7,
}
CLASSES = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, EdgeError) and c is not EdgeError]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_an_error_ends_the_process_with_the_exit_code_of_the_contract(cls):
    base = [b.__name__ for b in cls.__mro__ if b.__name__ in CONTRACT]
    assert cls.exit_code == CONTRACT[base[0]]


def test_the_tree_at_the_top_of_the_file_has_every_error():
    assert set(CONTRACT) <= {c.__name__ for c in CLASSES}
    for cls in CLASSES:
        assert f"{cls.__name__} " in (errors.__doc__ or "")


def test_the_kinds_are_all_different():
    kinds = [c.kind for c in CLASSES]
    assert len(set(kinds)) == len(kinds)


def test_an_error_becomes_the_object_that_json_prints():
    error = SourceError("cannot open `a.mp4`", hint="check the path")
    assert error.to_json() == {
        "exit": 6,
        "kind": "source",
        "message": "cannot open `a.mp4`",
        "hint": "check the path",
    }


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_an_error_survives_the_way_between_two_processes(cls):
    back = pickle.loads(pickle.dumps(cls("it broke", hint="mend it")))
    assert (type(back), back.message, back.hint, str(back)) == (cls, "it broke", "mend it", "it broke")


def test_a_config_error_lists_its_problems_under_its_message():
    error = ConfigError("a.toml: 2 problems", problems=["a: missing", "b: unknown key"])
    assert str(error) == "a.toml: 2 problems\n  a: missing\n  b: unknown key"
    assert pickle.loads(pickle.dumps(error)).message == error.message


def test_a_calibration_error_is_caught_as_a_guardrail():
    assert issubclass(errors.CalibrationError, GuardrailError)
