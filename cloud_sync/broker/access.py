"""Who may connect to the broker and what each may say and hear: a password file and an ACL file in mosquitto's format.

Both files are a pure function of the database, so a crash at any moment is repaired by writing them again. That is why
they are files reloaded on SIGHUP and not mosquitto's dynamic-security plug-in, which keeps a second truth of its own
that would have to be reconciled, one role per device (its 2.0 ACLs know no `%u`). The price: mosquitto grants a
subscription to `#`, and then delivers nothing through it that the ACL does not let the subscriber read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from cloud_sync.credentials import check_credential
from edge_sdk.schemas.ids import DOWN, TOPIC_ROOT, UP

SERVICE_USER = "service.ingest"  # the dot keeps it out of the devices' names
Access = Literal["read", "write"]


def render_passwords(devices: Mapping[str, str], service_hash: str) -> str:
    """Return the password file: the service and every device with its `$7$` hash."""
    lines = [f"{SERVICE_USER}:{service_hash}"] + [f"{name}:{devices[name]}" for name in sorted(devices)]
    return "\n".join(lines) + "\n"


def render_acl(tenants: Iterable[str]) -> str:
    """Return the ACL file: a device speaks and hears on its own topics only, the service on all."""
    lines = [f"user {SERVICE_USER}", f"topic readwrite {TOPIC_ROOT}/#", ""]
    for tenant in sorted(tenants):
        lines += [f"pattern write {TOPIC_ROOT}/{tenant}/%u/{leaf}" for leaf in UP]
        lines += [f"pattern read {TOPIC_ROOT}/{tenant}/%u/{leaf}" for leaf in DOWN]
    return "\n".join(lines) + "\n"


@dataclass(frozen=True, slots=True)
class AccessRules:
    """The two files as the embedded broker reads them."""

    passwords: Mapping[str, str]
    users: Mapping[str, tuple[tuple[str, str], ...]]
    patterns: tuple[tuple[str, str], ...]

    @classmethod
    def parse(cls, passwords: str, acl: str) -> AccessRules:
        """Read what `render_passwords` and `render_acl` wrote."""
        hashes = dict(line.split(":", 1) for line in passwords.splitlines() if ":" in line)
        users: dict[str, list[tuple[str, str]]] = {}
        patterns: list[tuple[str, str]] = []
        user = ""
        for line in acl.splitlines():
            words = line.split()
            if len(words) == 2 and words[0] == "user":
                user = words[1]
            elif len(words) == 3 and words[0] == "topic":
                users.setdefault(user, []).append((words[1], words[2]))
            elif len(words) == 3 and words[0] == "pattern":
                patterns.append((words[1], words[2]))
        return cls(hashes, {k: tuple(v) for k, v in users.items()}, tuple(patterns))

    def authenticate(self, username: str | None, password: str | None) -> bool:
        stored = self.passwords.get(username or "")
        return stored is not None and check_credential(password or "", stored)

    def allows(self, username: str, topic: str, access: Access) -> bool:
        """Return whether `username` may publish to (`write`) or receive from (`read`) a topic without wildcards."""
        rules = self.users.get(username, ()) + tuple((a, t.replace("%u", username)) for a, t in self.patterns)
        return any(a in (access, "readwrite") and matches(topic, rule) for a, rule in rules)

    def may_subscribe(self, username: str, wanted: str) -> bool:
        """Return whether a filter stays inside what `username` may read or inside its own device's prefix."""
        if username in self.users:
            return any(covers(rule, wanted) for a, rule in self.users[username] if a in ("read", "readwrite"))
        own = {rule.replace("%u", username).rpartition("/")[0] for _, rule in self.patterns}
        return wanted.rpartition("/")[0] in own


def matches(topic: str, wanted: str) -> bool:
    """Return whether an MQTT filter matches a topic."""
    filter_levels, levels = wanted.split("/"), topic.split("/")
    for index, level in enumerate(filter_levels):
        if level == "#":
            return True
        if index >= len(levels) or level not in ("+", levels[index]):
            return False
    return len(filter_levels) == len(levels)


def covers(outer: str, inner: str) -> bool:
    """Return whether every topic that filter `inner` matches is matched by filter `outer`."""
    a, b = outer.split("/"), inner.split("/")
    for index, level in enumerate(a):
        if level == "#":
            return True
        if index >= len(b) or b[index] == "#" or (level != "+" and level != b[index]):
            return False
    return len(a) == len(b)
