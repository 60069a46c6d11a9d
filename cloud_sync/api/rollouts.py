"""/api/v1/rollouts: staged rollouts."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict

from cloud_sync.api.auth import Operator
from cloud_sync.base import Services

Row = dict[str, Any]


class RolloutRequest(BaseModel):
    """`devices` and `profiles` restrict the rollout; every further key is one of `[rollout]` in serve.toml."""

    model_config = ConfigDict(extra="allow")
    release: str
    devices: list[str] | None = None
    profiles: list[str] | None = None
    draft: bool = False


class AbortRequest(BaseModel):
    """`undo` false leaves the devices with what they have."""

    undo: bool = True


def router(services: Services) -> APIRouter:
    routes = APIRouter(prefix="/api/v1/rollouts", tags=["rollouts"])

    @routes.get("")
    def rollouts(_: Operator) -> Row:
        """Every rollout, newest first."""
        return {"rollouts": services.rollouts.list()}

    @routes.post("")
    def create(body: RolloutRequest, who: Operator) -> Row:
        """Make a rollout; it starts by itself, or once approved."""
        row: Row = services.rollouts.create(
            body.release,
            changes=body.model_extra or {},
            devices=body.devices,
            profiles=body.profiles,
            draft=body.draft,
            actor=who.actor,
        )
        return row

    @routes.get("/{rollout}")
    def show(rollout: str, _: Operator) -> Row:
        """One rollout with its devices and events."""
        row: Row = services.rollouts.get(rollout)
        return row

    @routes.post("/{rollout}/approve")
    def approve(rollout: str, who: Operator) -> Row:
        """Let it start."""
        row: Row = services.rollouts.approve(rollout, actor=who.actor)
        return row

    @routes.post("/{rollout}/pause")
    def pause(rollout: str, who: Operator) -> Row:
        """Tell no further devices; guards stay on."""
        row: Row = services.rollouts.pause(rollout, actor=who.actor)
        return row

    @routes.post("/{rollout}/resume")
    def resume(rollout: str, who: Operator) -> Row:
        """Go on after a pause or a hold."""
        row: Row = services.rollouts.resume(rollout, actor=who.actor)
        return row

    @routes.post("/{rollout}/abort")
    def abort(rollout: str, who: Operator, body: AbortRequest | None = None) -> Row:
        """End it from any state; devices go back to what they had unless told otherwise."""
        row: Row = services.rollouts.abort(rollout, actor=who.actor, undo=body is None or body.undo)
        return row

    return routes
