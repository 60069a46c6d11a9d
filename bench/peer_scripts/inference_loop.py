"""roboflow inference's InferencePipeline with a custom function around ONNX Runtime (no key, no download)."""

import time

from common import Meter, words, yolox_boxes, yolox_kept, yolox_letterbox

start = time.process_time()
import onnxruntime as ort  # noqa: E402
from inference import InferencePipeline  # noqa: E402

imported = time.process_time() - start
video, model, n = words()
session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
name, size = session.get_inputs()[0].name, session.get_inputs()[0].shape[2]
meter = Meter()


def infer(frames):
    for frame in frames:
        tensor, ratio = yolox_letterbox(frame.image, size)
        found = yolox_kept(*yolox_boxes(session.run(None, {name: tensor})[0], size, ratio))
        if meter.frame(found) == n:
            pipeline.terminate()
    return [{}] * len(frames)


pipeline = InferencePipeline.init_with_custom_logic(
    video_reference=video, on_video_frame=infer, on_prediction=lambda *_: None
)
pipeline.start()
pipeline.join()
meter.report(imported)
