"""Whatever arrives and in whatever order: the agent's messages and its update machine."""

from __future__ import annotations

import contextlib
import json
import socket
from pathlib import Path
from typing import Any

import pytest

for name in ("paho.mqtt", "hypothesis"):
    pytest.importorskip(name)

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from edge_sdk.agent import reconcile  # noqa: E402
from edge_sdk.agent.config import AgentConfig, Identity, Paths, save_identity  # noqa: E402
from edge_sdk.agent.daemon import Agent  # noqa: E402
from edge_sdk.agent.link import Event  # noqa: E402
from edge_sdk.agent.reconcile import Job, RetryPolicy  # noqa: E402
from edge_sdk.agent.state import AgentState  # noqa: E402
from edge_sdk.errors import EdgeError  # noqa: E402
from edge_sdk.schemas import document  # noqa: E402
from edge_sdk.schemas.state import Desired, Phase  # noqa: E402

DIGESTS = tuple(c * 64 for c in "abcd")
BEFORE_TRIAL = {"OFFERED", "DOWNLOADING", "PAUSED", "VERIFYING", "STAGED", "TESTED"}

actions = st.one_of(
    st.tuples(st.just("offer"), st.integers(0, 12), st.sampled_from(DIGESTS)),
    st.tuples(st.just("done"), st.sampled_from(list(Job))),
    st.tuples(st.just("failed"), st.sampled_from(list(Job)), st.booleans()),
    st.tuples(st.just("tick"), st.floats(0, 1e10)),
    st.tuples(st.just("commit")),
    st.tuples(st.just("trial_failed"), st.booleans()),
    st.tuples(st.just("boot"), st.booleans()),
    st.tuples(st.just("work")),
)


def apply(state: AgentState, action: tuple[Any, ...], job: Job | None) -> reconcile.Step:
    match action:
        case ("offer", rev, digest):
            desired = Desired(rev=rev, release="r", target=f"p/{digest}.edge", sha256=digest, size=1)
            return reconcile.offer(state, desired, 1.0)
        case ("done", which):
            return reconcile.done(state, which, 1.0)
        case ("failed", which, retriable):
            return reconcile.failed(state, which, "why", retriable, 1.0, RetryPolicy(), 0.5)
        case ("tick", now):
            return reconcile.tick(state, now)
        case ("commit",):
            return reconcile.commit(state, 1.0)
        case ("trial_failed", blame):
            return reconcile.trial_failed(state, "why", 1.0, blame=blame)
        case ("boot", whole):
            return reconcile.boot(state, state.active if whole else state.committed, 1.0, max_crashes=2)
        case _:
            return reconcile.done(state, job, 1.0) if job is not None else reconcile.Step(state)


@settings(max_examples=300, deadline=None)
@given(st.lists(actions, max_size=40))
def test_no_order_of_events_leaves_the_update_machine_in_a_wrong_state(script: list[tuple[Any, ...]]) -> None:
    state = AgentState(active=DIGESTS[0], committed=DIGESTS[0], factory=DIGESTS[0])
    job: Job | None = None
    for action in script:
        step = apply(state, action, job)
        before, state = state, step.state
        job = step.job if step.job is not None else reconcile.job_of(state.phase)
        assert state.rev >= before.rev, "a revision never goes back"
        assert state.committed is not None
        if state.phase is not Phase.TRIAL:
            assert state.active == state.committed, f"only a trial runs what is not committed, not {state.phase}"
        if state.active not in (before.active, state.committed):
            assert (before.phase, state.phase) == (Phase.TESTED, Phase.TRIAL), (
                "only a passed self-test leads to a trial"
            )
        if state.phase.value in BEFORE_TRIAL:
            assert state.desired is not None
        if state.committed != before.committed and action[0] != "boot":
            assert before.phase in (Phase.TRIAL, Phase.ROLLING_BACK)
        for first, second in zip(state.transitions, state.transitions[1:], strict=False):
            assert first.seq < second.seq
        assert document.read(json.loads(document.dumps(document.write(state))), AgentState, where="state") == state


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Agent:
    root = tmp_path_factory.mktemp("device")
    (root / "pipeline.toml").write_text('[source]\nuri = "synthetic:64x48"\n[[stage]]\nmodel = "slot"\n')
    (root / "agent.toml").write_text('state_dir = "state"\npipeline = "pipeline.toml"\n')
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    paths = Paths(Path(root / "state"))
    paths.root.mkdir()
    url = f"http://127.0.0.1:{port}"
    identity = Identity(server=url, tenant="t", device="d", broker_url=f"mqtt://127.0.0.1:{port}", credential="c")
    save_identity(paths, identity, b"{}")
    return Agent(AgentConfig.from_toml(root / "agent.toml"))


GOOD = {"v": 1, "rev": 3, "release": "r", "target": "p/x.edge", "sha256": "a" * 64, "size": 3}
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*GOOD, "ranges", "cmd"]), inner, max_size=4)
    ),
    max_leaves=6,
)
payloads = st.one_of(st.binary(max_size=200), json_values.map(lambda v: json.dumps(v).encode()))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["desired", "ack", "cmd"]), payloads)
def test_a_message_of_any_bytes_is_refused_by_name_or_understood(agent: Agent, leaf: str, payload: bytes) -> None:
    with contextlib.suppress(EdgeError):
        agent._on_link(Event(leaf, payload))
    assert agent._state.phase is Phase.IDLE


@pytest.mark.parametrize(
    "change",
    [
        {"v": 2}, {"rev": -1}, {"rev": "3"}, {"size": 0}, {"sha256": "A" * 64}, {"release": "../x"}, {"trial_s": -1},
        {"config": []}, {"rev": 2**70, "size": None},
    ],
)  # fmt: skip
def test_a_desired_state_with_one_wrong_value_is_refused(agent: Agent, change: dict[str, Any]) -> None:
    with pytest.raises(EdgeError, match="desired|sha256|release"):
        agent._on_link(Event("desired", json.dumps(GOOD | change).encode()))
    assert agent._state.phase is Phase.IDLE
