"""Count objects that cross a line in a video: `python examples/count_over_line.py cars.edge street.mp4`.

The line lies across the middle of the picture unless `--line` says otherwise; down (or right, for a line from bottom to
top) is `in`. Nothing moves, nothing is inferred; a camera that is covered or turned away is reported.
"""

from __future__ import annotations

import argparse

import cv2

from edge_sdk import EdgeError, Pipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a .edge file of a detector")
    parser.add_argument("video", help="a video file")
    parser.add_argument("--line", nargs=4, type=float, metavar=("X1", "Y1", "X2", "Y2"), help="pixels")
    parser.add_argument("--classes", nargs="*", default=[], help="labels that count, default all")
    parser.add_argument("--score", type=float, default=0.25, help="smallest score of a detection")
    parser.add_argument("--out", help="write every result to this .jsonl file")
    args = parser.parse_args()

    x1, y1, x2, y2 = args.line or middle_line(args.video)
    pipe = Pipeline(args.video).detect(args.model, score=args.score)
    pipe.motion_gate().camera_health().track(high=args.score, new=args.score, class_aware=False)
    pipe.line("line", (x1, y1), (x2, y2), classes=args.classes)
    if args.out:
        pipe.sink(f"jsonl:{args.out}")

    counts = {"in": 0, "out": 0}
    for result in pipe:
        for event in result.events:
            if event["kind"] == "camera":
                print(f"{event['t_s']:8.2f} s  camera {event['problem']}: {event['state']}")
            else:
                print(f"{event['t_s']:8.2f} s  {event['label']} #{event['track']} {event['kind']}")
        counts = result.counts["line"]
    print(f"in {counts['in']}, out {counts['out']}")


def middle_line(video: str) -> tuple[float, float, float, float]:
    """Return a line from left to right through the middle of a video's picture."""
    capture = cv2.VideoCapture(video)
    width, height = capture.get(cv2.CAP_PROP_FRAME_WIDTH), capture.get(cv2.CAP_PROP_FRAME_HEIGHT)
    capture.release()
    return 0, height / 2, width, height / 2


if __name__ == "__main__":
    try:
        main()
    except EdgeError as error:
        raise SystemExit(f"{error.message}\n{error.hint or ''}".strip()) from None
