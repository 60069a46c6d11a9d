"""`edge profile`."""

from __future__ import annotations

import json

import pytest

from device_profiles import profile
from edge_sdk import cli


def edge(capsys, *words) -> tuple[int, dict]:
    code = cli.main([*map(str, words), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_list_names_every_shipped_profile_and_says_which_are_this_machine(capsys):
    code, data = edge(capsys, "profile", "list")

    assert code == 0
    assert [p["name"] for p in data["profiles"]] == list(profile.builtin_names())
    assert all({"name", "arch", "isa", "runtimes", "limits", "this_machine"} <= set(p) for p in data["profiles"])


def test_show_prints_a_profile_that_can_be_saved_as_a_file(capsys, tmp_path):
    assert cli.main(["profile", "show", "raspberry-pi-5"]) == 0
    (tmp_path / "p.toml").write_text(capsys.readouterr().out)

    assert profile.load(tmp_path / "p.toml") == profile.load("raspberry-pi-5")


def test_probe_writes_a_file_that_check_accepts(capsys, tmp_path):
    pytest.importorskip("onnxruntime")
    code, data = edge(capsys, "profile", "probe", "--name", "bench-1", "--out", tmp_path / "p.toml")
    assert (code, data["name"]) == (0, "bench-1")

    code, data = edge(capsys, "profile", "check", tmp_path / "p.toml")
    assert (code, data["ok"], data["missing_evidence"]) == (0, True, [])


def test_check_names_the_figures_without_evidence(capsys, tmp_path):
    (tmp_path / "p.toml").write_text('name = "x"\narch = "any"\ncores = 4\n[[runtime]]\nname = "onnxruntime"\n')

    code, data = edge(capsys, "profile", "check", tmp_path / "p.toml")

    assert (code, data["ok"], data["missing_evidence"]) == (0, False, ["cores", "runtime.onnxruntime"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("profile", "show", "rasberry-pi-5"), "unknown profile `rasberry-pi-5`"),
        (("profile", "probe", "--name", "My PC"), "--name `My PC` is not an id"),
        (("profile", "check", "no.toml"), "no such file: no.toml"),
        (("profile", "probe", "--out", "/nowhere/p.toml"), "cannot write /nowhere/p.toml: No such file or directory"),
    ],
)
def test_mistakes_are_exit_2_with_one_message(capsys, words, message):
    code, data = edge(capsys, *words)

    assert (code, data["error"]["message"]) == (2, message)
    assert data["error"]["hint"]
