"""Environments of tools that cannot live beside the others: real ones, without packages and without a network."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

pytest.importorskip("ai_edge_litert.tools")

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import tflite_parts as parts

from converters import candidates
from converters.environments import SCRIPTS, Environment, bridge, environment, find, how_to_make
from converters.environments import make as maker
from converters.environments.make import ensure
from converters.environments.workshop import ForeignWorkshop
from converters.frontends.base import Source, TensorInfo
from converters.recipe import Recipe
from converters.workers import Workshop
from device_profiles import profile as profiles
from device_profiles.machine import this_machine
from device_profiles.profile import Profile, RuntimeSupport
from edge_sdk.errors import BackendError, ConversionError, UsageError

BRIDGE = """
import shutil, sys
sys.path.insert(0, {scripts!r})
from lines import serve

def convert(source, out):
    {body}
    return {{"step": "copied by " + ("another Python" if sys.prefix != {prefix!r} else "this Python")}}

serve({{"convert": convert}})
"""
HERE = Profile(name="here", arch="any", runtimes=(RuntimeSupport(name="litert"),))


def tool(tmp_path: Path, body: str = "pass", **other) -> Environment:
    script = tmp_path / "bridge.py"
    script.write_text(BRIDGE.format(scripts=str(SCRIPTS), body=body, prefix=sys.prefix))
    known = {"name": "copier", "about": "copies", "requirements": (), "python": (10, 14), "disk_mb": 1, "pip": False}
    return Environment(**(known | {"reads": "onnx", "gives": "tflite", "script": script} | other))


def test_an_environment_is_made_once_and_found_after(tmp_path):
    wanted, said = tool(tmp_path), []

    assert find(wanted, tmp_path / "envs") is None
    first = ensure(wanted, root=tmp_path / "envs", say=said.append)
    second = ensure(wanted, root=tmp_path / "envs", say=said.append)

    assert first == second == find(wanted, tmp_path / "envs")
    assert len(said) == 1
    inside = subprocess.run([str(first), "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True)
    assert inside.stdout.strip() == str(first.parent.parent)


def test_other_pins_are_another_environment(tmp_path):
    one, other = tool(tmp_path, requirements=("a==1",)), tool(tmp_path, requirements=("a==2",))

    assert one.key != other.key
    assert one.version == "1"


def test_two_makers_of_one_environment_wait_for_each_other(tmp_path):
    wanted, said, pythons = tool(tmp_path), [], []

    def make() -> None:
        pythons.append(ensure(wanted, root=tmp_path / "envs", say=said.append))

    threads = [threading.Thread(target=make) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(set(pythons)) == 1
    assert sum("making the environment" in line and "another" not in line for line in said) == 1


def test_a_maker_that_was_killed_leaves_nothing_that_counts(tmp_path):
    root = tmp_path / "envs"
    wanted = tool(tmp_path)
    code = (
        "import sys, time, pathlib\n"
        "from converters.environments import Environment, make\n"
        "wanted = Environment(name='copier', about='', requirements=(), python=(10, 14), disk_mb=1, pip=False)\n"
        "def hang(*a):\n"
        "    (a[1] / 'half').touch(); print('begun', flush=True); time.sleep(600)\n"
        "make._fill = hang\n"
        "make.ensure(wanted, root=pathlib.Path(sys.argv[1]), say=lambda line: None)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(root)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "begun"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()

    assert find(wanted, root) is None
    assert [p.name for p in root.glob(".copier*/half")] == ["half"]
    ensure(wanted, root=root, say=lambda _: None)
    assert find(wanted, root) is not None
    assert not list(root.glob(".copier*"))


def test_what_pip_said_last_is_in_the_error_and_nothing_is_left(tmp_path):
    wanted = tool(tmp_path, pip=True, requirements=(str(tmp_path / "no-such-package"),))

    with pytest.raises(ConversionError, match="environment copier could not be made: pip said: .*no-such-package"):
        ensure(wanted, root=tmp_path / "envs", say=lambda _: None)
    assert find(wanted, tmp_path / "envs") is None
    assert not [p for p in (tmp_path / "envs").iterdir() if p.is_dir()]


def test_an_index_that_cannot_be_reached_is_said_so(tmp_path):
    words = "WARNING: Retrying after NewConnectionError: name resolution\nERROR: No matching distribution for x==1"

    error = maker._failed(tool(tmp_path), words)

    assert "the package index cannot be reached; pip said: ERROR: No matching distribution for x==1" in error.message
    assert "EDGE_ENVIRONMENTS" in str(error.hint)


def test_time_disk_and_python_have_limits(tmp_path):
    root = tmp_path / "envs"
    with pytest.raises(ConversionError, match="making the environment copier took too long and was stopped"):
        ensure(tool(tmp_path), root=root, say=lambda _: None, limit_s=0.0)
    with pytest.raises(ConversionError, match=r"needs 1000000001000 MB in .*, \d+ are free"):
        ensure(tool(tmp_path, disk_mb=10**12), root=root, say=lambda _: None)
    with pytest.raises(BackendError, match=r"needs Python 3\.2 to 3\.3, this is 3\.") as caught:
        ensure(tool(tmp_path, python=(2, 3)), root=root, say=lambda _: None)
    assert "python3.3" in str(caught.value.hint)


def test_a_name_that_is_none_gets_the_nearest_one():
    with pytest.raises(UsageError, match="unknown environment `onnx2ft`") as caught:
        environment("onnx2ft")
    assert "onnx2tf" in str(caught.value.hint)


@pytest.fixture
def worker():
    found = Workshop("main", job_limit_s=120, memory_mb=4096)
    yield found
    found.close()


def source(tmp_path: Path, output: str = "probs") -> Source:
    """A source in ONNX whose reference is the same network in TFLite."""
    path = parts.color_classifier(tmp_path / "reference.tflite", name=output)
    (tmp_path / "m.onnx").write_bytes(b"read by no one")
    return Source(
        path=str(tmp_path / "m.onnx"),
        format="onnx",
        sha256="0" * 64,
        input=TensorInfo(name="image", shape=(1, 32, 32, 3), dtype="float32"),
        layout="NHWC",
        outputs=(TensorInfo(name=output, shape=(1, 3), dtype="float32"),),
        forms={"onnx": str(tmp_path / "m.onnx"), "other": str(path)},
        reference="other",
    )


def place(tmp_path: Path, worker: Workshop, said: list[str], *tools: Environment) -> bridge.Place:
    return bridge.Place(work=tmp_path, worker=worker, say=said.append, bridges=tools, root=tmp_path / "envs")


def bridged(tmp_path: Path, worker: Workshop, said: list[str], body: str, *, make: bool = True) -> Source:
    given = source(tmp_path)
    given = Source.from_json(given.to_json() | {"forms": {"onnx": given.forms["onnx"]}, "reference": "onnx"})
    return bridge.extend(
        given, Recipe(make_environments=make), [HERE], place(tmp_path, worker, said, tool(tmp_path, body))
    )


def test_a_bridge_that_fails_is_a_reason_and_not_the_end(tmp_path, worker):
    said: list[str] = []

    found = bridged(tmp_path, worker, said, "raise RuntimeError('no such operator: Whirl')")

    assert "tflite" not in found.forms
    assert found.absent["tflite"] == "copier: RuntimeError: no such operator: Whirl"
    assert any("no such operator: Whirl" in line for line in said)


def test_a_bridge_that_ends_or_kills_its_process_is_a_reason(tmp_path, worker):
    for body, message in (("raise SystemExit(3)", "SystemExit: 3"), ("import os; os._exit(9)", "worker process died")):
        found = bridged(tmp_path, worker, [], body)
        assert message in found.absent["tflite"]


def test_without_the_environment_the_source_stays_as_it_is_and_the_reason_says_how(tmp_path, worker):
    said: list[str] = []

    found = bridged(tmp_path, worker, said, "pass", make=False)

    assert (found.absent, said) == ({}, [])
    assert list(found.forms) == ["onnx"]
    assert "make it once with `python -m converters.environments onnx2tf`" in str(bridge.why(found, "litert"))
    assert bridge.why(found, "onnxruntime") is None
    assert "2.7 GB" in how_to_make(environment("onnx2tf"))


def test_only_what_a_worker_needs_of_the_environment_goes_along(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGE_TOKEN", "secret")
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    python = ensure(tool(tmp_path), root=tmp_path / "envs", say=lambda _: None)
    shop = ForeignWorkshop(
        tool(tmp_path, "import os, json; open(out, 'w').write(json.dumps(dict(os.environ)))"),
        python,
        job_limit_s=60,
        memory_mb=1024,
    )
    try:
        reply = shop.call("convert", source="", out=str(tmp_path / "seen"))
    finally:
        shop.close()

    seen = json.loads((tmp_path / "seen").read_text())
    assert reply["step"] == "copied by another Python"
    assert "EDGE_TOKEN" not in seen
    assert "PYTHONPATH" not in seen
    assert seen["PATH"].startswith(str(python.parent))


def rows(given: Source, name: str, recipe: Recipe, monkeypatch, root: Path) -> dict[str, str | None]:
    monkeypatch.setenv("EDGE_ENVIRONMENTS", str(root))
    found = candidates.of_profile(profiles.load(name), recipe, given, this_machine(), calibrated=True)
    return {f"{r.candidate.precision} {r.candidate.method}".strip(): r.reason for r in found}


def test_a_runtime_in_an_environment_that_is_not_there_is_no_candidate_and_the_reason_says_how(tmp_path, monkeypatch):
    given = source(tmp_path)
    litert = Source.from_json(given.to_json() | {"forms": {"tflite": given.forms["other"]}, "reference": "tflite"})

    absent = rows(litert, "raspberry-pi-4-tflite", Recipe(), monkeypatch, tmp_path)
    asked = rows(litert, "raspberry-pi-4-tflite", Recipe(make_environments=True), monkeypatch, tmp_path)

    assert set(absent) == set(asked) == {"fp32", "fp16", "int8", "dynamic legacy"}
    assert all("tflite-runtime" in str(why) and "--make-environments" in str(why) for why in absent.values())
    assert set(asked.values()) == {None}


def test_the_dynamic_recipe_that_old_runtimes_get_wrong_is_left_to_the_new_ones(tmp_path, monkeypatch):
    given = source(tmp_path)
    litert = Source.from_json(given.to_json() | {"forms": {"tflite": given.forms["other"]}, "reference": "tflite"})

    new = rows(litert, "raspberry-pi-5", Recipe(runtime=("litert",)), monkeypatch, tmp_path)

    assert {k for k, why in new.items() if why is None} == {"fp32", "fp16", "int8", "dynamic", "dynamic legacy"}
