"""Claim tokens, enrolment and the events of a device, without a network."""

from __future__ import annotations

import pytest

pytest.importorskip("fastapi", reason="needs edge-sdk[cloud]")

from cloud_sync import devices
from cloud_sync.credentials import check_credential
from cloud_sync.errors import AuthError, ConflictError, NotFoundError
from cloud_sync.ingest.records import Batch, parse
from cloud_sync.store import open_store
from edge_sdk.errors import SchemaError
from edge_sdk.schemas.codec import encode_batch


@pytest.fixture
def db(tmp_path):
    database = open_store(None, tmp_path)
    yield database
    database.close()


def add(db, name="cam-1", *, now=0.0, renew=False):
    return devices.add_device(db, "default", name, "generic-cpu", now=now, ttl_s=60, actor="test", renew=renew)


def test_a_token_is_stored_as_a_hash_and_ends_with_its_time(db):
    token = add(db)
    assert token not in str(db.query("SELECT * FROM devices"))
    with pytest.raises(AuthError, match="the claim token of `cam-1` has expired"):
        devices.enroll(db, token, None, now=60.0)
    got = devices.enroll(db, token, None, now=59.0)
    stored = db.query("SELECT credential_hash FROM devices")[0]["credential_hash"]
    assert check_credential(got.credential, stored)
    with pytest.raises(AuthError, match="has been used"):
        devices.enroll(db, token, "some-nonce", now=59.5)
    with pytest.raises(AuthError, match="has been used"):
        devices.enroll(db, token, "", now=59.5)


def test_a_new_token_replaces_the_one_before(db):
    first = add(db)
    second = add(db)
    with pytest.raises(AuthError, match="unknown or was replaced"):
        devices.enroll(db, first, None, now=1.0)
    devices.enroll(db, second, None, now=1.0)
    with pytest.raises(ConflictError, match="device `cam-1` is enrolled") as caught:
        add(db)
    assert caught.value.hint == "`edge device add cam-1 --renew` lets it enrol again"
    devices.enroll(db, add(db, renew=True), None, now=2.0)


@pytest.mark.parametrize("name", ["A/+", "#", "../B", "", "x" * 64, "Cam", "service.ingest"])
def test_a_name_that_would_mean_something_in_a_topic_is_refused(db, name):
    with pytest.raises(SchemaError, match="is not an id"):
        add(db, name)


def test_a_device_of_another_tenant_is_not_taken_over(db):
    add(db)
    with pytest.raises(ConflictError, match="belongs to another tenant"):
        devices.add_device(db, "acme", "cam-1", "p", now=0.0, ttl_s=60, actor="test", renew=True)
    with pytest.raises(NotFoundError, match="no device `cam-1`"):
        devices.retire_device(db, "acme", "cam-1", now=0.0, actor="test")
    with pytest.raises(NotFoundError):
        devices.get_device(db, "acme", "cam-1", now=0.0, silent_after_s=1)


def test_a_retired_device_may_come_back_with_a_new_token(db):
    devices.enroll(db, add(db), None, now=1.0)
    devices.retire_device(db, "default", "cam-1", now=2.0, actor="test")
    assert devices.list_devices(db, "default", now=2.0, silent_after_s=1) == []
    assert devices.list_devices(db, "default", now=2.0, silent_after_s=1, retired=True)[0]["status"] == "retired"
    devices.enroll(db, add(db, now=3.0), None, now=4.0)
    assert devices.get_device(db, "default", "cam-1", now=4.0, silent_after_s=1)["status"] == "offline"
    actions = [r["action"] for r in db.query("SELECT action FROM audit ORDER BY id")]
    assert actions == ["device.add", "device.enroll", "device.retire", "device.add", "device.enroll"]


def test_a_device_that_says_online_and_is_not_heard_is_silent(db):
    add(db)
    assert devices.get_device(db, "default", "cam-1", now=0.0, silent_after_s=10)["status"] == "new"
    devices.enroll(db, add(db), None, now=0.0)
    db.execute("UPDATE devices SET online = 1, last_seen = 100.0")
    assert devices.get_device(db, "default", "cam-1", now=110.0, silent_after_s=10)["status"] == "online"
    assert devices.get_device(db, "default", "cam-1", now=111.0, silent_after_s=10)["status"] == "silent"


def test_events_are_paged_over_batches_and_streams(db):
    add(db)
    with db.transaction() as tx:
        for stream in ("a", "b"):
            for q0 in range(0, 400, 10):
                kind = "alarm" if q0 == 100 else "result"
                events = [{"seq": q0 + i, "t": 1.0, "kind": kind} for i in range(10)]
                batch = parse("edge/v1/default/cam-1/t", encode_batch(stream, events), False)
                assert isinstance(batch, Batch)
                assert batch.write(tx, 1.0)
                assert not batch.write(tx, 2.0)
    seen, after, pages = [], None, 0
    while True:
        page, after = devices.events(db, "cam-1", stream=None, after=after, limit=37)
        seen += [(e["stream"], e["seq"]) for e in page]
        pages += 1
        if after is None:
            break
    assert seen == [(s, i) for s in ("a", "b") for i in range(400)]
    assert pages == 22
    only, following = devices.events(db, "cam-1", stream="b", after="395", limit=100)
    assert [e["seq"] for e in only] == [396, 397, 398, 399]
    assert following is None
    alarms, _ = devices.events(db, "cam-1", stream="a", after=None, kind="alarm")
    assert [e["seq"] for e in alarms] == list(range(100, 110))
    assert devices.events(db, "nobody", stream=None, after=None) == ([], None)
    with pytest.raises(NotFoundError, match="cursor `x` is not `stream:seq`"):
        devices.events(db, "cam-1", stream=None, after="x")
