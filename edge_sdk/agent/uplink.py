"""What an agent sends up: batches of the outbox, transitions of an update, the reported state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from edge_sdk.agent.link import InFlight, Link, LinkPolicy, delivered
from edge_sdk.agent.state import AgentState
from edge_sdk.schemas.state import Phase, Reported, Transition
from edge_sdk.telemetry.outbox import Outbox


class Uplink:
    """Sends over `link` while it is connected; a message that a broken connection may have lost is sent again.

    Called by one thread; `now_s` is the monotonic clock.
    """

    def __init__(self, link: Link, outbox: Outbox, policy: LinkPolicy, *, report_period_s: float) -> None:
        self._link = link
        self._outbox = outbox
        self._in_flight = InFlight(policy)
        self._report_period_s = report_period_s
        self._reported: Reported | None = None
        self._reported_at = 0.0
        self._steps_sent: dict[int, tuple[int, Any]] = {}

    def pump(self, now_s: float, now: float) -> None:
        """Send the batches that are due; `now` is seconds since the epoch."""
        if not self._link.connected:
            return
        epoch = self._link.epoch
        batches = self._outbox.next_batches(self._in_flight.wanted(), now=now)
        for batch in self._in_flight.due(batches, epoch, now_s):
            if self._in_flight.still_on_its_way(batch.q0):
                self._in_flight.note(batch.q0, epoch, now_s, None)
                continue
            info = self._link.publish("alarm" if batch.priority >= 2 else "t", batch.payload)
            if info is not None:
                self._in_flight.note(batch.q0, epoch, now_s, info)

    def send_steps(self, transitions: Sequence[Transition]) -> list[int]:
        """Send transitions, and return the numbers of those that the broker has taken."""
        if not self._link.connected:
            return []
        taken = [seq for seq, (_, info) in self._steps_sent.items() if delivered(info)]
        for seq in taken:
            del self._steps_sent[seq]
        for step in transitions:
            if step.seq in taken:
                continue
            sent = self._steps_sent.get(step.seq)
            if sent is None or (sent[0] != self._link.epoch and delivered(sent[1])):
                info = self._link.publish("ota", step.to_json())
                if info is not None:
                    self._steps_sent[step.seq] = (self._link.epoch, info)
        return taken

    def report_again(self) -> None:
        """Send the next state whether or not it is news."""
        self._reported = None

    def report(self, news: Reported, now_s: float) -> None:
        """Send the state when it is news, and once a period."""
        if not self._link.connected:
            return
        periodic = now_s - self._reported_at >= self._report_period_s
        if news == self._reported and not periodic:
            return
        message = replace(news, outbox=self._outbox.stats()).to_json()
        if self._link.publish("state", message, retain=True) is not None:
            self._reported, self._reported_at = news, now_s


def reported(state: AgentState, profile: str | None, note: str | None) -> Reported:
    """Return what a device says of itself; `note` is what happened to its outbox."""
    return Reported(
        rev=state.rev if state.rev >= 0 else None,
        online=True,
        digest=state.active or "",
        slot=_slot_name(state),
        phase=state.phase,
        profile=profile,
        error=state.error or note or "",
    )


def _slot_name(state: AgentState) -> str:
    if state.active is None:
        return "none"
    if state.phase is Phase.TRIAL:
        return "trial"
    return "factory" if state.active == state.factory else "committed"
