"""Which broker the service uses: mosquitto where it is installed, else the embedded one, or somebody else's by URL."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable

from cloud_sync.broker.base import Broker, ExternalBroker
from cloud_sync.broker.child import EmbeddedBroker, MosquittoBroker
from cloud_sync.settings import Settings
from cloud_sync.store.base import Database
from edge_sdk.errors import BackendError


def find_mosquitto() -> str | None:
    """Return the path of mosquitto; Debian installs it outside the search path of ordinary users."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin")


def make_broker(settings: Settings, db: Database, *, on_restart: Callable[[], None] = lambda: None) -> Broker:
    """Return the broker that the settings ask for, not yet started.

    Raises:
        BackendError: mosquitto is asked for and not installed.
    """
    kind = settings.broker
    if "://" in kind:
        return ExternalBroker(settings, db)
    mosquitto = find_mosquitto()
    if kind == "mosquitto" and mosquitto is None:
        raise BackendError(
            "mosquitto is not installed", hint="`apt install mosquitto`, or use `--broker embedded` to try things out"
        )
    if kind == "embedded" or mosquitto is None:
        if importlib.util.find_spec("amqtt") is None:
            raise BackendError(
                "there is no broker to start: neither mosquitto nor `amqtt` is installed",
                hint="`apt install mosquitto`, or pip install 'edge-sdk[cloud]'",
            )
        return EmbeddedBroker(settings, db, on_restart)
    return MosquittoBroker(settings, db, on_restart, executable=mosquitto)
