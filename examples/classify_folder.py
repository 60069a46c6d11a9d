"""Classify every image of a folder and list the files by class.

python examples/classify_folder.py MODEL.edge FOLDER
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

from edge_sdk import Pipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="an artifact whose task is classification")
    parser.add_argument("folder", help="a folder of images")
    args = parser.parse_args()

    files: dict[str, list[str]] = defaultdict(list)
    with Pipeline(args.folder).classify(args.model) as pipe:
        for item in pipe:
            best = item.result
            files[best.label(best.class_id)].append(f"{Path(item.frame.source).name} ({best.score:.2f})")

    for label in sorted(files):
        print(f"{label}: {', '.join(files[label])}")
    for name in pipe.report().broken:
        print(f"could not be read: {name}")


if __name__ == "__main__":
    main()
