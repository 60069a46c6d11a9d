"""Secrets as people paste them."""

from cloud_sync.credentials import new_secret


def test_a_secret_can_be_pasted_as_an_argument_without_quoting() -> None:
    secrets = {new_secret() for _ in range(200)}
    assert len(secrets) == 200
    assert all(s.isalnum() and len(s) == 64 for s in secrets)
