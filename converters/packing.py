"""From the chosen builds to artifacts in their place, and the report beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from converters import base, evidence, papers, workplace
from converters import report as html
from converters.cache import digest_of
from converters.data import Data
from converters.errors import DiskFullError
from converters.recipe import Recipe
from converters.remote import RemoteWorkshop
from converters.results import Conversion, Converted, Unbuilt, check_any
from converters.search import Job, Outcome
from converters.workers import Workshop
from device_profiles.machine import Machine, this_machine
from device_profiles.profile import Profile
from edge_sdk.errors import ConversionError, GuardrailError


@dataclass(frozen=True, slots=True, kw_only=True)
class Papers:
    """Writes what a conversion leaves: artifacts, deltas, report."""

    recipe: Recipe
    profiles: Sequence[Profile]
    job: Job
    data: Data
    machine: Machine
    workers: Mapping[str, Workshop]
    device: RemoteWorkshop | None
    say: Callable[[str], None]

    def pack(self, finished: Mapping[str, tuple[Outcome, ...]], run: Mapping[str, Any]) -> Conversion:
        """Pack the artifact of every profile with a chosen build, then put all of them in place."""
        staged: list[Converted] = []
        unbuilt: list[Unbuilt] = []
        for profile in self.profiles:
            rows = finished[profile.name]
            try:
                check_any(profile.name, rows)
                staged.append(self._artifact(profile, rows, run))
            except DiskFullError:
                raise
            except (ConversionError, GuardrailError) as error:
                unbuilt.append(Unbuilt(profile=profile.name, error=error, rows=rows))
        if staged:
            workplace.publish({c.path: self.recipe.out / c.path.name for c in staged})
        done = tuple(replace(c, path=self.recipe.out / c.path.name) for c in staged)
        return Conversion(done=tuple(self._with_delta(c) for c in done), unbuilt=tuple(unbuilt))

    def _artifact(self, profile: Profile, rows: tuple[Outcome, ...], run: Mapping[str, Any]) -> Converted:
        recipe, job, data, decided = self.recipe, self.job, self.data, self.job.plan
        chosen = next(o for o in rows if o.status == "chosen")
        parent = base.parent_of(job.base, profile.name, self.profiles)
        known: Any = {"recipe": recipe, "source": job.source, "data": data}
        manifest = evidence.manifest(chosen, profile=profile, parent=parent, machine=this_machine(), **known)
        facts = dict(run) | ({} if self.device is None else {"device": self.device.name})
        papers_of = evidence.evidence(rows, chosen, run=facts, machine=self.machine, **known)
        folder = job.work / "artifacts"
        folder.mkdir(exist_ok=True)
        path = folder / f"{decided.name}-{recipe.version}-{profile.name}.edge"
        packed = self.workers[chosen.candidate.environment or "main"].call(
            "pack",
            out=str(path),
            manifest=manifest,
            files=[str(f) for f in chosen.files],
            labels=list(decided.labels),
            images=[str(s.image) for s in data.golden.samples],
            evidence=papers_of,
            card=papers.card(manifest, papers_of),
            bom=papers.bom(manifest, papers_of, digest_of(chosen.files[0])),
        )
        return Converted(
            path=path,
            digest=packed["digest"],
            payload_digest=packed["payload_digest"],
            profile=profile.name,
            chosen=chosen,
            size_bytes=packed["size_bytes"],
            rows=rows,
            source=run["of_source"],
            parent=parent,
        )

    def _with_delta(self, done: Converted) -> Converted:
        job = self.job
        if job.base is None or done.parent is None:
            return done
        delta = dict(self.workers["main"].call("delta", old=str(job.base.path), new=str(done.path)))
        if delta["bytes"] is not None:
            share = delta["bytes"] / max(1, done.size_bytes)
            delta["of_artifact"] = round(share, 4)
            self.say(
                f"  {done.path.name}: a delta of {delta['bytes']} bytes from the base, {share:.0%} of the artifact"
            )
        return replace(done, delta=delta)

    def report(
        self, finished: Mapping[str, tuple[Outcome, ...]], about: Mapping[str, Any], done: Sequence[Converted]
    ) -> None:
        """Write the report where the recipe wants it; also when nothing was chosen."""
        target = self.recipe.report
        if target is None:
            return
        page = html.page(finished, job=self.job, source=about, done=done, machine=self.machine)
        path = self.job.work / "report.html"
        path.write_text(page, encoding="utf-8")
        workplace.check_out(target.parent)
        workplace.publish({path: target})
        self.say(f"  report: {target}")
