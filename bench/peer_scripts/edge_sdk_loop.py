"""The pipeline of edge-sdk on an artifact."""

import time

from common import Meter, words

start = time.process_time()
from edge_sdk import Artifact, Pipeline  # noqa: E402

imported = time.process_time() - start
video, model, n = words()
pipe = Pipeline(video)
pipe = pipe.classify(model) if Artifact.open(model).manifest.task == "classification" else pipe.detect(model)
meter = Meter()
with pipe:
    for item in pipe:
        if meter.frame(len(item.result) if hasattr(item.result, "__len__") else 1) == n:
            break
meter.report(imported)
