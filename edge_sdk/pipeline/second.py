"""Loading the second models and shadows of a pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from edge_sdk.artifact import Artifact
from edge_sdk.pipeline.cascade import Cascade
from edge_sdk.pipeline.contained import Contained
from edge_sdk.pipeline.models import ModelSet, StageModel, load_models, single_model
from edge_sdk.pipeline.shadow import Shadow
from edge_sdk.pipeline_config import KIND_OF_TASK, StageConfig
from edge_sdk.roi import RoiModel
from edge_sdk.rules import Trace

ArtifactLike: TypeAlias = str | Path | Artifact | StageModel


def load(
    artifact: ArtifactLike,
    *,
    count: int,
    kind: str | None,
    params: Mapping[str, Any],
    test: bool = False,
    roi: Sequence[Sequence[float]] = (),
) -> ModelSet:
    """Load an artifact `count` times, or take a model that is loaded already; raises as `load_models`."""
    if isinstance(artifact, (str, Path, Artifact)):
        return load_models(artifact, count=count, kind=kind, params=params, test=test, roi=roi)
    return single_model(RoiModel(artifact, roi) if roi else artifact, kind)


def open_second(config: StageConfig, artifact: ArtifactLike, shadow: ArtifactLike | None, trace: Trace) -> Cascade:
    """Load the second model of a stage with `after`; raises as `load_models`."""
    models = load(artifact, count=1, kind=config.kind, params=config.params)
    task = models.models[0].manifest.task
    kind = KIND_OF_TASK.get(task, task)
    name = config.name or kind
    return Cascade(name, kind, models, config, trace, shadow=open_shadow(name, kind, config, shadow))


def open_shadow(name: str, kind: str, config: StageConfig, artifact: ArtifactLike | None) -> Shadow | None:
    """Return the shadow of a stage, which loads its model once it is started; None where there is none."""
    if artifact is None:
        return None

    def model() -> StageModel:
        # An engine that crashes must not take the pipeline along; a model that is loaded already is here to stay.
        known = Artifact.open(artifact) if isinstance(artifact, (str, Path)) else artifact
        given = Contained(known) if isinstance(known, Artifact) else known
        return load(given, count=1, kind=kind, params=config.params, roi=config.roi).models[0]

    return Shadow(name, model, every=config.shadow_every)
