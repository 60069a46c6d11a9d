"""supervision's frames and detections around ONNX Runtime."""

import time

from common import Meter, words, yolox_boxes, yolox_letterbox

start = time.process_time()
import onnxruntime as ort  # noqa: E402
import supervision as sv  # noqa: E402

imported = time.process_time() - start
video, model, n = words()
session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
name, size = session.get_inputs()[0].name, session.get_inputs()[0].shape[2]
meter = Meter()
for frame in sv.get_video_frames_generator(video, end=n):
    tensor, ratio = yolox_letterbox(frame, size)
    boxes, scores, classes = yolox_boxes(session.run(None, {name: tensor})[0], size, ratio)
    meter.frame(len(sv.Detections(xyxy=boxes, confidence=scores, class_id=classes).with_nms(0.45)))
meter.report(imported)
