"""Goes over a dataset of objects once: checks annotations, stores photos, divides them, reports all problems together.

Shapes: K classes, N objects.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from visionapps.data.annotations import AnnotatedImage, AnnotationSet, read_annotations
from visionapps.data.dataset import Findings, Problem
from visionapps.data.images import read_header
from visionapps.data.likeness import SIDE, near_duplicates
from visionapps.data.object_dataset import ObjectDataset, ObjectPhoto, ObjectPolicies
from visionapps.data.object_store import PhotoIngest, blank_entry
from visionapps.data.splits import Weight, beyond_buffer, divide, group_name
from visionapps.data.store import Entry, Store
from visionapps.errors import DataError
from visionapps.structures import LabelSpace

# Areas of the mask, or of the box, that COCO calls small and medium.
SMALL, MEDIUM = 32.0**2, 96.0**2
_LISTED = 5  # names in a message


@dataclass(frozen=True, eq=False)
class ObjectExamination(Findings):
    """What a dataset of objects holds, how it is divided, and what is wrong with it.

    Attributes:
        train: photos to train on, by name.
        val: photos to validate on, by name.
        labels: the label space.
        category_ids: (K,) the number of each class in COCO files.
        problems: all of them, whatever became of them.
        bands: channels of every photo.
        dtype: of every photo.
        source: the folder of images.
        tally: how many objects met which fate, by kind of problem, action and class.
        form: of the annotations.
    """

    train: tuple[ObjectPhoto, ...]
    val: tuple[ObjectPhoto, ...]
    labels: LabelSpace
    category_ids: tuple[int, ...]
    problems: tuple[Problem, ...]
    bands: int
    dtype: str
    source: str
    tally: Mapping[tuple[str, str, str], int] = field(default_factory=dict)
    form: str = "coco"

    @property
    def class_objects(self) -> dict[str, tuple[int, ...]]:
        """Per split ("train", "val") the (K,) objects of each class that are to be found."""
        return {"train": _per_class(self.train, self.labels), "val": _per_class(self.val, self.labels)}

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "images": self.source,
            "form": self.form,
            "bands": self.bands,
            "dtype": self.dtype,
            "labels": self.labels.to_dict(),
            "category_ids": list(self.category_ids),
            "splits": {"train": split_facts(self.train, self.labels), "val": split_facts(self.val, self.labels)},
            "counts": [{"kind": k, "action": a, "count": n} for (k, a), n in sorted(self.counts.items())],
            "objects_met": [
                {"kind": kind, "action": action, "class": name, "objects": n}
                for (kind, action, name), n in sorted(self.tally.items())
            ],
            "problems": [asdict(p) for p in self.problems],
        }


def split_facts(photos: Sequence[ObjectPhoto], labels: LabelSpace) -> dict[str, Any]:
    """Counts of one side of the split, as plain data."""
    objects = [photo.objects for photo in photos]
    found = np.array([int((~o.ignored).sum()) for o in objects], np.int64)
    areas = np.concatenate([o.areas[~o.ignored] for o in objects]) if objects else np.zeros(0)
    present = [set(o.labels[~o.ignored].tolist()) for o in objects]
    return {
        "photos": [p.name for p in photos],
        "groups": sorted({p.group for p in photos}),
        "pixels": sum(p.size[0] * p.size[1] for p in photos),
        "objects": int(found.sum()),
        "ignored_objects": int(sum(len(o) for o in objects) - found.sum()),
        "empty_photos": int((found == 0).sum()),
        "most_objects": int(found.max(initial=0)),
        "sizes": {
            "small": int((areas < SMALL).sum()),
            "medium": int(((areas >= SMALL) & (areas < MEDIUM)).sum()),
            "large": int((areas >= MEDIUM).sum()),
        },
        "class_objects": dict(zip(labels.names, _per_class(photos, labels), strict=True)),
        "class_photos": {name: sum(k in seen for seen in present) for k, name in enumerate(labels.names)},
    }


def examine_objects(dataset: ObjectDataset, *, progress: bool = False, pixels: bool = True) -> ObjectExamination:
    """Go over a dataset once; photos that are stored already are not decoded again.

    Args:
        dataset: folders, classes, split and policies.
        progress: show a bar on stderr.
        pixels: decode photos, which finds truncated ones and near-duplicates across the split; else only headers are
            read, and photos have no pixels.

    Returns:
        The division and all problems; call raise_on_errors before training on it.

    Raises:
        ConfigError: the class table contradicts itself or the files, or the decoded photos do not fit into cache_gb.
        DataError: there are no annotations, no image belongs to them, or the proposals are of another dataset.
        OutputError: the cache cannot be written.
    """
    found = read_annotations(dataset)
    problems = list(found.problems)
    if pixels:
        ingest = PhotoIngest(dataset, Store(dataset.cache_folder(), dataset.cache_gb))
        entries = ingest.put_all({image.name: found.headers[image.name] for image in found.images}, progress=progress)
    else:
        entries = {image.name: blank_entry(found.headers[image.name]) for image in found.images}
    images = [image for image in found.images if not entries[image.name].findings]
    problems += _unreadable(found.images, entries, dataset)
    tally = Counter(found.tally)
    _count_lost(tally, found.images, images, found.labels, "unusable_image")
    readable = images
    images, more = _alike_in_bands(images, entries, dataset)
    problems += more
    _count_lost(tally, readable, images, found.labels, "bands")
    images, more = _with_objects(images, dataset)
    problems += more
    photos, more = _photos(images, entries, dataset)
    problems += more
    train, val, more = _divided(photos, found.labels, dataset)
    problems += more
    if pixels:
        before = train
        train, more = _without_leaks(before, val, entries, dataset.policies)
        _count_lost(tally, before, train, found.labels, "near_duplicate")
        problems += more
    if train or val:
        problems += _class_problems(train, val, found, dataset.policies)
    if dataset.proposals is not None:
        train, val = _with_proposals(train, val, dataset.proposals)
    first = entries[images[0].name] if images else Entry("")
    return ObjectExamination(
        tuple(train),
        tuple(val),
        found.labels,
        found.category_ids,
        tuple(problems),
        first.bands,
        first.dtype,
        dataset.images,
        dict(tally),
        found.form,
    )


def _unreadable(
    images: Sequence[AnnotatedImage], entries: Mapping[str, Entry], dataset: ObjectDataset
) -> list[Problem]:
    return [
        Problem(
            finding.kind, str(Path(dataset.images) / i.name), finding.message, dataset.policies.action(finding.kind)
        )
        for i in images
        for finding in entries[i.name].findings
    ]


def _alike_in_bands(
    images: list[AnnotatedImage], entries: Mapping[str, Entry], dataset: ObjectDataset
) -> tuple[list[AnnotatedImage], list[Problem]]:
    """Leave out photos that differ from most in bands or dtype."""
    kind = {image.name: (entries[image.name].bands, entries[image.name].dtype) for image in images}
    if len(set(kind.values())) < 2:
        return images, []
    (bands, dtype), _ = Counter(kind.values()).most_common(1)[0]
    problems = []
    for image in images:
        if kind[image.name] != (bands, dtype):
            path, (own, type_) = Path(dataset.images) / image.name, kind[image.name]
            text = (
                f"{path}: {own} bands of {type_}, but most photos have {bands} of {dtype}; choose bands that all have, "
                "convert the file, or set policies.bands: drop"
            )
            problems.append(Problem("bands", str(path), text, dataset.policies.action("bands")))
    return [image for image in images if kind[image.name] == (bands, dtype)], problems


def _with_objects(images: list[AnnotatedImage], dataset: ObjectDataset) -> tuple[list[AnnotatedImage], list[Problem]]:
    """Say how many images are empty, in one line, and leave them out if the policy says so."""
    empty = [image.name for image in images if not len(image.objects)]
    if not empty:
        return images, []
    action = dataset.policies.action("empty_image")
    listed = ", ".join(empty[:_LISTED]) + (", ..." if len(empty) > _LISTED else "")
    text = f"{len(empty)} of {len(images)} images have no objects, so they are background ({listed})"
    problem = Problem("empty_image", "", f"{text}; policies.empty_image: drop leaves them out", action)
    return [i for i in images if len(i.objects)] if action == "dropped" else images, [problem]


def _photos(
    images: Sequence[AnnotatedImage], entries: Mapping[str, Entry], dataset: ObjectDataset
) -> tuple[list[ObjectPhoto], list[Problem]]:
    photos, problems = [], []
    for image in images:
        path = Path(dataset.images) / image.name
        try:
            georef = read_header(path, dataset.bands).georef if dataset.split.block_m is not None else None
            group = group_name(dataset.split, str(Path(image.name).with_suffix("").as_posix()), image.size, georef)
        except DataError as error:
            problems.append(Problem("split", str(path), str(error), "error"))
            continue
        folder = entries[image.name].folder
        photos.append(
            ObjectPhoto(image.name, group, str(path), image.image_id, image.size, image.objects, folder=folder)
        )
    return photos, problems


def _divided(
    photos: Sequence[ObjectPhoto], labels: LabelSpace, dataset: ObjectDataset
) -> tuple[list[ObjectPhoto], list[ObjectPhoto], list[Problem]]:
    if not photos:
        text = f"{dataset.images}: no photo is left to train on; see the other problems"
        return [], [], [Problem("split", dataset.images, text, "error")]
    groups: dict[str, Weight] = {}
    for photo in photos:
        weight = Weight(photo.size[0] * photo.size[1], _per_class([photo], labels))
        groups[photo.group] = groups[photo.group] + weight if photo.group in groups else weight
    try:
        validating = divide(dataset.split, groups)
        train = beyond_buffer(dataset.split, [photo for photo in photos if photo.group not in validating])
    except DataError as error:
        return list(photos), [], [Problem("split", dataset.images, str(error), "error")]
    return train, [photo for photo in photos if photo.group in validating], []


def _without_leaks(
    train: list[ObjectPhoto], val: list[ObjectPhoto], entries: Mapping[str, Entry], policies: ObjectPolicies
) -> tuple[list[ObjectPhoto], list[Problem]]:
    """Find near-duplicates across the splits, and leave them out of training if the policy says so."""
    if not train or not val:
        return train, []

    def pictures(photos: Sequence[ObjectPhoto]) -> np.ndarray:
        return np.stack([np.array(entries[p.name].likeness, np.float32).reshape(SIDE, SIDE) for p in photos])

    found = near_duplicates(pictures(train), pictures(val), np.zeros((len(train), len(val)), bool))
    action = policies.action("near_duplicate")
    problems = [
        Problem(
            "near_duplicate",
            train[i].source,
            f"{train[i].source}: trains, but looks like {val[j].name} (likeness {alike:.2f}), which validates; give "
            "both one group (split.group), or set policies.near_duplicate to drop or warn",
            action,
        )
        for i, j, alike in found
    ]
    if action == "dropped":
        leaks = {i for i, _, _ in found}
        train = [photo for i, photo in enumerate(train) if i not in leaks]
        if not train:
            text = "split: every training photo looks like a validation photo; form groups of neighbours (split.group)"
            problems.append(Problem("split", "", text, "error"))
    return train, problems


def _class_problems(
    train: Sequence[ObjectPhoto], val: Sequence[ObjectPhoto], found: AnnotationSet, policies: ObjectPolicies
) -> list[Problem]:
    problems = []
    sides = (_per_class(train, found.labels), _per_class(val, found.labels))
    for name, ours, theirs in zip(found.labels.names, *sides, strict=True):
        if not ours and not theirs:
            text = f"class {name} has no object that is to be found; remove it from classes, or mend its ids and names"
            problems.append(Problem("unused_class", "", text, policies.action("unused_class")))
        elif val and train and not (ours and theirs):
            where, cannot = ("validation", "be learned") if theirs else ("training", "be judged")
            text = f"class {name} occurs in {where} only, so it cannot {cannot}; choose another split"
            problems.append(Problem("one_sided_class", "", text, policies.action("one_sided_class")))
    return problems


def _with_proposals(
    train: Sequence[ObjectPhoto], val: Sequence[ObjectPhoto], path: str
) -> tuple[list[ObjectPhoto], list[ObjectPhoto]]:
    from visionapps.data.proposals import read_proposals

    proposals = read_proposals(Path(path))
    proposals.require({photo.name: photo.size for photo in (*train, *val)})
    sides = ([replace(p, proposals=proposals.of(p.name)) for p in side] for side in (train, val))
    first, second = sides
    return first, second


def _count_lost(
    tally: Counter[tuple[str, str, str]],
    before: Sequence[AnnotatedImage] | Sequence[ObjectPhoto],
    after: Sequence[AnnotatedImage] | Sequence[ObjectPhoto],
    labels: LabelSpace,
    kind: str,
) -> None:
    """Add the objects that left with their images to a tally."""
    left = {image.name for image in after}
    for image in before:
        if image.name not in left:
            for label in image.objects.labels.tolist():
                tally[kind, "dropped", labels.names[label]] += 1


def _per_class(photos: Sequence[ObjectPhoto], labels: LabelSpace) -> tuple[int, ...]:
    """(K,) objects that are to be found."""
    counts = np.zeros(len(labels), np.int64)
    for photo in photos:
        counts += np.bincount(photo.objects.labels[~photo.objects.ignored], minlength=len(labels))
    return tuple(counts.tolist())
