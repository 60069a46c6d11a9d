"""Batches that are kept on the disk: what was accepted is answered once, whatever ends the process."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import pytest
from support import children_of, is_running, until

from edge_sdk.errors import SinkError
from edge_sdk.pipeline_config import PipelineConfig
from edge_sdk.serve_config import BatchConfig, ServeConfig
from edge_sdk.serving.batch import Batch
from edge_sdk.serving.batch_store import BatchStore
from edge_sdk.serving.batches import Batches
from edge_sdk.serving.callback import Callbacks
from edge_sdk.serving.exchange import HttpError
from edge_sdk.testing import build_artifact, color_frame

DYING = """
import os, resource, sys
from pathlib import Path
from edge_sdk.serve_config import BatchConfig, ServeConfig
from edge_sdk.serving.batches import Batches
from edge_sdk.serving.callback import Callbacks
from edge_sdk.serving.exchange import HttpError

folder, what = Path(sys.argv[1]), sys.argv[2]

def answer(image, number):
    print(image.decode(), flush=True)
    if image == b"deadly":
        os.abort()
    return {"said": image.decode()}

config = BatchConfig(folder=folder)
batches = Batches(config, Callbacks(ServeConfig(port=0, batches=config)), answer)
if what == "full":
    size = (folder / "batches.db").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
    try:
        batches.submit([b"x" * 1_000_000])
    except HttpError as error:
        print(error.status, error.kind, error.message)
    print(batches.listing())
else:
    if what == "submit":
        print(batches.submit([b"a", b"deadly", b"b"])["id"], flush=True)
    batches.start()
    batches.close(20)
"""


class World:
    """A service's batches without the service: `open` begins a life of it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked, self.lives = folder, [], []
        self.gate = threading.Event()
        self.gate.set()
        self.inside = threading.Event()

    def answer(self, image: bytes, _number: int) -> dict[str, Any]:
        self.inside.set()
        if not self.gate.wait(0.02):
            raise HttpError(503, "no free model", kind="busy")
        self.asked.append(image)
        return {"said": image.decode()}

    def open(self, **config: Any) -> Batches:
        own = BatchConfig(folder=self.folder, **config)
        callbacks = Callbacks(ServeConfig(port=0, batches=own))
        batches = Batches(own, callbacks, self.answer)
        self.lives.append((batches, callbacks))
        batches.start()
        return batches

    def end(self, drain_s: float = 0.0) -> None:
        """End the life as the service does."""
        batches, callbacks = self.lives.pop()
        batches.close(drain_s)
        callbacks.close(2.0)
        batches.release()


@pytest.fixture
def world(tmp_path: Path) -> Any:
    world = World(tmp_path / "kept")
    yield world
    while world.lives:
        world.end()


class Receiver:
    """Keeps the documents that are posted to it; answers `code`."""

    def __init__(self) -> None:
        self.posts: list[dict[str, Any]] = []
        self.code = 204
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver.posts.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(receiver.code)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/done"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def receiver() -> Any:
    receiver = Receiver()
    yield receiver
    receiver.server.shutdown()
    receiver.server.server_close()


def done(batches: Batches, name: str) -> dict[str, Any]:
    until(lambda: batches.state(name)["status"] not in ("queued", "running"))
    return batches.state(name)


def test_a_stopped_service_goes_on_where_it_was_and_tells_the_webhook_once(world, receiver):
    world.gate.clear()
    first = world.open()
    name = first.submit([b"a", b"b", b"c"], receiver.url)["id"]
    other = first.submit([b"d"])["id"]
    assert world.inside.wait(20)
    world.end()
    assert receiver.posts == []
    world.gate.set()
    second = world.open()
    found = done(second, name)
    assert [row["said"] for row in found["results"]] == ["a", "b", "c"]
    assert (found["status"], found["done"], found["images"], found["failed"]) == ("done", 3, 3, 0)
    assert done(second, other)["results"] == [{"said": "d"}]
    assert world.asked == [b"a", b"b", b"c", b"d"]
    until(lambda: second.state(name)["webhook"]["delivered"] is True)
    world.end()
    third = world.open()
    assert third.state(name) == found | {"webhook": third.state(name)["webhook"]}
    assert third.state(name)["webhook"] == {"host": "127.0.0.1", "delivered": True}
    assert world.asked == [b"a", b"b", b"c", b"d"]
    world.end()
    assert [(p["id"], p["status"], p["done"], len(p["results"])) for p in receiver.posts] == [(name, "done", 3, 3)]


def test_a_webhook_that_the_end_cut_short_is_told_by_the_next_service(world, receiver):
    receiver.code = 503
    first = world.open()
    name = first.submit([b"a"], receiver.url)["id"]
    done(first, name)
    until(lambda: receiver.posts)
    world.end()
    before = len(receiver.posts)
    receiver.code = 204
    second = world.open()
    until(lambda: second.state(name)["webhook"]["delivered"] is True)
    assert len(receiver.posts) == before + 1
    assert receiver.posts[-1]["results"] == [{"said": "a"}]


def test_a_webhook_that_is_no_longer_allowed_is_not_called(world, receiver):
    world.gate.clear()
    first = world.open()
    name = first.submit([b"a"], receiver.url)["id"]
    world.end()
    world.gate.set()
    second = world.open(webhook_hosts=("example.com",))
    webhook = done(second, name)["webhook"]
    assert webhook["delivered"] is False
    assert "may not call host" in webhook["error"]
    assert receiver.posts == []


