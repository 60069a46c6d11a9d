"""A worker on the device itself: builds go there over ssh, its own runtime answers and is timed, figures come back."""

from __future__ import annotations

import json
import shlex
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converters.workers import Workshop
from device_profiles.machine import Machine
from edge_sdk import __version__
from edge_sdk.errors import BackendError, ConversionError, SyncError
from edge_sdk.remote import Host, Remote

_FACTS = (
    "import json, edge_sdk, converters.evaluate, converters.measure; from device_profiles.machine import this_machine; "
    "from device_profiles.probe import describe; "
    "print(json.dumps({'version': edge_sdk.__version__, 'machine': describe(this_machine())}))"
)
_FACTS_S = 120.0


class RemoteWorkshop(Workshop):
    """A `Workshop` whose process runs on another machine; it predicts and measures, and builds nothing.

    Files that a job names are copied there, each once; predictions are copied back. Calls wait for one another, so
    that nothing else of ours runs on the device while something is timed. The limit of memory is not watched there.

    Raises:
        SyncError: the host cannot be reached.
        BackendError: it has not edge-sdk of this version.
    """

    def __init__(self, host: Host, *, job_limit_s: float, memory_mb: int) -> None:
        super().__init__(host.label(), job_limit_s=job_limit_s, memory_mb=memory_mb)
        self.remote = Remote(host)
        self._sent: dict[Path, str] = {}
        self._one = threading.RLock()
        try:
            self.machine = self._facts()
        except BaseException:
            self.remote.close()
            raise

    def _facts(self) -> Machine:
        done = self.remote.python(["-c", _FACTS], timeout_s=_FACTS_S)
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise BackendError(
                f"edge-sdk on {self.name} does not work: {said[-1] if said else f'exit {done.returncode}'}",
                hint="run `edge doctor` there",
            )
        try:
            facts = json.loads(done.stdout)
            version, machine = str(facts["version"]), facts["machine"]
        except (ValueError, KeyError, TypeError):
            raise SyncError(f"{self.name} did not say what it is: {done.stdout[:200]!r}") from None
        if version != __version__:
            raise BackendError(
                f"edge-sdk on {self.name} is {version}, this one is {__version__}",
                hint="figures of two versions cannot be compared: install the same one there",
            )
        return Machine(**(machine | {"isa": tuple(machine["isa"])}))

    def _command(self) -> list[str]:
        host = self.remote.host
        python = shlex.quote(host.python)
        script = f"cd {shlex.quote(self.remote.folder)} && PYTHONHASHSEED=0 exec {python} -m converters.worker"
        return self.remote.command(["sh", "-c", script])

    def call(self, job: str, **args: Any) -> Any:
        """Run one job there; paths in its arguments are files here.

        Raises:
            EdgeError: the error the job raised there.
            ConversionError: it took too long, the connection broke, or the job is not one of a device.
        """
        with self._one:
            if job == "predict":
                return self._predict(args)
            if job not in ("measure", "threads", "footprint"):
                raise ConversionError(f"a device does not do the step `{job}`")
            there = dict(args) | {"image": self._send([Path(args["image"])])[0]}
            if "builds" in args:
                there["builds"] = [dict(b) | {"model": self._send_model(b["model"])} for b in args["builds"]]
            else:
                there["model"] = self._send_model(args["model"])
            return super().call(job, **there)

    def _predict(self, args: Mapping[str, Any]) -> Any:
        there = dict(args) | {"model": self._send_model(args["model"])}
        there["images"] = self._send([Path(i) for i in args["images"]])
        if args.get("against") is not None:
            there["against"] = self._send([Path(args["against"])])[0]
        made = {key: Path(args[key]) for key in ("out", "keep") if args.get(key) is not None}
        there |= {key: f"{self.remote.folder}/{path.name}" for key, path in made.items()}
        answer = super().call("predict", **there)
        for path in made.values():
            self.remote.get(path.name, path)
        return answer

    def _send_model(self, model: str) -> str:
        main = Path(model)
        weights = main.with_suffix(".bin")
        return self._send([main, weights] if main.suffix == ".xml" and weights.is_file() else [main])[0]

    def _send(self, paths: list[Path]) -> list[str]:
        """Copy the files that are not there yet, those of one call side by side; return their names there."""
        fresh = [p for p in dict.fromkeys(paths) if p not in self._sent]
        if fresh:
            folder = f"f{len(self._sent)}"
            twice = len({p.name for p in fresh}) < len(fresh)
            names = {p: f"{folder}/{f'{i}-' if twice else ''}{p.name}" for i, p in enumerate(fresh)}
            self.remote.put({name: path for path, name in names.items()})
            self._sent |= {path: f"{self.remote.folder}/{name}" for path, name in names.items()}
        return [self._sent[p] for p in paths]

    def close(self) -> None:
        """Stop the worker and remove what was copied."""
        super().close()
        self.remote.close()
