"""Worker processes in another environment."""

from __future__ import annotations

import os
from pathlib import Path

from converters.environments import Environment
from converters.workers import Workshop

_KEPT = ("HOME", "LANG", "LC_ALL", "TMPDIR", "TMP", "TEMP", "XDG_CACHE_HOME", "LD_LIBRARY_PATH")


class ForeignWorkshop(Workshop):
    """A worker that the environment's Python runs: its script, or this package's own worker where it has none.

    Only what a process needs of this one's environment variables goes along.
    """

    def __init__(self, environment: Environment, python: Path, *, job_limit_s: float, memory_mb: int) -> None:
        super().__init__(environment.name, job_limit_s=job_limit_s, memory_mb=memory_mb)
        self.environment = environment
        self.environment_key = environment.key
        self.python = python

    def _command(self) -> list[str]:
        script = self.environment.script
        return [str(self.python), *(["-m", "converters.worker"] if script is None else [str(script)])]

    def _environment(self) -> dict[str, str]:
        bin_folder = self.python.parent
        found = {k: v for k, v in os.environ.items() if k in _KEPT}
        found |= {"PATH": f"{bin_folder}{os.pathsep}{os.environ.get('PATH', os.defpath)}", "PYTHONHASHSEED": "0"}
        if self.environment.script is None:
            found["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
        return found
