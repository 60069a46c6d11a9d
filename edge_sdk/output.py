"""What a verb may print: data on stdout, everything else on stderr, progress only on a terminal."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

_COLOURS = re.compile(r"(\x1b\[[0-9;]*m)")
_STYLES = {"bold": "1", "red": "31", "green": "32", "yellow": "33", "dim": "2"}


class Output:
    """The two streams of one command."""

    def __init__(self, *, as_json: bool = False, stdout: TextIO | None = None, stderr: TextIO | None = None) -> None:
        self.as_json = as_json
        self._out = stdout or sys.stdout
        self._err = stderr or sys.stderr
        self.live = self._err.isatty() and os.environ.get("TERM") != "dumb"
        self.color = self.live and not os.environ.get("NO_COLOR")
        self._progress_width = 0
        self._block_height = 0

    def result(self, data: Mapping[str, Any], text: str | None = None) -> None:
        """Print the command's result: exactly one JSON object with `--json`, else `text` (or the object, indented)."""
        if self.as_json:
            self._write(self._out, json.dumps(data, ensure_ascii=False, allow_nan=False) + "\n")
        else:
            shown = text if text is not None else json.dumps(data, indent=2, ensure_ascii=False)
            self._write(self._out, shown.rstrip("\n") + "\n")

    def note(self, message: str, style: str | None = None) -> None:
        """Print a line for people on stderr."""
        self._clear_progress()
        self._write(self._err, self.styled(message, style) + "\n")

    def error(self, message: str, hint: str | None) -> None:
        """Print an error and its next step for people on stderr."""
        self.note(f"{self.styled('error:', 'red')} {message}")
        if hint:
            self.note(f"{self.styled('hint:', 'yellow')} {hint}")

    def progress(self, message: str) -> None:
        """Replace the progress line; nothing when stderr is not a terminal."""
        if not self.live:
            return
        self._clear_progress()
        self._progress_width = len(message)
        self._write(self._err, message)

    def block(self, lines: Sequence[str]) -> None:
        """Draw lines in place of the block drawn before; nothing when stderr is not a terminal."""
        if not self.live:
            return
        from shutil import get_terminal_size

        width = get_terminal_size().columns
        up = f"\x1b[{self._block_height}F" if self._block_height else ""
        self._write(self._err, up + "".join(f"\x1b[2K{_cut(line, width)}\n" for line in lines))
        self._block_height = len(lines)

    def end_block(self) -> None:
        """Leave the block on the screen; the next one is drawn below it."""
        self._block_height = 0

    @contextmanager
    def step(self, message: str) -> Iterator[None]:
        """Show `message` while the block runs and how long it took when it ends well."""
        start = time.monotonic()
        self.progress(f"  … {message}")
        yield
        self.note(f"  {message} ({time.monotonic() - start:.1f} s)")

    def styled(self, text: str, style: str | None) -> str:
        return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if style and self.color else text

    def _clear_progress(self) -> None:
        if self._progress_width:
            self._write(self._err, "\r" + " " * self._progress_width + "\r")
            self._progress_width = 0

    @staticmethod
    def _write(stream: TextIO, text: str) -> None:
        stream.write(text)
        stream.flush()


def _cut(line: str, width: int) -> str:
    """Return a line cut to the terminal, not counting its colours, so that it stays one line."""
    seen, out = 0, []
    for part in _COLOURS.split(line):
        if part.startswith("\x1b"):
            out.append(part)
        else:
            out.append(part[: max(0, width - seen)])
            seen += len(part)
    return "".join(out)


def table(rows: Sequence[Sequence[Any]], header: Sequence[str]) -> str:
    """Return rows as text columns under a header; numbers are right aligned."""
    cells = [list(header)] + [["" if c is None else str(c) for c in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    numeric = [
        bool(rows) and all(isinstance(r[i], (int, float)) or r[i] is None for r in rows) for i in range(len(header))
    ]
    lines = []
    for row in cells:
        parts = [c.rjust(w) if num else c.ljust(w) for c, w, num in zip(row, widths, numeric, strict=True)]
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)
