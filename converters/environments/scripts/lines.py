"""The worker's side of a bridge, standard library only: one JSON request a line in, one JSON reply a line out."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any


def serve(jobs: dict[str, Callable[..., Any]]) -> None:
    """Answer requests until stdin closes; what the tools print goes to stderr."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        replies.write(json.dumps(_answer(jobs, request)) + "\n")
        replies.flush()


def _answer(jobs: dict[str, Callable[..., Any]], request: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"ok": True, "value": jobs[request["job"]](**request["args"])}
    except BaseException as error:
        # Tools may end with sys.exit: the reply says so.
        traceback.print_exc()
        text = str(error).strip().splitlines()
        said = f"{type(error).__name__}: {text[0][:300]}" if text else type(error).__name__
        return {"ok": False, "class": "ConversionError", "message": said, "hint": None}
