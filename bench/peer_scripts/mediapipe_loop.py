"""MediaPipe's ImageClassifier on a TFLite classifier with metadata, fed by cv2."""

import time

from common import Meter, frames_of, words

start = time.process_time()
import cv2  # noqa: E402
import mediapipe as mp  # noqa: E402
from mediapipe.tasks import python as tasks  # noqa: E402
from mediapipe.tasks.python import vision  # noqa: E402

imported = time.process_time() - start
video, model, n = words()
options = vision.ImageClassifierOptions(base_options=tasks.BaseOptions(model_asset_path=model), max_results=5)
classifier = vision.ImageClassifier.create_from_options(options)
meter = Meter()
for frame in frames_of(video, n):
    image = mp.Image(image_format=mp.ImageFormat.SRGB, data=cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
    meter.frame(len(classifier.classify(image).classifications))
meter.report(imported)
