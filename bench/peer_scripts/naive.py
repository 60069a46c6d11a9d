"""The loop of most tutorials: cv2 and ONNX Runtime with their defaults, float preprocessing, full decoding."""

import time

from common import Meter, frames_of, words, yolox_boxes, yolox_kept, yolox_letterbox

start = time.process_time()
import cv2  # noqa: E402, F401
import onnxruntime as ort  # noqa: E402

imported = time.process_time() - start
video, model, n = words()
session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
name, size = session.get_inputs()[0].name, session.get_inputs()[0].shape[2]
meter = Meter()
for frame in frames_of(video, n):
    tensor, ratio = yolox_letterbox(frame, size)
    meter.frame(yolox_kept(*yolox_boxes(session.run(None, {name: tensor})[0], size, ratio)))
meter.report(imported)
