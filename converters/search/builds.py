"""Builds and predictions, from the cache where the same were made before."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from converters import cache as store
from converters import compilers, tools
from converters.backends import registry
from converters.backends.base import BuildRequest, LayerError
from converters.cache import Cache
from converters.candidates import INTEGER, Candidate
from converters.compilers.base import compile_model
from converters.search.job import Job
from converters.search.outcome import Outcome
from converters.workers import Workshop
from edge_sdk.remote import Remote

_ARRAYS, _OUTPUTS = "predictions.npz", "outputs.npz"
_NO_PAPERS = ("name", "version", "profile", "source_sha256", "parent", "payload_digest", "files", "licences")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a model says of a set of images (see `converters.evaluate`), and the reply of the worker beside it.

    `outputs` is the file of its raw outputs, of the source only.
    """

    arrays: Mapping[str, Any]
    reply: Mapping[str, Any]
    cached: bool
    outputs: Path | None = None


class Builds:
    """What the search makes, each kept in the cache under the content that it depends on.

    Args:
        isa: flags of this machine: engines take other paths on other CPUs, with other rounding.
        remote: session on that device, where compilers of the device run.
        device: what a device that answers instead of this machine is, with the versions of its runtimes.
    """

    def __init__(
        self,
        job: Job,
        cache: Cache,
        isa: Sequence[str] = (),
        device: Mapping[str, Any] | None = None,
        remote: Remote | None = None,
    ) -> None:
        self.job = job
        self.cache = cache
        self.isa = sorted(isa)
        self.device = None if device is None else dict(device)
        self.remote = remote
        self._kept: dict[Path, str] = {}

    def build(self, worker: Workshop, candidate: Candidate, images: Sequence[str] | None = None) -> Outcome:
        """Return the candidate built, its files in the folder of its key; `images` calibrate in place of the job's.

        Raises:
            EdgeError: the back-end refused, failed or took too long.
        """
        request = self.request(candidate)
        if images is not None:
            out = request.out.with_name(f"{request.out.name}-{len(images)}")
            request = replace(request, images=tuple(images), out=out)
        key = store.key_of("build", self._identity(candidate, request))
        reply = self.cache.fetch(key, request.out)
        cached = reply is not None
        if reply is None:
            reply = worker.call("build", backend=candidate.backend, request=request.to_json(), options={"threads": 1})
            reply["files"] = [Path(f).name for f in reply["files"]]
            self.cache.keep(key, [request.out / name for name in reply["files"]], reply)
        manifest = self.job.manifest(candidate.runtime, reply["input"], reply["outputs"], reply["decoder_params"])
        if candidate.provider != "CPU":
            manifest["runtime"]["options"]["provider"] = candidate.provider
        built = Outcome(
            candidate=candidate,
            status="passed",
            files=tuple(request.out / name for name in reply["files"]),
            manifest=manifest,
            size_bytes=int(reply["bytes"]),
            steps=tuple(reply["steps"]),
            facts=dict(reply.get("facts") or {}),
            cached=cached,
        )
        return self._compiled(built) if candidate.compiler else built

    def _compiled(self, built: Outcome) -> Outcome:
        """Return the build as its vendor's compiler makes it."""
        candidate = built.candidate
        made = compile_model(
            compilers.registry().load(candidate.compiler),
            built.files[0],
            self.job.work / f"{candidate.key}-compiled",
            options=dict(candidate.compiler_options),
            limit_s=self.job.recipe.job_limit_s,
            cache=self.cache,
            remote=self.remote,
        )
        return replace(
            built,
            files=(made.file,),
            size_bytes=made.file.stat().st_size,
            steps=(*built.steps, made.step),
            cached=built.cached and made.cached,
        )

    def predict(
        self,
        worker: Workshop,
        manifest: Mapping[str, Any],
        model: Path,
        images: Sequence[str],
        name: str,
        *,
        keep: bool = False,
        against: Path | None = None,
    ) -> Prediction:
        """Return what the model says of `images`, in its own runtime; `name` is of the file in the work folder.

        With `keep` its raw outputs are kept too; `against` is such a file, which its own are compared with.

        Raises:
            EdgeError: an output is not finite, or the runtime failed.
        """
        runtime = str(manifest["runtime"]["name"])
        key = store.key_of(
            "predict",
            self._here
            | {
                "model": store.digest_of_form(model),
                "manifest": {k: v for k, v in manifest.items() if k not in _NO_PAPERS},
                "labels": list(self.job.plan.labels),
                "images": [self.job.hash_of(i) for i in images],
                "tools": tools.of_runtime(runtime),
                "environment": worker.environment_key,
                "device": None if keep else self.device,
                "keep": keep,
                "against": None if against is None else self._kept[against],
            },
        )
        out = self.job.work / "predictions" / name
        if keep:
            self._kept[out / _OUTPUTS] = key
        reply = self.cache.fetch(key, out)
        cached = reply is not None
        if reply is None:
            out.mkdir(parents=True, exist_ok=True)
            reply = worker.call(
                "predict",
                manifest=dict(manifest),
                model=str(model),
                labels=list(self.job.plan.labels),
                images=list(images),
                out=str(out / _ARRAYS),
                keep=str(out / _OUTPUTS) if keep else None,
                against=None if against is None else str(against),
            )
            self.cache.keep(key, [out / _ARRAYS, *([out / _OUTPUTS] if keep else [])], reply)
        with np.load(out / _ARRAYS, allow_pickle=False) as data:
            arrays = {k: data[k] for k in data.files}
        (out / _ARRAYS).unlink()
        return Prediction(arrays=arrays, reply=reply, cached=cached, outputs=out / _OUTPUTS if keep else None)

    def sensitivity(self, worker: Workshop, candidate: Candidate, images: int) -> list[LayerError]:
        """Return the layers that int8 hurts, worst first, by the back-end's own measure on `images` images.

        Raises:
            EdgeError: the back-end failed.
        """
        request = replace(self.request(candidate), out=self.job.work / f"{candidate.key}-sensitivity")
        key = store.key_of("sensitivity", self._identity(candidate, request) | {"count": images})
        reply = self.cache.fetch(key, request.out)
        if reply is None:
            request.out.mkdir(parents=True, exist_ok=True)
            reply = worker.call("sensitivity", backend=candidate.backend, request=request.to_json(), images=images)
            self.cache.keep(key, [], reply)
        return [LayerError(layer=str(row["layer"]), error=float(row["error"])) for row in reply["layers"]]

    def request(self, candidate: Candidate) -> BuildRequest:
        """Return what the back-end is asked for."""
        job = self.job
        base = job.base
        fits = base is not None and base.fits(candidate)
        return BuildRequest(
            model=Path(job.source.forms[candidate.form]),
            out=job.work / candidate.key,
            precision=candidate.precision,
            input=job.plan.input,
            form=candidate.form,
            outputs=tuple(o.name for o in job.source.outputs),
            method=candidate.method,
            float_layers=candidate.float_layers,
            base=base.model if base is not None and fits else None,
            scheme=candidate.scheme,
            images=job.calibration if candidate.precision in INTEGER else (),
            float_first=candidate.float_first,
            float_last=candidate.float_last,
            provider=candidate.compiler or candidate.provider,
            io_dtypes=candidate.io_dtypes,
            reference=Path(job.source.forms[job.source.reference]),
            reference_form=job.source.reference,
        )

    def _identity(self, candidate: Candidate, request: BuildRequest) -> dict[str, Any]:
        asked = {k: v for k, v in request.to_json().items() if k not in ("model", "out", "images", "base", "reference")}
        return self._here | {
            "form": self._forms[candidate.form],
            "backend": candidate.backend,
            "request": asked,
            "base": None if request.base is None else store.digest_of_form(request.base),
            "images": [self.job.hash_of(i) for i in request.images],
            "tools": tools.of_backend(candidate.backend),
        }

    @cached_property
    def _here(self) -> dict[str, Any]:
        return {"code": store.code_version(), "python": platform.python_version(), "isa": self.isa}

    @cached_property
    def _forms(self) -> dict[str, str]:
        return {name: store.digest_of_form(Path(path)) for name, path in self.job.source.forms.items()}


def can_rank(candidate: Candidate) -> bool:
    """Return whether the candidate's back-end can say which layers int8 hurts."""
    return bool(registry().plugin(candidate.backend).capabilities.get("sensitivity"))
