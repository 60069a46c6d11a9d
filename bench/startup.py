"""What `edge` costs before it does anything, against an interpreter that does nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

from bench.run import cpu_ms

ROUNDS = 15
ABOUT = "Process start; the contract is under 60 ms of CPU for `edge --help`"


def cases() -> dict[str, Callable[[], float]]:
    def process(*words: str) -> Callable[[], float]:
        return lambda: cpu_ms(lambda: subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, check=True))

    return {
        "python -c pass": process("-c", "pass"),
        "edge --help": process("-m", "edge_sdk", "--help"),
        "import edge_sdk": process("-c", "import edge_sdk"),
        "import numpy, cv2": process("-c", "import numpy, cv2"),
    }
