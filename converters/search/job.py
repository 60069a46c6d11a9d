"""What the search reads, and the manifests of the source and of its builds."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from converters.candidates import Candidate
from converters.frontends.base import FORMS, Source
from converters.metrics import task
from converters.plan import Plan
from converters.recipe import Recipe
from edge_sdk.parsing import write_dataclass
from edge_sdk.schemas.manifest import SCHEMA


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """The artifact that the next version is to be close to: its model file and what it was built by."""

    path: Path
    model: Path
    sha256: str
    profile: str
    runtime: str
    conversion: Mapping[str, Any]

    def fits(self, candidate: Candidate) -> bool:
        """Return whether the base was built as the candidate will be, so that its scales mean the same."""
        if candidate.fresh:
            return False
        made = self.conversion
        same = made.get("backend") in (None, candidate.backend) and made.get("method") in (None, candidate.method)
        scheme = made.get("scheme") in (None, write_dataclass(candidate.scheme))
        return same and scheme and (self.runtime, made.get("precision")) == (candidate.runtime, candidate.precision)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Everything the search reads; `hashes` are those of the images that are known already."""

    recipe: Recipe
    plan: Plan
    source: Source
    calibration: tuple[str, ...]
    golden: tuple[str, ...]
    judge: task.Judge | None
    work: Path
    hashes: Mapping[str, str] = field(default_factory=dict)
    base: Base | None = None

    def hash_of(self, image: str) -> str:
        """Return the SHA-256 of an image's content."""
        return self.hashes.get(image) or hashlib.sha256(Path(image).read_bytes()).hexdigest()

    def source_manifest(self) -> dict[str, Any]:
        """Return the manifest of the source itself, as the runtime of its reference form runs it."""
        runtime = FORMS[self.source.reference]
        assert runtime is not None
        outputs = [write_dataclass(o) for o in self.source.outputs]
        return self.manifest(runtime, write_dataclass(self.plan.input), outputs)

    def manifest(
        self,
        runtime: str,
        spec: Mapping[str, Any],
        outputs: Sequence[Mapping[str, Any]],
        decoder_params: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Return the manifest of a build that no profile has chosen yet."""
        return {
            "schema": SCHEMA,
            "name": self.plan.name,
            "version": self.recipe.version,
            "profile": "none",
            "task": self.plan.task,
            "source_sha256": self.source.sha256,
            "parent": None,
            "payload_digest": "",
            "files": {},
            "input": dict(spec),
            "outputs": [dict(o) for o in outputs],
            "decoder": {"name": self.plan.decoder, "params": dict(decoder_params or self.plan.decoder_params)},
            "runtime": {"name": runtime, "options": {"threads": 1}},
        }
