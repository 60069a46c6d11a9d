"""openvino model_api's wrapper for SSD or YOLOX on an OpenVINO IR, fed by cv2.

Its YOLOX wrapper (0.4.7) ends every call with `KeyError: 'scale'`: nobody sets that value since preprocessing is part
of the graph. It is given here, so that the rest can be measured. The CPU computes in fp32, as for edge-sdk: left alone
OpenVINO takes bfloat16 where the CPU has it, with other answers.
"""

import time
from pathlib import Path

from common import Meter, frames_of, words

start = time.process_time()
from model_api.adapters import OpenvinoAdapter, create_core  # noqa: E402
from model_api.models import Model  # noqa: E402

imported = time.process_time() - start
video, model, n = words()
kind = "YOLOX" if "yolox" in Path(model).stem else "ssd"
settings = {"confidence_threshold": 0.25}
if kind == "YOLOX":
    settings |= {"iou_threshold": 0.45, "resize_type": "fit_to_window", "pad_value": 114}
engine = OpenvinoAdapter(create_core(), model, device="CPU", plugin_config={"INFERENCE_PRECISION_HINT": "f32"})
detector = Model.create_model(engine, model_type=kind, configuration=settings)
own = detector.preprocess


def with_scale(inputs, meta):
    inputs, meta = own(inputs, meta)
    height, width = meta["original_shape"][:2]
    return inputs, meta | {"scale": min(detector.w / width, detector.h / height)}


if kind == "YOLOX":
    detector.preprocess = with_scale
meter = Meter()
for frame in frames_of(video, n):
    meter.frame(len(detector(frame).bboxes))
meter.report(imported)
