"""The command `edge` as a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

import edge_sdk
from edge_sdk import cli

STDLIB_ONLY = (
    "import sys; from edge_sdk.cli import main; code = main({words!r}); "
    "bad = sorted(m for m in sys.modules if m.split('.')[0] in {heavy!r}); "
    "ours = sorted(m for m in sys.modules if m.startswith(('device_profiles', 'converters', 'cloud_sync'))); "
    "print(code, bad, ours)"
)
HEAVY = ("numpy", "cv2", "onnx", "onnxruntime", "openvino", "torch", "scipy", "paho", "fastapi", "tuf", "sqlite3")


def edge(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "edge_sdk", *words], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_every_verb(words):
    done = edge(*words)
    assert done.returncode == 0
    for name, verb in cli.VERBS.items():
        assert f"  {name:<10}{verb.help}" in done.stdout


def test_help_imports_nothing_but_the_base():
    code = STDLIB_ONLY.format(words=["--help"], heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "0 [] []"


def test_the_version_is_the_package_s():
    assert edge("--version").stdout == f"edge {edge_sdk.__version__}\n"


def test_an_unknown_verb_is_usage_and_gets_the_nearest():
    done = edge("convrt")
    assert done.returncode == 2
    assert done.stderr == "error: unknown verb `convrt`\nhint: did you mean `convert`?\n"
    assert done.stdout == ""


def test_a_word_like_no_verb_is_pointed_to_the_help():
    assert edge("xyzzy").stderr.endswith("hint: `edge --help` lists the verbs\n")


def test_with_json_a_failure_is_one_object_on_stdout():
    done = edge("convrt", "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout) == {
        "error": {
            "exit": 2,
            "kind": "usage",
            "message": "unknown verb `convrt`",
            "hint": "did you mean `convert`?",
        }
    }
    assert done.stderr == ""


@pytest.mark.parametrize("name", list(cli.VERBS))
def test_every_verb_has_help_and_knows_json_and_verbose(name):
    parser, module = cli.verb_parser(name)
    text = parser.format_help()
    assert "--json" in text
    assert "--verbose" in text
    assert callable(module.run)


@pytest.mark.parametrize("name", list(cli.VERBS))
def test_a_wrong_option_of_any_verb_is_usage_without_a_traceback(name, capsys):
    assert cli.main([name, "--no-such-option", "--json"]) == 2
    printed = capsys.readouterr()
    assert json.loads(printed.out)["error"]["kind"] == "usage"
    assert "Traceback" not in printed.err


def test_importing_a_verb_needs_no_heavy_package():
    code = (
        "import sys; from edge_sdk import cli; [cli.verb_parser(n) for n in cli.VERBS]; "
        f"print(sorted(m for m in sys.modules if m in {HEAVY[:-1]!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr


def test_a_verb_whose_package_is_missing_names_the_extra(monkeypatch):
    gone = cli.Verb("a_module_that_is_not_there", "", "models", "convert")
    monkeypatch.setitem(cli.VERBS, "convert", gone)
    with pytest.raises(cli.BackendError) as caught:
        cli.verb_parser("convert")
    assert caught.value.message == "`edge convert` needs `a_module_that_is_not_there`, which is not installed"
    assert caught.value.hint == "pip install 'edge-sdk[convert]'"


def test_a_third_party_adds_a_verb_by_entry_point(tmp_path, monkeypatch, capsys):
    info = tmp_path / "hello-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hello\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[edge_sdk.verbs]\nhello = hello_verb\n")
    (tmp_path / "hello_verb.py").write_text(
        "def add_arguments(parser): parser.add_argument('name')\n"
        "def run(args, output): output.result({'hello': args.name}, f'hello {args.name}')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert cli.main(["hello", "world"]) == 0
    assert capsys.readouterr().out == "hello world\n"


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["profile", "list", "--json"]])
def test_a_reader_that_closed_the_pipe_is_no_error(words):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "edge_sdk", *words]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writer)
    assert done.stderr == ""
    assert done.returncode == 0
