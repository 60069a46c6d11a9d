"""ONNX to TFLite by onnx2tf."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from lines import serve  # type: ignore[import-not-found]


def convert(source: str, out: str) -> dict[str, Any]:
    """Write `out` and return how it was made."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    import numpy as np

    folder = Path(out).parent / "onnx2tf"
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    # The pictures that onnx2tf would download from the network; it needs them only when it quantizes.
    np.save("calibration_image_sample_data_20x128x128x3_float32.npy", np.zeros((20, 128, 128, 3), np.float32))
    import onnx2tf  # type: ignore[import-not-found]

    onnx2tf.convert(
        input_onnx_file_path=source,
        output_folder_path="made",
        copy_onnx_input_output_names_to_tflite=True,
        non_verbose=True,
    )
    made = sorted(Path("made").glob("*_float32.tflite"))
    if not made:
        raise RuntimeError("onnx2tf wrote no float32 model")
    made[0].replace(out)
    return {"step": f"onnx2tf {onnx2tf.__version__}: ONNX to TFLite, NHWC"}


if __name__ == "__main__":
    serve({"convert": convert})
