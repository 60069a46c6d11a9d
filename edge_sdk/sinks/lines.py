"""Results as lines of a file: JSON or CSV."""

from __future__ import annotations

import csv
import io
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_sdk.errors import SinkError
from edge_sdk.sinks.base import FrameResult
from edge_sdk.sinks.uri import place
from edge_sdk.sources.uri import Options

_OPTIONS = frozenset({"fps", "live", "append"})


class _LineFile:
    """A file that gets whole lines, each handed to the system at once, so that a kill leaves no half line.

    With `append` it goes on where the last whole line of an older run ended.
    """

    kind = "line file"

    def __init__(self, uri: str, options: Mapping[str, Any]) -> None:
        options = Options(options, _OPTIONS, f"a {self.kind} sink")
        self.uri = uri
        self.path = Path(place(uri))
        self._append = options.flag("append")
        self._file: io.FileIO | None = None

    def open(self) -> None:
        try:
            self._file = self.path.open("r+b" if self._append and self.path.is_file() else "wb", buffering=0)
            if self._append:
                _cut_half_line(self._file)
        except OSError as error:
            raise SinkError(
                f"`{self.path}` cannot be written: {(error.strerror or str(error)).lower()}",
                hint="check that the folder exists and may be written to",
            ) from None

    def close(self) -> None:
        if self._file is None:
            return
        file, self._file = self._file, None
        try:
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                os.fsync(file.fileno())
        except OSError as error:
            raise self._failed(error) from None
        finally:
            file.close()

    def _put(self, data: bytes) -> None:
        """Write all of `data`; on a full disk cut off what was written of it."""
        assert self._file is not None
        written = 0
        try:
            while written < len(data):
                written += self._file.write(data[written:]) or 0
        except OSError as error:
            if written and self._file.seekable():
                self._file.truncate(self._file.tell() - written)
                self._file.seek(0, os.SEEK_END)
            raise self._failed(error) from None

    def _failed(self, error: OSError) -> SinkError:
        return SinkError(f"`{self.path}`: {(error.strerror or str(error)).lower()}", hint="results are being lost")


class JsonLines(_LineFile):
    """One JSON object a line, as in the contract of `--out`."""

    kind = "jsonl"

    def write(self, item: FrameResult) -> None:
        line = json.dumps(item.to_json(), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        self._put(line.encode() + b"\n")


class Csv(_LineFile):
    """One line per detection, or one with the best class; a header first, a frame without result has no line.

    The last column has what second models said about the box, as `ppe=helmet:0.93;face=face:0.9`.
    """

    kind = "csv"
    columns = (
        *("frame", "t_s", "source", "model", "label", "class_id", "score"),
        *("x1", "y1", "x2", "y2", "track", "then"),
    )

    def open(self) -> None:
        super().open()
        if self._file is not None and (not self._append or self._file.tell() == 0):
            self._put(_csv_line(self.columns))

    def write(self, item: FrameResult) -> None:
        data = item.to_json()
        head = [data["frame"], data["t_s"], data["source"], data["model"]]
        rows = data.get("detections") or data.get("classes", [])[:1]
        lines = []
        for row in rows:
            values = [row.get("label"), row.get("class_id"), row.get("score"), *(row.get("box") or [None] * 4)]
            lines.append(_csv_line([*head, *values, row.get("track"), _said(row.get("then", {}))]))
        self._put(b"".join(lines))


def _said(then: Mapping[str, Any]) -> str | None:
    """Return labels and scores of second models' answers, the best class or every box."""
    parts = []
    for name, answer in then.items():
        rows = answer.get("detections") or answer.get("classes", [])[:1]
        parts += [f"{name}={row['label']}:{row['score']:g}" for row in rows]
    return ";".join(parts) or None


def _cut_half_line(file: io.FileIO) -> None:
    """Leave the file at the end of its last whole line."""
    end = at = file.seek(0, os.SEEK_END)
    while at > 0:
        start = max(0, at - 65536)
        file.seek(start)
        newline = file.read(at - start).rfind(b"\n")
        if newline >= 0:
            at = start + newline + 1
            break
        at = start
    if at < end:
        file.truncate(at)
    file.seek(at)


def _csv_line(values: Any) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue().encode()
