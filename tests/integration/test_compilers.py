"""The contract of compilers, kept by a stand-in that is a real program on PATH."""

from __future__ import annotations

import os
import stat
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from converters import compilers
from converters.cache import Cache
from converters.compilers.base import Tool, absent, compile_model
from converters.compilers.tools import EDGETPU, HAILO, RKNN, TENSORRT
from edge_sdk.errors import BackendError, ConversionError, UsageError

PROGRAM = """#!{python}
import os, pathlib, sys, time
log = pathlib.Path({log!r})
with log.open("a") as file:
    file.write(" ".join(sys.argv[1:2]) + "\\n")
if "--version" in sys.argv:
    print(os.environ.get("STANDIN_VERSION", "standin 1.0")); sys.exit(0)
mode = sys.argv[3]
if mode == "fail":
    print("op 12: not supported", file=sys.stderr); sys.exit(3)
if mode == "hang":
    time.sleep(600)
if mode != "nothing":
    pathlib.Path(sys.argv[2]).write_bytes(b"compiled:" + pathlib.Path(sys.argv[1]).read_bytes())
"""
TOOL = Tool(
    name="standin",
    program="standinc",
    version=("standinc", "--version"),
    commands=(("standinc", "{input}", "{output}", "{mode}"),),
    output="{stem}_standin.tflite",
    reads=".tflite",
    precisions=("int8",),
    install="apt install standinc",
    options={"mode": "good"},
)


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Path:
    """The program on PATH; the file has a line for each time it ran."""
    log = tmp_path / "runs"
    program = tmp_path / "bin" / "standinc"
    program.parent.mkdir()
    program.write_text(PROGRAM.format(python=sys.executable, log=str(log)))
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return log


@pytest.fixture
def model(tmp_path) -> Path:
    path = tmp_path / "cars.tflite"
    path.write_bytes(b"weights")
    return path


def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", limit_mb=1, say=lambda _: None)


def test_a_compiler_turns_a_build_into_the_file_it_promises(runs, model, tmp_path):
    made = compile_model(TOOL, model, tmp_path / "out", limit_s=30)

    assert made.file == tmp_path / "out" / "cars_standin.tflite"
    assert made.file.read_bytes() == b"compiled:weights"
    assert made.step == "standin standin 1.0: standinc MODEL OUT good"
    assert not made.cached


def test_the_same_model_options_and_version_come_from_the_cache(runs, model, tmp_path, monkeypatch):
    def made(name: str, mode: str = "good"):
        return compile_model(
            TOOL, model, tmp_path / name, options={"mode": mode}, limit_s=30, cache=cache(tmp_path)
        )  # fmt: skip

    first, again, other = made("a"), made("b"), made("c", "better")
    model.write_bytes(b"trained on")
    later = made("d")
    monkeypatch.setenv("STANDIN_VERSION", "standin 2.0")
    newer = made("e")

    assert [m.cached for m in (first, again, other, later, newer)] == [False, True, False, False, False]
    assert again.file.read_bytes() == first.file.read_bytes()
    assert len({m.key for m in (first, other, later, newer)}) == 4


def test_a_damaged_cache_entry_is_made_again(runs, model, tmp_path):
    first = compile_model(TOOL, model, tmp_path / "a", limit_s=30, cache=cache(tmp_path))
    (entry,) = (tmp_path / "cache").rglob("cars_standin.tflite")
    entry.write_bytes(b"half")

    again = compile_model(TOOL, model, tmp_path / "b", limit_s=30, cache=cache(tmp_path))

    assert again.key == first.key
    assert not again.cached
    assert again.file.read_bytes() == b"compiled:weights"


def test_compiled_files_share_the_limit_of_the_cache_and_the_unused_ones_go_first(runs, model, tmp_path):
    model.write_bytes(b"x" * 400_000)
    kept = []
    for index, mode in enumerate(("a", "b", "c")):
        made = compile_model(
            TOOL, model, tmp_path / mode, options={"mode": mode}, limit_s=30, cache=cache(tmp_path)
        )  # fmt: skip
        entry = tmp_path / "cache" / made.key[:2] / made.key
        os.utime(entry / "entry.json", (index, index))
        kept.append(entry)

    assert [entry.exists() for entry in kept] == [False, True, True]


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("fail", r"the compiler `standin` failed \(exit 3\): op 12: not supported"),
        ("nothing", "ended well and left no `cars_standin.tflite`"),
        ("hang", "took longer than 1 s and was stopped"),
    ],
)
def test_a_compiler_that_fails_hangs_or_makes_nothing_is_one_message_and_leaves_nothing(
    runs, model, tmp_path, mode, message
):
    with pytest.raises(ConversionError, match=message):
        compile_model(TOOL, model, tmp_path / "out", options={"mode": mode}, limit_s=1 if mode == "hang" else 30)
    assert not list((tmp_path / "out").glob("*"))


def test_an_absent_compiler_is_named_with_the_way_to_get_it(model, tmp_path):
    gone = replace(TOOL, program="no-such-compiler")

    assert absent(gone) == "needs the compiler `no-such-compiler`, which is not installed here: apt install standinc"
    with pytest.raises(BackendError, match="needs `no-such-compiler`, which is not installed here") as caught:
        compile_model(gone, model, tmp_path / "out", limit_s=5)
    assert caught.value.hint == "apt install standinc"


def test_what_a_compiler_does_not_take_is_refused_before_it_runs(runs, model, tmp_path):
    onnx = model.with_suffix(".onnx")
    onnx.write_bytes(b"x")
    with pytest.raises(BackendError, match=r"reads \.tflite files, not `cars\.onnx`"):
        compile_model(TOOL, onnx, tmp_path / "out", limit_s=5)
    with pytest.raises(BackendError, match="has no option `speed`"):
        compile_model(TOOL, model, tmp_path / "out", options={"speed": "1"}, limit_s=5)
    with pytest.raises(BackendError, match="runs on the device itself"):
        compile_model(replace(TOOL, where="device"), model, tmp_path / "out", limit_s=5)
    assert not runs.exists()


def test_a_compiler_without_a_version_cannot_be_cached_rightly_and_is_refused(runs, model, tmp_path):
    mute = replace(TOOL, version=("false",))
    with pytest.raises(BackendError, match="`standinc` does not say its version: exit 1"):
        compile_model(mute, model, tmp_path / "out", limit_s=5)


def test_the_known_compilers_have_a_program_a_version_and_a_way_to_get_them():
    table = compilers.registry()

    assert set(table.names()) >= {"edgetpu", "tensorrt", "rknn", "hailo"}
    assert [table.load(t.name) for t in (EDGETPU, TENSORRT, RKNN, HAILO)] == [EDGETPU, TENSORRT, RKNN, HAILO]
    for tool in (EDGETPU, TENSORRT, RKNN, HAILO):
        assert tool.install
        assert tool.version
        words = {"input": "m", "folder": "d", "output": "o", "stem": "s", **tool.options}
        assert [[part.format(**words) for part in command] for command in tool.commands]
    with pytest.raises(UsageError, match="unknown compiler `edgetpuu`"):
        table.load("edgetpuu")
