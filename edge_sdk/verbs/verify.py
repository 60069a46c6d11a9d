"""`edge verify ARTIFACT`: does it answer on this machine as it did where it was converted?"""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_sdk.errors import EXIT_OK, ArtifactError, EdgeError, GuardrailError, UsageError
from edge_sdk.output import Output

if TYPE_CHECKING:
    from edge_sdk.artifact import Artifact


@dataclass(frozen=True, slots=True)
class Step:
    """One check and the exit code that its failure ends with."""

    name: str
    ok: bool
    detail: str
    exit_code: int = EXIT_OK

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "ok": self.ok, "detail": self.detail}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", type=Path, help="an .edge file")


def run(args: argparse.Namespace, output: Output) -> int:
    """Check the file, load it in its runtime, run its golden inputs."""
    artifact, form = open_artifact(args.artifact, output)
    if artifact is None:
        return form.exit_code
    steps = [form]
    try:
        model = artifact.load()
    except EdgeError as error:
        steps.append(Step("load", False, error.message, error.exit_code))
        return _report(output, artifact.sha256, steps, error)
    with model:
        steps.append(Step("load", True, f"runs in {artifact.manifest.runtime.name}"))
        try:
            steps += _golden(artifact, model)
        except EdgeError as error:
            steps.append(Step("golden", False, error.message, error.exit_code))
            return _report(output, artifact.sha256, steps, error)
    failed = [s.name for s in steps if not s.ok]
    refusal = GuardrailError(
        f"`{args.artifact.name}` does not answer as expected on this machine: {', '.join(failed)}",
        hint="convert the model for this machine's profile (`edge profile probe`)",
    )
    return _report(output, artifact.sha256, steps, refusal if failed else None)


def open_artifact(path: Path, output: Output) -> tuple[Artifact | None, Step]:
    """Open an artifact; when it is refused, print the refusal with the keys that a check always has.

    Raises:
        UsageError: there is no such file.
    """
    from edge_sdk.artifact import Artifact

    if not path.is_file():
        raise UsageError(f"no such file: {path}", hint="give an .edge file")
    try:
        return Artifact.open(path), Step("form", True, "names, hashes and contents are as the manifest says")
    except ArtifactError as error:
        step = Step("form", False, error.message, error.exit_code)
        _report(output, _digest(path), [step], error)
        return None, step


def _golden(artifact: Artifact, model: Any) -> list[Step]:
    from edge_sdk.artifact import check_golden

    cases = artifact.golden()
    if not cases:
        return [Step("golden", True, "the artifact has no golden inputs, nothing was run")]
    checks = check_golden(model, cases)
    return [Step(c.name, c.ok, c.detail, EXIT_OK if c.ok else GuardrailError.exit_code) for c in checks]


def _report(output: Output, digest: str | None, steps: list[Step], error: EdgeError | None) -> int:
    """Print the checks, and the error below them, and return the exit code."""
    data: dict[str, Any] = {"digest": digest, "ok": error is None, "checks": [step.to_json() for step in steps]}
    if error is not None:
        data["error"] = error.to_json()
    lines = [f"{'ok  ' if step.ok else 'FAIL'}  {step.name}: {step.detail}" for step in steps]
    output.result(data, "\n".join(lines))
    if error is None:
        return EXIT_OK
    if not output.as_json:
        output.note(f"{output.styled('error:', 'red')} {error.message}")
        output.note(f"{output.styled('hint:', 'yellow')} {error.hint}")
    return error.exit_code


def _digest(path: Path) -> str | None:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError:
        return None
    return digest.hexdigest()
