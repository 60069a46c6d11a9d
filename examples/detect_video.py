"""Detect objects on a video or camera, write results and an annotated video, and say what was seen.

python examples/detect_video.py MODEL.edge VIDEO --out results.jsonl --save annotated.mp4
"""

from __future__ import annotations

import argparse
from pathlib import Path

from edge_sdk import Pipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="an artifact whose task is detection")
    parser.add_argument("source", help="a video, 0 for the first camera, or rtsp://…")
    parser.add_argument("--out", type=Path, default=Path("results.jsonl"))
    parser.add_argument("--save", type=Path)
    parser.add_argument("--score", type=float, default=0.4)
    parser.add_argument("--frames", type=int)
    args = parser.parse_args()

    pipe = Pipeline(args.source).detect(args.model, score=args.score).sink(f"jsonl:{args.out}")
    if args.save:
        pipe.sink(f"video:{args.save}")
    report = pipe.run(frames=args.frames)

    print(f"{report.processed} frames, {report.fps:.0f} a second, {report.cpu_ms_per_frame:.1f} ms CPU each")
    for label, row in report.results.items():
        print(f"{label}: in {row['frames']} frames, best score {row['best']:.2f}")


if __name__ == "__main__":
    main()
