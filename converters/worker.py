"""The worker process: reads one JSON request a line on stdin, writes one JSON reply a line on its first stdout.

Everything that loads a model, an engine or an image of unknown origin happens here, so that a crash or a hang of
native code ends this process and not the command. What the tools print goes to stderr.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_sdk.errors import EdgeError

JOBS = {
    "inspect": "converters.frontends:inspect",
    "scan": "converters.images:scan",
    "reference": "converters.reference_forms:run",
    "skew": "converters.skew:compare",
    "beside": "converters.skew:beside",
    "ranges": "converters.convergence:ranges",
    "adopt": "converters.environments.adopt:adopt",
    "build": "converters.jobs:build",
    "sensitivity": "converters.jobs:sensitivity",
    "predict": "converters.evaluate:predict",
    "measure": "converters.measure:measure",
    "threads": "converters.measure:threads",
    "footprint": "converters.measure:footprint",
    "pack": "converters.pack:pack",
    "delta": "converters.pack:delta",
}
ORPHAN_S = 0.5
"""How often a worker looks whether the process that started it still lives."""


def main() -> int:
    """Serve until stdin closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        replies.write(json.dumps(_answer(request)) + "\n")
        replies.flush()
    return 0


def _end_with(parent: int) -> None:
    """End this process when its parent has died in the middle of a job; between jobs the end of stdin does that."""
    while os.getppid() == parent:
        time.sleep(ORPHAN_S)
    os._exit(1)


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    from converters.errors import disk_full, no_space
    from edge_sdk.errors import EdgeError

    try:
        module, _, name = JOBS[request["job"]].partition(":")
        return {"ok": True, "value": getattr(importlib.import_module(module), name)(**request["args"])}
    except EdgeError as error:
        full = disk_full(error)
        return _refusal(error if full is None else no_space(full))
    except MemoryError:
        return {
            "ok": False,
            "class": "ConversionError",
            "message": "out of memory",
            "hint": "use fewer or smaller images",
        }
    except Exception as error:
        full = disk_full(error)
        if full is not None:
            return _refusal(no_space(full))
        import traceback

        traceback.print_exc()
        text = str(error).strip().splitlines()
        said = f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
        return {"ok": False, "class": "ConversionError", "message": said, "hint": "run again with -v for the traceback"}


def _refusal(error: EdgeError) -> dict[str, Any]:
    return {"ok": False, "class": type(error).__name__, "message": error.message, "hint": error.hint}


if __name__ == "__main__":
    sys.exit(main())
