"""Tint what a segmentation model sees in a video: `python examples/segmentation_overlay.py road.edge drive.mp4`.

Writes the video with every class but the background tinted, and says how much of the picture each class covers.
`--every 3` asks the model about one frame in three; the mask stands in between.
"""

from __future__ import annotations

import argparse
import contextlib
from collections import defaultdict

import numpy as np

from edge_sdk import EdgeError, Pipeline
from edge_sdk.tasks.results import NO_CLASS, Mask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a .edge file whose task is segmentation")
    parser.add_argument("source", help="a video, an image or a folder of images")
    parser.add_argument("--save", default="overlay.mp4", help="the .mp4 file to write")
    parser.add_argument("--every", type=int, default=1, help="infer one frame in so many")
    parser.add_argument("--frames", type=int, help="stop after so many")
    args = parser.parse_args()

    shares: dict[str, float] = defaultdict(float)
    frames = 0
    pipe = Pipeline(args.source).stage(args.model, kind="segment", every=args.every).sink(f"video:{args.save}")
    pipe.start(frames=args.frames)
    with contextlib.closing(pipe):
        for item in pipe:
            mask = item.result
            assert isinstance(mask, Mask)
            frames += 1
            # The grid of the model is enough to measure on; `upright` would bring it to the frame's size.
            ids, counts = np.unique(mask.ids, return_counts=True)
            for class_id, count in zip(ids.tolist(), counts.tolist(), strict=True):
                if class_id != NO_CLASS:
                    shares[mask.label(class_id)] += count / mask.ids.size
    for label, share in sorted(shares.items(), key=lambda pair: -pair[1])[:10]:
        print(f"{100 * share / frames:6.1f} %  {label}")
    print(f"{frames} frames, {pipe.report().cpu_ms_per_frame:.1f} ms CPU each: {args.save}")


if __name__ == "__main__":
    try:
        main()
    except EdgeError as error:
        raise SystemExit(f"{error.message}\n{error.hint or ''}".strip()) from None
