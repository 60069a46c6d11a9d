"""Say who works without a helmet: a detector finds people, a second model looks at each of them.

python examples/ppe_cascade.py people.edge helmet.edge site.mp4 --wears helmet

The second model may be a classifier of people (`helmet`, `bare`) or a detector of what they wear: whoever it has
answered without the label `--wears` for some frames in a row is an alert. Each tracked person is looked at again only
every `--refresh` frames. `--zone` watches a part of the picture, `--save` writes a video with everything drawn on it.
"""

from __future__ import annotations

import argparse

from edge_sdk import EdgeError, Pipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("people", help="a .edge file of a detector")
    parser.add_argument("second", help="a .edge file of a classifier or detector for the boxes")
    parser.add_argument("source", help="a video, 0 for the first camera, or rtsp://…")
    parser.add_argument("--who", nargs="*", default=["person"], help="labels of the detector that are looked at")
    parser.add_argument("--wears", nargs="+", default=["helmet"], help="labels of the second model that must be there")
    parser.add_argument("--score", type=float, default=0.4, help="smallest score of the detector")
    parser.add_argument("--refresh", type=int, default=10, help="look at a tracked person again after so many frames")
    parser.add_argument("--zone", nargs="+", type=float, metavar="X Y", help="corners in pixels: x1 y1 x2 y2 x3 y3 …")
    parser.add_argument("--cooldown", type=float, default=10.0, help="seconds between two alerts")
    parser.add_argument("--out", help="write every result to this .jsonl file")
    parser.add_argument("--save", help="write the video with results drawn on it to this .mp4 file")
    args = parser.parse_args()

    pipe = Pipeline(args.source).detect(args.people, score=args.score)
    pipe.track(high=args.score, new=args.score)
    pipe.then(args.second, name="ppe", classes=args.who, pad=0.1, refresh_frames=args.refresh)
    zone = list(zip(args.zone[::2], args.zone[1::2], strict=True)) if args.zone else []
    pipe.alert(
        "unprotected",
        classes=args.who,
        min_score=args.score,
        where_not={"ppe": args.wears},
        polygon=zone,
        min_frames=5,
        cooldown_s=args.cooldown,
    )
    for sink in (f"jsonl:{args.out}" if args.out else "", f"video:{args.save}" if args.save else ""):
        if sink:
            pipe.sink(sink)

    with pipe:
        for result in pipe:
            for event in result.events:
                who = ", ".join(f"#{track}" for track in event.get("tracks", ())) or "somebody"
                print(f"{event['t_s']:8.2f} s  {event['count']} without {' or '.join(args.wears)}: {who}")
    stages = {row["name"]: row for row in pipe.report().to_json()["stages"]}
    ppe = stages["ppe"]
    print(f"looked at {ppe['crops']} crops, kept {ppe['carried']} answers, {stages['unprotected']['events']} alerts")


if __name__ == "__main__":
    try:
        main()
    except EdgeError as error:
        raise SystemExit(f"{error.message}\n{error.hint or ''}".strip()) from None
