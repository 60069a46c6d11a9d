"""When the guard refuses an int8 build: leave the layers that hurt in float, and try again.

The back-end ranks its layers by the error that quantizing each alone makes, on calibration images. Tries leave more and
more of the worst ones in float, the last one also what is next to the input and the outputs (Krishnamoorthi, 2018,
arXiv:1806.08342, section 4), which is all that is tried where a back-end cannot rank. The noise of a try's outputs
against the source's is measured on calibration images; only a try whose noise has shrunk as far as the drop has to
shrink, or else the one with the least, goes before the golden set, so that the golden set is not searched over.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from converters.candidates import Candidate
from converters.errors import DiskFullError
from converters.reasons import Reason
from converters.search import timing, worth
from converters.search.builds import can_rank
from converters.search.outcome import Outcome
from converters.workers import Workshop
from edge_sdk.errors import EdgeError

if TYPE_CHECKING:
    from converters.search.run import Search

logger = logging.getLogger(__name__)
WORST = (2, 8)
"""How many of the worst layers stay float, tried in this order; never more than half of all."""
ENDS = ((3, 0), (5, 1))
"""How many weighted layers stay float at the input and at the outputs, tried in this order, without a ranking."""
LATER = 1.05
"""A rescue waits for the candidates that are expected to be about as fast."""
COMPARE_S = 1.0
RANK_IMAGES = 16
NOISE_IMAGES = 16


class Rescue:
    """Tries for refused int8 builds; the source runs over calibration images once."""

    def __init__(self, search: Search) -> None:
        self._search = search
        self._raw: Path | None = None
        self._asked = False
        self._lock = threading.Lock()

    def tries(self, worker: Workshop, refused: Outcome) -> Iterator[Outcome]:
        """Yield the outcome of each try, the last one passed if any does."""
        search = self._search
        root = refused.candidate
        if search.spent():
            return
        needless = self._needless(worker, refused)
        if needless is not None:
            first, last = ENDS[0]
            candidate = replace(root, float_first=first, float_last=last)
            yield Outcome(candidate=candidate, status="skipped", reason=needless, reason_kind=Reason.NO_GAIN)
            return
        passed = False
        for outcome in self._by_layers(worker, refused):
            passed = passed or outcome.status == "passed"
            yield outcome
        if root.last_resort and root.method != root.last_resort and not passed and not search.spent():
            yield search.attempt(worker, replace(root, method=root.last_resort))

    def _by_layers(self, worker: Workshop, refused: Outcome) -> Iterator[Outcome]:
        search = self._search
        root = refused.candidate
        layers = self._layers(worker, root) if can_rank(root) else []
        if len(layers) >= 2:
            yield from self._by_error(worker, refused, layers)
            return
        for first, last in ENDS:
            outcome = search.attempt(worker, replace(root, float_first=first, float_last=last))
            yield outcome
            if outcome.status != "refused":
                return

    def _needless(self, worker: Workshop, refused: Outcome) -> str | None:
        """Return why no rescue can be the fastest build of a profile, or None where one may be.

        Some layers in float make the refused build slower, so its own latency is the least that a rescue has.
        """
        search, root = self._search, refused.candidate
        passed = [o for o in search.found() if o.status == "passed"]
        if not passed:
            return None
        builds = {o.candidate.key: o for o in (refused, *passed)}
        there = search.device is not None
        reply = timing.measure(
            search.job,
            search.device or worker,
            builds,
            seconds=COMPARE_S,
            others={} if there else search.workers,
        )
        timed = [
            replace(o, latency_ms=dict(reply["latency_ms"][o.candidate.key]))
            for o in (refused, *passed)
            if o.candidate.key in reply["latency_ms"]
        ]
        if not timed or timed[0].candidate != root:
            return None
        return worth.twin(timed[0], timed[1:]) or search.hopeless(timed[0], timed[1:])

    def _layers(self, worker: Workshop, root: Candidate) -> list[str]:
        start = self._search.clock()
        try:
            ranked = self._search.builds.sensitivity(worker, root, RANK_IMAGES)
        except DiskFullError:
            raise
        except EdgeError as error:
            self._search.say(f"  {root.runtime} {root.precision}: layers cannot be ranked: {error.message}")
            return []
        took = self._search.clock() - start
        worst = ", ".join(f"{row.layer} {row.error:.3g}" for row in ranked[:3])
        if ranked:
            self._search.say(
                f"  {root.runtime} {root.precision}: error of {len(ranked)} layers, worst {worst} ({took:.1f} s)"
            )
        return [row.layer for row in ranked]

    def _by_error(self, worker: Workshop, refused: Outcome, layers: list[str]) -> Iterator[Outcome]:
        search = self._search
        limit = self._limit(worker, refused)
        waiting: list[tuple[float, Outcome]] = []
        for candidate in _tries(refused.candidate, layers):
            outcome, noise = self._one(worker, candidate, limit)
            if outcome.status == "passed" and noise is not None:
                waiting.append((noise, outcome))
                continue
            yield outcome
            if outcome.status != "refused" or search.spent():
                break
        best = min(waiting, key=lambda pair: pair[0], default=(0.0, None))[1]
        for noise, outcome in waiting:
            if outcome is best and not any(o.status == "passed" for o in search.found() if _same(o, refused)):
                yield self._judged(worker, outcome)
            else:
                yield _too_noisy(outcome, noise, limit)

    def _one(self, worker: Workshop, candidate: Candidate, limit: float | None) -> tuple[Outcome, float | None]:
        """Build one try; return its verdict, or the unjudged build with its noise when that is above `limit`."""
        search = self._search
        if search.spent() or limit is None:
            return search.attempt(worker, candidate), None
        start = search.clock()
        try:
            built = search.builds.build(worker, candidate)
            noise = self._noise(worker, built)
        except DiskFullError:
            raise
        except EdgeError as error:
            from converters.search.run import failed

            return failed(candidate, error), None
        built = replace(built, seconds=round(search.clock() - start, 2))
        if noise is None or noise <= limit:
            return self._judged(worker, built), None
        return built, noise

    def _judged(self, worker: Workshop, built: Outcome) -> Outcome:
        start = self._search.clock()
        try:
            done = self._search.verify(worker, built)
        except DiskFullError:
            raise
        except EdgeError as error:
            from converters.search.run import failed

            done = failed(built.candidate, error)
        return replace(done, seconds=round(built.seconds + self._search.clock() - start, 2))

    def _limit(self, worker: Workshop, refused: Outcome) -> float | None:
        """Return the noise at which the drop would be the limit, were the two proportional."""
        if refused.reason_kind is not Reason.DROP or refused.metric is None:
            return None
        noise = self._noise(worker, refused)
        return None if noise is None else noise * self._search.job.recipe.max_drop / float(refused.metric["drop"])

    def _noise(self, worker: Workshop, built: Outcome) -> float | None:
        """Return the noise of a build's outputs over the source's signal, of the worst group of channels.

        Amplitudes over calibration images; None where outputs cannot be compared.
        """
        raw = self._source_outputs()
        if raw is None:
            return None
        search = self._search
        found = search.builds.predict(
            search.runner(worker, built),
            built.manifest,
            built.files[0],
            self._images(),
            f"{built.candidate.key}-calibration",
            against=raw,
        )
        rows = [row for row in found.reply.get("outputs") or () if row.get("group")] or found.reply.get("outputs") or []
        return max((10 ** (-float(row["sqnr_db"]) / 20) for row in rows), default=None)

    def _source_outputs(self) -> Path | None:
        """Return the file of the source's raw outputs on calibration images, made once."""
        search, job = self._search, self._search.job
        with self._lock:
            if not self._asked:
                self._asked = True
                worker = next(iter(search.workers.values()))
                model = Path(job.source.forms[job.source.reference])
                try:
                    self._raw = search.builds.predict(
                        worker, job.source_manifest(), model, self._images(), "source-calibration", keep=True
                    ).outputs
                except DiskFullError:
                    raise
                except EdgeError as error:
                    logger.info("the source cannot be run on calibration images: %s", error.message)
            return self._raw

    def _images(self) -> tuple[str, ...]:
        """Return calibration images, evenly spread."""
        images = self._search.job.calibration
        step = max(1.0, len(images) / NOISE_IMAGES)
        return tuple(images[int(i * step)] for i in range(min(NOISE_IMAGES, len(images))))


def _tries(root: Candidate, layers: list[str]) -> list[Candidate]:
    most = max(1, len(layers) // 2)
    counts = sorted({min(n, most) for n in WORST})
    worst = [replace(root, float_layers=tuple(layers[:count])) for count in counts]
    first, last = ENDS[-1]
    return [*worst, replace(worst[-1], float_first=first, float_last=last)]


def _same(outcome: Outcome, refused: Outcome) -> bool:
    return outcome.candidate.plain == refused.candidate.plain


def _too_noisy(outcome: Outcome, noise: float, limit: float | None) -> Outcome:
    enough = f", {limit:.3f} would be enough" if limit is not None else ""
    return replace(
        outcome,
        status="refused",
        reason_kind=Reason.DISAGREES,
        reason=f"not put before the golden set: on calibration images the noise in its outputs is {noise:.3f} of the "
        f"source's signal{enough}",
    )
