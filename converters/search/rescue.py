"""When the guard refuses an int8 build: leave the layers that hurt in float, and try again.

The back-end ranks its layers by the error that quantizing each alone makes, on calibration images. The worst 1, 2, 4, …
layers stay float. A try goes before the golden set only when its disagreement with the source on calibration images has
shrunk as far as the drop has to shrink, so that the golden set is not searched over. Back-ends that cannot rank leave
the layers next to the input and the outputs float (Krishnamoorthi, 2018, arXiv:1806.08342, section 4).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters.candidates import Candidate
from converters.errors import DiskFullError
from converters.metrics import task
from converters.reasons import Reason
from converters.search.builds import can_rank
from converters.search.outcome import Outcome
from converters.workers import Workshop
from edge_sdk.errors import EdgeError

if TYPE_CHECKING:
    from converters.search.run import Search

logger = logging.getLogger(__name__)
WORST = (1, 2, 4, 8, 16)
"""How many of the worst layers stay float, tried in this order; never more than half of all."""
ENDS = ((3, 0), (5, 1))
"""How many weighted layers stay float at the input and at the outputs, tried in this order, without a ranking."""
LATER = 1.05
"""A rescue waits for the candidates that are expected to be about as fast."""
RANK_IMAGES = 16
AGREE_IMAGES = 64


class Rescue:
    """Tries for refused int8 builds; what the source says of calibration images is asked once."""

    def __init__(self, search: Search) -> None:
        self._search = search
        self._judge: task.Judge | None = None
        self._asked = False
        self._lock = threading.Lock()

    def tries(self, worker: Workshop, refused: Outcome) -> Iterator[Outcome]:
        """Yield the outcome of each try, the last one passed if any does."""
        search = self._search
        root = refused.candidate
        like = (root.runtime, root.precision, root.scheme)
        others = [o for o in search.found() if (o.candidate.runtime, o.candidate.precision, o.candidate.scheme) == like]
        if any(o.status == "passed" for o in others) or search.spent():
            return
        layers = self._layers(worker, root) if can_rank(root) else []
        if len(layers) >= 2:
            yield from self._by_error(worker, refused, layers)
            return
        for first, last in ENDS:
            outcome = search.attempt(worker, replace(root, float_first=first, float_last=last))
            yield outcome
            if outcome.status != "refused":
                return

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
        counts = [n for n in WORST if n <= max(1, len(layers) // 2)]
        limit = self._allowed(worker, refused, refused)
        for count in counts:
            candidate = replace(refused.candidate, float_layers=tuple(layers[:count]))
            outcome = self._one(worker, candidate, limit if count != counts[-1] else None)
            yield outcome
            if outcome.status not in ("refused",):
                return
            if outcome.metric is not None:
                limit = self._allowed(worker, outcome, refused) or limit

    def _one(self, worker: Workshop, candidate: Candidate, limit: float | None) -> Outcome:
        """Build one try; judge it on the golden set when it disagrees on calibration images no more than `limit`."""
        search = self._search
        if search.spent() or limit is None:
            return search.attempt(worker, candidate)
        start = search.clock()
        try:
            built = search.builds.build(worker, candidate)
            share = self._disagreement(worker, built)
            if share is None or share <= limit:
                outcome = search.verify(worker, built)
            else:
                outcome = replace(
                    built,
                    status="refused",
                    reason_kind=Reason.DISAGREES,
                    reason=f"disagrees with the source on {share:.3f} of what it finds in calibration images, "
                    f"{limit:.3f} would be enough to ask the golden set",
                )
        except DiskFullError:
            raise
        except EdgeError as error:
            from converters.search.run import failed

            outcome = failed(candidate, error)
        return replace(outcome, seconds=round(search.clock() - start, 2))

    def _allowed(self, worker: Workshop, outcome: Outcome, refused: Outcome) -> float | None:
        """Return the disagreement at which the drop would be the limit, were the two proportional."""
        assert outcome.metric is not None
        drop = float(outcome.metric["drop"])
        if refused.reason_kind is not Reason.DROP or drop <= 0:
            return None
        share = self._disagreement(worker, outcome)
        return None if share is None else share * self._search.job.recipe.max_drop / drop

    def _disagreement(self, worker: Workshop, built: Outcome) -> float | None:
        """Return 1 - the agreement of a build with the source on calibration images; None where it cannot be had."""
        judge = self._judge_of_calibration()
        if judge is None:
            return None
        images = self._images()
        found = self._search.builds.predict(
            worker, built.manifest, built.files[0], images, f"{built.candidate.key}-calibration"
        )
        return max(0.0, 1.0 - judge.measure(found.arrays).value)

    def _judge_of_calibration(self) -> task.Judge | None:
        search, job = self._search, self._search.job
        with self._lock:
            if not self._asked:
                self._asked = True
                worker = next(iter(search.workers.values()))
                model = Path(job.source.forms[job.source.reference])
                try:
                    found: Any = search.builds.predict(
                        worker, job.source_manifest(), model, self._images(), "source-calibration"
                    )
                    self._judge = task.agreement(
                        job.plan.task, found.arrays, len(self._images()), job.plan.classes, job.plan.labels
                    )
                except DiskFullError:
                    raise
                except EdgeError as error:
                    logger.info("no agreement on calibration images: %s", error.message)
            return self._judge

    def _images(self) -> tuple[str, ...]:
        """Return calibration images, evenly spread."""
        images = self._search.job.calibration
        step = max(1.0, len(images) / AGREE_IMAGES)
        return tuple(images[int(i * step)] for i in range(min(AGREE_IMAGES, len(images))))
