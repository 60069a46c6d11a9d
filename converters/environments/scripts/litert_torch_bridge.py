"""Exported PyTorch programs to TFLite by litert-torch."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from lines import serve  # type: ignore[import-not-found]


def convert(source: str, out: str) -> dict[str, Any]:
    """Write `out` and return how it was made; an image input becomes NHWC."""
    import litert_torch  # type: ignore[import-not-found]
    import torch

    program = torch.export.load(source)
    given = program.example_inputs[0] if program.example_inputs else None
    if not given or len(given) != 1:
        raise RuntimeError("the exported program has no example of its one image")
    image = given[0].detach()
    module = program.module()
    layout = "as it was"
    if image.ndim == 4 and image.shape[1] in (1, 3):
        module = litert_torch.to_channel_last_io(module, args=[0])
        image, layout = image.permute(0, 2, 3, 1).contiguous(), "NHWC"
    litert_torch.convert(module, (image,)).export(out)
    return {"step": f"litert-torch {metadata.version('litert-torch')}: PyTorch to TFLite, {layout}"}


if __name__ == "__main__":
    serve({"convert": convert})
