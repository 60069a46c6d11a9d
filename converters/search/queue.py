"""What waits to be tried, the most promising first, for several workers at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from converters.candidates import Candidate
from converters.search.outcome import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A candidate to try; with `refused`, what to rescue: int8 with some layers in float."""

    candidate: Candidate
    refused: Outcome | None = None


class Queue:
    """Tasks by rising `rank`; a runtime has one worker, so one task of it at a time."""

    def __init__(self, rank: Callable[[Task], float]) -> None:
        self._rank = rank
        self._waiting: list[Task] = []
        self._busy: set[str] = set()
        self._changed = threading.Condition()
        self._stopped = False

    def add(self, *tasks: Task) -> None:
        with self._changed:
            self._waiting.extend(tasks)
            self._waiting.sort(key=self._rank)
            self._changed.notify_all()

    def take(self) -> Task | None:
        """Return the best task whose runtime is free, waiting for one; None when nothing is left, or after `stop`."""
        with self._changed:
            while not self._stopped:
                for task in self._waiting:
                    if task.candidate.runtime not in self._busy:
                        self._waiting.remove(task)
                        self._busy.add(task.candidate.runtime)
                        return task
                if not self._waiting and not self._busy:
                    return None
                self._changed.wait()
            return None

    def done(self, task: Task) -> None:
        """Free the runtime of a task that `take` gave."""
        with self._changed:
            self._busy.discard(task.candidate.runtime)
            self._changed.notify_all()

    def stop(self) -> None:
        """Give nothing out any more."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
