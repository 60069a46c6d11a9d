"""The models of a run beside the one that sees its frames: second models and shadows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edge_sdk.pipeline.cascade import Cascade
from edge_sdk.pipeline.delivery import soon
from edge_sdk.pipeline.shadow import Shadow
from edge_sdk.sinks.base import FrameResult

_SHADOW_S = 5.0


class Beside:
    """Starts and ends them together.

    Args:
        shadow: that of the model that sees the frames.
        seconds: second models, which may have shadows of their own.
        beat: called before each inference of a second model.
        failed: gets kind and detail of a box that a second model could not answer.
        metric: gets what they have to tell the telemetry.
    """

    def __init__(
        self,
        shadow: Shadow | None,
        seconds: tuple[Cascade, ...],
        *,
        beat: Callable[[], None],
        failed: Callable[[str, str], None],
        metric: Callable[[dict[str, Any]], None],
    ) -> None:
        self.seconds = seconds
        self._shadow = shadow
        self._shadows = [s for s in (shadow, *(second.shadow for second in seconds)) if s is not None]
        for second in seconds:
            second.beat, second.failed, second.metric = beat, failed, metric
        for each in self._shadows:
            each.on_window = metric

    def start(self) -> None:
        for shadow in self._shadows:
            shadow.start()

    def see(self, item: FrameResult) -> None:
        """Show the shadow a frame that the model answered, before anything is changed in it."""
        if self._shadow is not None:
            self._shadow.see(item.frame.image, item.result, item.model, item.frame.index)

    def finish(self, deadline: float) -> None:
        """End the shadows, 5 s each at most, and send the last metrics."""
        for shadow in self._shadows:
            shadow.finish(min(deadline, soon(_SHADOW_S)))
        for second in self.seconds:
            second.send_metric()

    def close(self) -> None:
        """Unload the second models, also those that were switched off."""
        for second in self.seconds:
            second.close()

    def describe(self) -> dict[str, Any]:
        """Return `shadow`, what there is to say about the shadow of the model that sees the frames, if it has one."""
        return {"shadow": self._shadow.describe()} if self._shadow is not None else {}
