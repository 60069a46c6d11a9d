"""What a verb prints, and where."""

from __future__ import annotations

import io
import json

import pytest

from edge_sdk.output import Output, table


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_json_is_exactly_one_line_on_stdout():
    out, err = io.StringIO(), io.StringIO()
    output = Output(as_json=True, stdout=out, stderr=err)
    output.note("working")
    output.result({"ok": True, "name": "Mühle"}, "it worked")
    assert out.getvalue() == '{"ok": true, "name": "Mühle"}\n'
    assert err.getvalue() == "working\n"


def test_people_get_the_text():
    out = io.StringIO()
    Output(stdout=out, stderr=io.StringIO()).result({"ok": True}, "it worked\n\n")
    assert out.getvalue() == "it worked\n"


def test_without_a_text_people_get_the_object_indented():
    out = io.StringIO()
    Output(stdout=out, stderr=io.StringIO()).result({"ok": True})
    assert json.loads(out.getvalue()) == {"ok": True}
    assert "\n  " in out.getvalue()


def test_a_number_that_is_not_json_never_leaves():
    with pytest.raises(ValueError, match="JSON"):
        Output(as_json=True, stdout=io.StringIO(), stderr=io.StringIO()).result({"x": float("nan")})


def test_progress_is_for_terminals_only(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    pipe, terminal = io.StringIO(), Terminal()
    for stream in (pipe, terminal):
        output = Output(stdout=io.StringIO(), stderr=stream)
        output.progress("50 %")
        output.note("done")
    assert pipe.getvalue() == "done\n"
    assert terminal.getvalue() == "50 %\r    \rdone\n"


def test_colour_only_on_a_terminal_that_did_not_say_no(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert Output(stderr=Terminal()).styled("x", "red") == "\x1b[31mx\x1b[0m"
    assert Output(stderr=io.StringIO()).styled("x", "red") == "x"
    monkeypatch.setenv("NO_COLOR", "1")
    assert Output(stderr=Terminal()).styled("x", "red") == "x"


def test_a_step_says_what_it_did_and_how_long_it_took():
    err = io.StringIO()
    with Output(stdout=io.StringIO(), stderr=err).step("measure"):
        pass
    assert err.getvalue().startswith("  measure (0.")


def test_a_step_that_fails_claims_nothing():
    err = io.StringIO()
    with pytest.raises(ZeroDivisionError), Output(stdout=io.StringIO(), stderr=err).step("measure"):
        raise ZeroDivisionError
    assert err.getvalue() == ""


def test_a_table_aligns_numbers_to_the_right():
    assert table([["a", 5], ["bb", None], ["c", 123]], ["name", "n"]).splitlines() == [
        "name    n",
        "a       5",
        "bb",
        "c     123",
    ]


def test_a_table_without_rows_is_its_header():
    assert table([], ["name", "n"]) == "name  n"


def test_a_block_is_drawn_in_place_and_cut_to_the_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "8")
    monkeypatch.setenv("NO_COLOR", "")
    terminal = Terminal()
    output = Output(stdout=io.StringIO(), stderr=terminal)
    output.block(["one", output.styled("a long line", "red")])
    output.block(["two", "x"])
    output.end_block()
    output.block(["three"])
    assert terminal.getvalue() == (
        "\x1b[2Kone\n\x1b[2K\x1b[31ma long l\x1b[0m\n"  # first drawn
        "\x1b[2F\x1b[2Ktwo\n\x1b[2Kx\n"  # two lines up, drawn again
        "\x1b[2Kthree\n"  # a new block
    )


def test_a_block_is_for_terminals_only():
    pipe = io.StringIO()
    Output(stdout=io.StringIO(), stderr=pipe).block(["one"])
    assert pipe.getvalue() == ""
