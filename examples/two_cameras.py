"""Watch two cameras in one process: `python examples/two_cameras.py people.edge door.mp4 rtsp://user:password@yard/stream`.

Each camera has its own results file and its own fate: one that is lost or fails never stops the other. The model is
opened once for both where its runtime allows that.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from edge_sdk import Cameras, EdgeError, Pipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a .edge file of a detector")
    parser.add_argument("sources", nargs=2, metavar="SOURCE", help="a video, 0 for the first camera, or rtsp://…")
    parser.add_argument("--score", type=float, default=0.4, help="smallest score of a detection")
    parser.add_argument("--frames", type=int, help="stop after so many frames of each")
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder for one .jsonl file a camera")
    args = parser.parse_args()

    args.out.mkdir(parents=True, exist_ok=True)
    names = ("first", "second")
    cameras = Cameras(
        {
            name: Pipeline(source).detect(args.model, score=args.score).track().sink(f"jsonl:{args.out / name}.jsonl")
            for name, source in zip(names, args.sources, strict=True)
        }
    )
    most = dict.fromkeys(names, 0)
    with cameras.start(frames=args.frames):
        for name, item in cameras:  # whichever has a result, in order for each
            most[name] = max(most[name], len(item.detections))
        report = cameras.report()

    for name, row in report["cameras"].items():
        if "error" in row:
            print(f"{name}: {row['error']['message']}")
            continue
        found = ", ".join(f"{label} in {r['frames']} frames" for label, r in list(row["results"].items())[:3])
        print(f"{name}: {row['frames']['processed']} frames, at most {most[name]} at once, {found or 'nothing found'}")
    for model in report["models"]:
        print("one model for both" if model["shared"] else f"a model for each: {model['why']}")


if __name__ == "__main__":
    try:
        main()
    except EdgeError as error:
        raise SystemExit(f"{error.message}\n{error.hint or ''}".strip()) from None
