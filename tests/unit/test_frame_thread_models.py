"""Frame threads of one pipeline: an engine each, the same answers, all closed together."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from edge_sdk.artifact import Artifact
from edge_sdk.errors import ArtifactError, BackendError
from edge_sdk.pipeline import Pipeline
from edge_sdk.pipeline.models import innermost, load_models
from edge_sdk.testing import LABELS, CollectingSink, ListSource, build_artifact, color_frame, tiny_classifier_onnx


def made(folder, name="m", **changes):
    return build_artifact(folder / f"{name}.edge", **changes)


def load(artifact, count=3, **more):
    return load_models(artifact, count=count, kind=None, params={}, test=False, **more)


def test_models_of_one_pipeline_answer_at_once_each_from_its_own_engine(tmp_path):
    models = load(made(tmp_path))
    assert len({id(m.runtime) for m in models.models}) == 3
    wrong = []

    def work(i):
        for n in range(100):
            label = LABELS[(i + n) % 3]
            found = models.models[i](color_frame(label))
            if found.label(found.class_id) != label:
                wrong.append((i, n))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    models.close()


def test_closing_the_models_closes_their_engines(tmp_path):
    models = load(made(tmp_path))
    models.close()
    for model in models.models:
        with pytest.raises(BackendError, match="the model is closed"):
            model(color_frame("red"))


def test_tiles_and_regions_stand_around_every_engine(tmp_path):
    artifact = made(tmp_path, task="detection")
    params = {"tiles": {"columns": 2, "rows": 1}}
    models = load_models(artifact, count=2, kind="detect", params=params, test=True, roi=[[0.0, 0.0], [60.0, 40.0]])
    first, second = (innermost(m) for m in models.models)
    assert second.runtime is not first.runtime
    answers = [m.decode(m.infer(f), g) for m in models.models for f, g in [m.prepare(np.zeros((48, 64, 3), np.uint8))]]
    assert len(answers[0]) == len(answers[1])
    models.close()


def test_a_self_test_that_fails_closes_the_engine_and_opens_no_other(tmp_path):
    bad = made(tmp_path, model=tiny_classifier_onnx(constant=0.0))
    with pytest.raises(ArtifactError, match="self-tests on this machine"):
        load_models(bad, count=3, kind=None, params={}, test=True)


def test_a_swap_gives_every_frame_thread_the_new_model(tmp_path):
    old, new = made(tmp_path), made(tmp_path, "new", version="2.0.0")
    sink = CollectingSink()
    images = [color_frame(LABELS[i % 3]) for i in range(60)]
    with Pipeline(ListSource(images), workers=3).classify(old).sink(sink) as pipe:
        for item in pipe:
            if item.frame.index == 5:
                pipe.swap("classify", str(new.path))
    assert [i.result.label(i.result.class_id) for i in sink.items] == [LABELS[i % 3] for i in range(60)]
    assert sink.items[-1].model == Artifact.open(new.path).sha256
