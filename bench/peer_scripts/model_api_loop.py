"""openvino model_api's SSD wrapper on an OpenVINO IR, fed by cv2."""

import time

from common import Meter, frames_of, words

start = time.process_time()
from model_api.models import Model  # noqa: E402

imported = time.process_time() - start
video, model, n = words()
detector = Model.create_model(model, model_type="ssd", device="CPU", configuration={"confidence_threshold": 0.25})
meter = Meter()
for frame in frames_of(video, n):
    meter.frame(len(detector(frame).bboxes))
meter.report(imported)
