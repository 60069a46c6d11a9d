"""From a frame to a tensor and from tensors to a result, by task."""

from __future__ import annotations

from edge_sdk.registry import Plugin, Registry


def decoders() -> Registry:
    """Return the table of decoders by the name that stands in a manifest; capabilities: the `task` of each."""

    def entry(module: str, name: str, task: str) -> Plugin:
        return Plugin(target=f"edge_sdk.tasks.{module}:{name}", capabilities={"task": task})

    return Registry(
        "decoder",
        {
            "softmax": entry("classification", "Softmax", "classification"),
            "yolox": entry("detection", "YoloX", "detection"),
            "yolov5": entry("detection", "YoloV5", "detection"),
            "yolov8": entry("detection", "YoloV8", "detection"),
            "nanodet": entry("detection", "NanoDet", "detection"),
            "picodet": entry("detection", "PicoDet", "detection"),
            "fastestdet": entry("detection_other", "FastestDet", "detection"),
            "ssd_pp": entry("detection_other", "SsdPostProcessed", "detection"),
            "ultraface": entry("faces", "UltraFace", "detection"),
            "yunet": entry("faces", "YuNet", "detection"),
            "blazeface": entry("faces", "BlazeFace", "detection"),
            "argmax_mask": entry("dense", "ArgmaxMask", "segmentation"),
            "movenet": entry("dense", "MoveNet", "keypoints"),
            "embedding": entry("dense", "VectorEmbedding", "embedding"),
            "regression": entry("dense", "Regression", "regression"),
        },
    )
