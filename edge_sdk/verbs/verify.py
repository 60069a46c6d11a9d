"""`edge verify ARTIFACT`: does it answer on this machine as it did where it was converted?"""

from __future__ import annotations

import argparse
import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_sdk.errors import EXIT_OK, ArtifactError, EdgeError, GuardrailError, UsageError, WorkerError
from edge_sdk.output import Output

if TYPE_CHECKING:
    from edge_sdk.artifact import Artifact

Step = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", type=Path, help="an .edge file")
    parser.add_argument(
        "--timeout-s",
        type=float,
        default=300.0,
        metavar="S",
        help="give up on the engine after S seconds (default: 300)",
    )


def run(args: argparse.Namespace, output: Output) -> int:
    """Check the file; load it in its runtime and run its golden inputs, in a process of its own."""
    artifact, code = open_artifact(args.artifact, output)
    if artifact is None:
        return code
    steps, error = _run_child(args.artifact, args.timeout_s)
    failed = [step["name"] for step in steps if not step["ok"]]
    if error is None and failed:
        error = GuardrailError(
            f"`{args.artifact.name}` does not answer as expected on this machine: {', '.join(failed)}",
            hint="convert the model for this machine's profile (`edge profile probe`)",
        ).to_json()
    return _report(output, artifact.sha256, [form_step(), *steps], error)


def open_artifact(path: Path, output: Output) -> tuple[Artifact | None, int]:
    """Open an artifact; when it is refused, print that with the keys that a check always has, and return the exit code.

    Raises:
        UsageError: there is no such file.
    """
    from edge_sdk.artifact import Artifact

    if not path.is_file():
        raise UsageError(f"no such file: {path}", hint="give an .edge file")
    try:
        return Artifact.open(path), EXIT_OK
    except ArtifactError as error:
        step = {"name": "form", "ok": False, "detail": error.message}
        return None, _report(output, _digest(path), [step], error.to_json())


def form_step() -> Step:
    """Return the check of an artifact that could be opened."""
    return {"name": "form", "ok": True, "detail": "names, hashes and contents are as the manifest says"}


def _run_child(path: Path, timeout_s: float) -> tuple[list[Step], dict[str, Any] | None]:
    command = [sys.executable, "-m", "edge_sdk.verbs.verify_child", str(path)]
    try:
        child = subprocess.run(command, stdout=subprocess.PIPE, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return _died(f"the engine did not answer within {timeout_s:g} s", "the model hangs it, or give --timeout-s")
    try:
        report = json.loads(child.stdout.splitlines()[-1])
        return report["steps"], report["error"]
    except (IndexError, ValueError, KeyError, TypeError):
        return _died(f"the engine took its process down: {_ending(child.returncode)}", "this model crashes this engine")


def _died(message: str, hint: str) -> tuple[list[Step], dict[str, Any]]:
    error: EdgeError = WorkerError(message, hint=hint)
    return [{"name": "load", "ok": False, "detail": message}], error.to_json()


def _ending(code: int) -> str:
    try:
        return signal.Signals(-code).name if code < 0 else f"exit {code}"
    except ValueError:
        return f"signal {-code}"


def _report(output: Output, digest: str | None, steps: list[Step], error: dict[str, Any] | None) -> int:
    """Print the checks, and the error below them, and return the exit code."""
    data: dict[str, Any] = {"digest": digest, "ok": error is None, "checks": steps}
    if error is not None:
        data["error"] = error
    lines = [f"{'ok  ' if step['ok'] else 'FAIL'}  {step['name']}: {step['detail']}" for step in steps]
    output.result(data, "\n".join(lines))
    if error is None:
        return EXIT_OK
    if not output.as_json:
        output.note(f"{output.styled('error:', 'red')} {error['message']}")
        output.note(f"{output.styled('hint:', 'yellow')} {error['hint']}")
    return int(error["exit"])


def _digest(path: Path) -> str | None:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError:
        return None
    return digest.hexdigest()
