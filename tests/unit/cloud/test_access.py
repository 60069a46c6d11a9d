"""Who may say and hear what: credentials, tokens, ACL files."""

from __future__ import annotations

import shutil
import subprocess

import pytest

pytest.importorskip("fastapi", reason="needs edge-sdk[cloud]")

from cloud_sync.broker.access import SERVICE_USER, AccessRules, covers, matches, render_acl, render_passwords
from cloud_sync.credentials import Keys, check_credential, hash_credential
from edge_sdk.errors import SyncError


@pytest.fixture
def rules() -> AccessRules:
    passwords = render_passwords(
        {"cam-1": hash_credential("one"), "cam-2": hash_credential("two")}, hash_credential("s")
    )
    return AccessRules.parse(passwords, render_acl({"default", "acme"}))


def test_a_device_speaks_and_hears_on_its_own_topics_only(rules):
    own, other = "edge/v1/default/cam-1/", "edge/v1/default/cam-2/"
    for leaf in ("t", "alarm", "state", "ota"):
        assert rules.allows("cam-1", own + leaf, "write")
        assert not rules.allows("cam-1", own + leaf, "read")
        assert not rules.allows("cam-1", other + leaf, "write")
    for leaf in ("desired", "ack", "cmd"):
        assert rules.allows("cam-1", own + leaf, "read")
        assert not rules.allows("cam-1", own + leaf, "write")
        assert not rules.allows("cam-1", other + leaf, "read")
    assert not rules.allows("cam-1", "edge/v1/strangers/cam-1/t", "write")
    assert not rules.allows("cam-1", "anything", "write")
    assert rules.allows(SERVICE_USER, other + "desired", "write")


@pytest.mark.parametrize(
    ("wanted", "allowed"),
    [
        ("edge/v1/default/cam-1/ack", True),
        ("edge/v1/default/cam-1/+", True),
        ("edge/v1/default/cam-1/#", True),
        ("edge/v1/default/cam-2/ack", False),
        ("edge/v1/default/+/ack", False),
        ("edge/v1/#", False),
        ("#", False),
        ("$share/g/edge/v1/default/cam-1/ack", False),
    ],
)
def test_a_device_may_subscribe_to_its_own_prefix_only(rules, wanted, allowed):
    assert rules.may_subscribe("cam-1", wanted) is allowed


def test_the_service_may_subscribe_to_every_device(rules):
    assert rules.may_subscribe(SERVICE_USER, "edge/v1/+/+/t")
    assert not rules.may_subscribe(SERVICE_USER, "#")


def test_filters_match_as_mqtt_says():
    assert matches("a/b/c", "a/+/c")
    assert matches("a", "a/#")
    assert matches("a/b/c", "#")
    assert not matches("a/b/c", "a/+")
    assert not matches("a/b", "a/b/c")
    assert covers("a/#", "a/+/c")
    assert covers("a/+", "a/b")
    assert not covers("a/+", "a/#")
    assert not covers("a/b", "a/+")


def test_only_the_right_secret_passes(rules):
    assert rules.authenticate("cam-1", "one")
    for name, secret in (("cam-1", "two"), ("cam-1", ""), ("cam-1", None), ("cam-3", "one"), (None, None)):
        assert not rules.authenticate(name, secret)
    for broken in ("", "plain", "$7$x$y$z", "$7$101$!!$!!", "$6$101$YQ==$YQ=="):
        assert not check_credential("one", broken)


@pytest.mark.skipif(shutil.which("mosquitto_passwd") is None, reason="mosquitto_passwd is not installed")
def test_the_hash_is_the_one_that_mosquitto_writes(tmp_path):
    file = tmp_path / "pw"
    subprocess.run(["mosquitto_passwd", "-b", "-c", str(file), "cam-1", "secret"], check=True, capture_output=True)
    stored = file.read_text().strip().split(":", 1)[1]
    assert check_credential("secret", stored)
    assert not check_credential("Secret", stored)


def test_the_operators_token_is_private_and_stays(tmp_path):
    first = Keys.open(tmp_path)
    path = tmp_path / "operator.token"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text().strip() == first.token
    path.chmod(0o644)
    again = Keys.open(tmp_path)
    assert again.token == first.token
    assert path.stat().st_mode & 0o777 == 0o600
    assert again.is_operator(first.token)
    assert not again.is_operator(first.token + "x")
    assert not again.is_operator("\u00e9")
    path.write_text("\n")
    with pytest.raises(SyncError, match="operator.token holds no token"):
        Keys.open(tmp_path)


def test_a_console_session_ends_and_cannot_be_forged():
    keys = Keys("t" * 43)
    cookie = keys.session(1000.0, 60.0)
    assert keys.is_session(cookie, 1059.0)
    assert not keys.is_session(cookie, 1060.0)
    expires, _, signature = cookie.partition(".")
    for forged in (f"{int(expires) + 1}.{signature}", f"{expires}.{'0' * 64}", expires, "", "²." + signature, "x.y"):
        assert not keys.is_session(forged, 1001.0)
    assert not Keys("u" * 43).is_session(cookie, 1001.0)
