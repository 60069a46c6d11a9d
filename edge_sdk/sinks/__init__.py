"""Sinks take results: files of lines, annotated video, MQTT, webhooks, a live view, Home Assistant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edge_sdk.registry import Plugin, Registry
from edge_sdk.sinks.uri import sink_name

if TYPE_CHECKING:
    from edge_sdk.sinks.base import Sink


def sinks() -> Registry:
    """Return the table of sinks by URI scheme; `file` says that the rest of the URI is a path."""
    return Registry(
        "sink",
        {
            "jsonl": Plugin(target="edge_sdk.sinks.lines:JsonLines", capabilities={"file": True}),
            "csv": Plugin(target="edge_sdk.sinks.lines:Csv", capabilities={"file": True}),
            "clips": Plugin(target="edge_sdk.sinks.clips:Clips", capabilities={"file": True}),
            "snapshots": Plugin(target="edge_sdk.sinks.snapshots:Snapshots", capabilities={"file": True}),
            "video": Plugin(target="edge_sdk.sinks.video:AnnotatedVideo", capabilities={"file": True}),
            "mqtt": Plugin(
                target="edge_sdk.sinks.mqtt:Mqtt",
                requires=("paho",),
                extra="agent",
                capabilities={"file": False},
            ),
            "homeassistant": Plugin(
                target="edge_sdk.sinks.homeassistant:HomeAssistant",
                requires=("paho",),
                extra="agent",
                capabilities={"file": False},
            ),
            "live": Plugin(target="edge_sdk.sinks.live:LiveView", capabilities={"file": False}),
            "webhook": Plugin(target="edge_sdk.sinks.webhook:Webhook", capabilities={"file": False}),
        },
    )


def create(uri: str, options: Mapping[str, Any] | None = None) -> Sink:
    """Return the sink for `uri`, not yet open.

    Raises:
        UsageError: the form, or an option, is unknown.
        BackendError: a package it needs is missing.
    """
    sink: Sink = sinks().load(sink_name(uri))(uri, dict(options or {}))
    return sink


__all__ = ["create", "sink_name", "sinks"]
