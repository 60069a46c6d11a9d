"""Identifiers and MQTT topics of the wire, version 1."""

from __future__ import annotations

import re

from edge_sdk.errors import SchemaError

ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
SHA256 = re.compile(r"[0-9a-f]{64}")
TOPIC_ROOT = "edge/v1"
UP = ("t", "alarm", "state", "ota")
DOWN = ("desired", "ack", "cmd")


def check_id(value: object, what: str) -> str:
    """Return `value` when it may name a tenant, device, release or rollout.

    Raises:
        SchemaError: it does not match `[a-z0-9][a-z0-9_-]{0,62}`.
    """
    if not isinstance(value, str) or not ID.fullmatch(value):
        raise SchemaError(
            f"{what} {str(value)[:80]!r} is not an id",
            hint="use 1 to 63 of a-z, 0-9, `_` and `-`, starting with a letter or digit",
        )
    return value


def check_sha256(value: object, what: str) -> str:
    """Return `value` when it is a SHA-256 in 64 lower case hex digits.

    Raises:
        SchemaError: it is not.
    """
    if not isinstance(value, str) or not SHA256.fullmatch(value):
        raise SchemaError(f"{what} {str(value)[:80]!r} is not a SHA-256", hint="expected 64 lower case hex digits")
    return value


def topic(tenant: str, device: str, leaf: str) -> str:
    """Return `edge/v1/{tenant}/{device}/{leaf}`.

    Raises:
        SchemaError: an id or the leaf is not one of the wire's.
    """
    if leaf not in UP and leaf not in DOWN:
        raise SchemaError(f"topic leaf `{leaf}` is not one of {', '.join(UP + DOWN)}")
    return f"{TOPIC_ROOT}/{check_id(tenant, 'tenant')}/{check_id(device, 'device')}/{leaf}"


def parse_topic(value: str) -> tuple[str, str, str]:
    """Return (tenant, device, leaf) of a topic.

    Raises:
        SchemaError: it is not a topic of the wire.
    """
    parts = value.split("/")
    if len(parts) != 5 or parts[:2] != TOPIC_ROOT.split("/") or parts[4] not in UP + DOWN:
        raise SchemaError(f"topic {value[:120]!r} is not {TOPIC_ROOT}/TENANT/DEVICE/LEAF")
    return check_id(parts[2], "tenant"), check_id(parts[3], "device"), parts[4]