def test_a_process_that_dies_loses_nothing_and_an_image_that_kills_twice_is_given_up(tmp_path):
    def life(what: str) -> list[str]:
        words = [sys.executable, "-c", DYING, str(tmp_path / "kept"), what]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
        codes.append(done.returncode)
        return done.stdout.split()

    codes: list[int] = []
    name, *asked = life("submit")
    assert asked == ["a", "deadly"]
    assert life("go on") == ["deadly"]
    assert life("go on") == ["b"]
    assert codes == [-signal.SIGABRT, -signal.SIGABRT, 0]
    last = World(tmp_path / "kept")
    found = last.open().state(name)
    last.end()
    assert (found["status"], found["failed"], last.asked) == ("done", 1, [])
    assert [row.get("said") for row in found["results"]] == ["a", None, "b"]
    assert found["results"][1]["error"]["message"] == "the process ended 2 times while this image was answered"


def test_a_disk_that_does_not_take_a_batch_refuses_it_and_says_so(tmp_path):
    words = [sys.executable, "-c", DYING, str(tmp_path / "kept"), "full"]
    said = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True).stdout
    assert said.startswith("507 storage the batch cannot be kept: ")
    assert said.rstrip().endswith("{'batches': []}")


def test_clean_stops_do_not_count_as_deaths(world):
    world.gate.clear()
    name = world.open().submit([b"slow"])["id"]
    for _ in range(3):
        assert world.inside.wait(20)
        world.inside.clear()
        world.end()
        batches = world.open()
    world.gate.set()
    assert done(batches, name)["results"] == [{"said": "slow"}]


def test_what_was_cancelled_or_forgotten_stays_so(world):
    world.gate.clear()
    first = world.open()
    cancelled, forgotten = first.submit([b"a"])["id"], first.submit([b"b"])["id"]
    for name in (cancelled, forgotten, forgotten):
        first.cancel(name)
    world.end()
    second = world.open()
    assert [b["id"] for b in second.listing()["batches"]] == [cancelled]
    assert second.state(cancelled)["status"] == "cancelled"
    assert world.asked == []


def test_one_service_uses_a_folder_and_it_is_private(world, tmp_path):
    world.open()
    with pytest.raises(SinkError, match="is in use by another service"):
        world.open()
    assert oct((world.folder / "batches.db").stat().st_mode & 0o777) == "0o600"
    (tmp_path / "file").write_text("")
    with pytest.raises(SinkError, match="batches cannot be kept in"):
        World(tmp_path / "file").open()


def test_a_damaged_file_is_set_aside_and_the_service_runs(world, caplog):
    world.folder.mkdir()
    (world.folder / "batches.db").write_bytes(b"no database at all" * 100)
    batches = world.open()
    assert batches.listing() == {"batches": []}
    assert (world.folder / "batches.db.damaged-1").exists()
    assert "its batches are lost" in caplog.text
    assert done(batches, batches.submit([b"a"])["id"])["results"] == [{"said": "a"}]


def test_a_file_damaged_in_the_middle_is_set_aside_and_the_service_runs(world, caplog):
    store = BatchStore(world.folder)
    for name in ("one", "two", "three"):
        store.add(Batch(name, deque([bytes(30_000)] * 8), 8, 1.0), None)
    store.close()
    file = world.folder / "batches.db"
    data = bytearray(file.read_bytes())
    data[3 * 4096 :] = b"\xff" * (len(data) - 3 * 4096)
    file.write_bytes(data)

    batches = world.open()
    assert batches.listing() == {"batches": []}
    assert (world.folder / "batches.db.damaged-1").stat().st_size == len(data)
    assert "its batches are lost" in caplog.text
    assert done(batches, batches.submit([b"a"])["id"])["results"] == [{"said": "a"}]


def test_the_folder_of_a_pipeline_file_is_relative_to_it(tmp_path):
    file = tmp_path / "p.toml"
    file.write_text(
        '[source]\nuri = "synthetic:64x48"\n[[stage]]\nmodel = "m.edge"\n'
        '[serve]\nport = 0\n[serve.batches]\nfolder = "kept"\n'
    )
    config = PipelineConfig.from_toml(file)
    assert config.serve is not None
    assert config.serve.batches.folder == tmp_path / "kept"


@pytest.mark.e2e
def test_edge_run_goes_on_with_a_batch_whose_worker_was_killed(tmp_path, free_port):
    artifact = build_artifact(tmp_path / "colors.edge").path
    image = base64.b64encode(cv2.imencode(".png", color_frame("red"))[1].tobytes()).decode()
    words = ["--model", artifact, "--serve", free_port, "--rate", 50, "--batches", tmp_path / "kept", "--json"]
    command = [sys.executable, "-m", "edge_sdk", "run", *map(str, words)]
    base = f"http://127.0.0.1:{free_port}"

    def get(path: str) -> dict[str, Any]:
        with urllib.request.urlopen(base + path, timeout=20) as answer:
            found: dict[str, Any] = json.load(answer)
            return found

    def ready() -> bool:
        with contextlib.suppress(OSError):
            return bool(get("/ready")["ready"])
        return False

    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            until(ready)
            body = json.dumps({"images": [image] * 200}).encode()
            with urllib.request.urlopen(f"{base}/v1/batches", data=body, timeout=20) as answer:
                address = json.load(answer)["url"]
            until(lambda: get(address)["done"] > 3)
            (worker,) = children_of(process.pid)
            os.kill(worker, signal.SIGKILL)
            until(lambda: not is_running(worker))
            until(ready)
            until(lambda: get(address)["status"] == "done")
            found = get(address + "?limit=1000")
            assert (found["done"], found["failed"], len(found["results"])) == (200, 0, 200)
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)
    assert process.returncode == 0
