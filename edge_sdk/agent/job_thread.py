"""One job at a time, beside the agent's loop."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from edge_sdk.agent.events import JobEnd
from edge_sdk.agent.jobs import WrongProfileError
from edge_sdk.agent.reconcile import Job
from edge_sdk.agent.state import AgentState, TrustFloor
from edge_sdk.errors import EdgeError

logger = logging.getLogger(__name__)
Work = Callable[[Job, AgentState, Callable[[], bool]], "TrustFloor | None"]


class JobThread:
    """Runs jobs in a thread of their own; a new one waits for the one before, which is told to stop.

    `job` is the one that runs, None between jobs. `on_end` is called in the job's thread; `accept` tells the end of the
    newest job from that of a cancelled one.
    """

    def __init__(self, work: Work, on_end: Callable[[JobEnd], None]) -> None:
        self._work = work
        self._on_end = on_end
        self._generation = 0
        self._thread: threading.Thread | None = None
        self._cancel = threading.Event()
        self.job: Job | None = None

    def start(self, job: Job, state: AgentState) -> None:
        self._cancel.set()
        cancel = self._cancel = threading.Event()
        self._generation += 1
        self.job = job
        generation, before = self._generation, self._thread

        def work() -> None:
            if before is not None:
                before.join()
            if not cancel.is_set():
                self._on_end(self._outcome(generation, job, state, cancel))

        self._thread = threading.Thread(target=work, name=f"job-{job.value}", daemon=True)
        self._thread.start()

    def accept(self, end: JobEnd) -> bool:
        """Return whether the newest job ended; it is over then."""
        if end.generation != self._generation:
            return False
        self.job = None
        return True

    def cancel(self) -> None:
        """Tell the running job to stop."""
        self._cancel.set()

    def join(self, timeout_s: float) -> None:
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _outcome(self, generation: int, job: Job, state: AgentState, cancel: threading.Event) -> JobEnd:
        try:
            return JobEnd(generation, job, floor=self._work(job, state, cancel.is_set))
        except EdgeError as error:
            return JobEnd(generation, job, error.message, not isinstance(error, WrongProfileError))
        except OSError as error:
            return JobEnd(generation, job, f"the disk or the network failed: {error}")
        except Exception as error:
            logger.exception("job %s", job.value)
            return JobEnd(generation, job, f"{type(error).__name__}: {error}")
