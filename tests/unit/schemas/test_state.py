"""Desired and reported state, transitions."""

from __future__ import annotations

import json

import pytest

from edge_sdk.errors import SchemaError
from edge_sdk.schemas.state import LAST_WILL, Desired, Phase, Reported, Transition

SHA = "ab" * 32
DESIRED = {"v": 1, "rev": 3, "release": "r-1", "target": f"cpu/{SHA}.edge", "sha256": SHA, "size": 10, "trial_s": 5.0}


def test_a_desired_state_keeps_what_a_newer_service_adds():
    raw = json.dumps({**DESIRED, "config": {"telemetry": {"window_n": 5}}, "window": "night"}).encode()
    desired = Desired.from_json(raw)
    assert desired.extra == {"window": "night"}
    assert json.loads(desired.to_json()) == json.loads(raw)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rev": -1}, "rev: expected 0 to inf, found -1"),
        ({"rev": "3"}, "rev: expected an integer"),
        ({"size": 0}, "size: expected 1 to inf"),
        ({"sha256": "x"}, "sha256 'x' is not a SHA-256"),
        ({"release": "../up"}, "release '../up' is not an id"),
        ({"trial_s": "soon"}, "trial_s: expected a number"),
    ],
)
def test_a_wrong_desired_state_is_refused_and_named(change, said):
    with pytest.raises(SchemaError, match=said):
        Desired.from_json(json.dumps({**DESIRED, **change}).encode())


def test_a_report_carries_only_what_it_knows():
    report = Reported(online=True, phase=Phase.TRIAL)
    assert json.loads(report.to_json()) == {"v": 1, "online": True, "phase": "TRIAL"}
    assert Reported.from_json(report.to_json()) == report


def test_the_last_will_is_a_report():
    assert Reported.from_json(LAST_WILL) == Reported(online=False)


def test_a_phase_nobody_knows_is_refused():
    with pytest.raises(SchemaError, match="phase: expected one of IDLE, OFFERED"):
        Reported.from_json(b'{"v":1,"phase":"SLEEPING"}')


def test_a_transition_names_both_ends():
    step = Transition(seq=1, t=2.0, rev=3, release="r-1", sha256=SHA, source=Phase.TRIAL, to=Phase.COMMITTED)
    data = json.loads(step.to_json())
    assert (data["from"], data["to"]) == ("TRIAL", "COMMITTED")
    assert Transition.from_json(step.to_json()) == step
