"""What a data set is: images and what is labelled of each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

Kind = Literal["classes", "csv", "values", "yolo", "voc", "coco", "masks", "images"]

_TASKS = ("classification", "detection", "segmentation", "keypoints", "regression")


@dataclass(frozen=True, slots=True)
class Box:
    """A labelled box x1 y1 x2 y2; in pixels, or in shares of the image where `relative`."""

    class_id: int
    x1: float
    y1: float
    x2: float
    y2: float
    relative: bool = False
    ignore: bool = False


@dataclass(frozen=True, slots=True)
class Person:
    """Labelled points (x, y, v) in pixels, v as in COCO (0: not labelled); area in square pixels (0: unknown)."""

    points: tuple[tuple[float, float, float], ...]
    area: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One image with what is labelled of it: class, boxes, mask file (class ids), poses, values."""

    image: Path
    class_id: int | None = None
    boxes: tuple[Box, ...] | None = None
    mask: Path | None = None
    poses: tuple[Person, ...] | None = None
    values: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """Samples in the order of their file names, and the names of the classes or values where the folder has them.

    `points` are the names of the points of a pose.
    """

    root: Path
    kind: Kind
    samples: tuple[Sample, ...]
    names: tuple[str, ...] = ()
    points: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def task(self) -> str | None:
        """Return the task that the labels are for first of all; None without labels."""
        return next((task for task in _TASKS if self.serves(task)), None)

    def serves(self, task: str) -> bool:
        """Return whether the labels can judge a model of the task; class folders serve embeddings too."""
        if not self.samples:
            return False
        if task == "segmentation":
            return any(s.mask is not None for s in self.samples)
        if task == "detection":
            return all(s.boxes is not None for s in self.samples)
        if task == "keypoints":
            return any(s.poses for s in self.samples)
        if task == "regression":
            return all(s.values is not None for s in self.samples)
        return task in ("classification", "embedding") and all(s.class_id is not None for s in self.samples)

    def for_task(self, task: str) -> DataSet:
        """Return the set as it judges a model of the task: of masks, the images that have one."""
        if task != "segmentation" or not self.serves(task):
            return self
        return replace(self, samples=tuple(s for s in self.samples if s.mask is not None))

    def keep(self, images: Iterable[Path]) -> DataSet:
        """Return the set without the samples whose image is not in `images`."""
        wanted = set(images)
        return replace(self, samples=tuple(s for s in self.samples if s.image in wanted))

    def unlabelled(self) -> DataSet:
        bare = tuple(Sample(image=s.image) for s in self.samples)
        return replace(self, kind="images", names=(), points=(), samples=bare)
