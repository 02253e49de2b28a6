"""Goes over a classification dataset once: decodes every photo, divides them, and reports all problems together."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from visionapps.data.class_dataset import ClassDataset, ClassPhoto
from visionapps.data.class_listing import Listed, list_photos
from visionapps.data.class_store import Kept, keep_photos
from visionapps.data.dataset import Findings, Problem
from visionapps.data.likeness import SIDE, near_duplicates
from visionapps.data.splits import Weight, divide, group_name
from visionapps.errors import ConfigError, DataError
from visionapps.structures import LabelSpace

FEW = 10  # photos of a class below which it can hardly be learned
_PAIRS = 30_000_000  # of photos that are compared for likeness: some seconds


@dataclass(frozen=True)
class ClassExamination(Findings):
    """What a dataset holds, how it is divided, and what is wrong with it.

    Attributes:
        train: photos to train on.
        val: photos to validate on.
        labels: the classes.
        problems: all of them, whatever became of them.
        bands: channels of every photo.
        dtype: of every photo.
        source: what the dataset is called in messages.
    """

    train: tuple[ClassPhoto, ...]
    val: tuple[ClassPhoto, ...]
    labels: LabelSpace
    problems: tuple[Problem, ...]
    bands: int
    dtype: str
    source: str

    def class_photos(self, side: str) -> tuple[int, ...]:
        """(K,) photos of each class in "train" or "val"."""
        found = Counter(photo.label for photo in getattr(self, side))
        return tuple(found[k] for k in range(len(self.labels)))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        splits = {
            side: {
                "photos": [p.name for p in getattr(self, side)],
                "groups": sorted({p.group for p in getattr(self, side)}),
                "class_photos": dict(zip(self.labels.names, self.class_photos(side), strict=True)),
            }
            for side in ("train", "val")
        }
        return {
            "train": self.source,
            "bands": self.bands,
            "dtype": self.dtype,
            "labels": self.labels.to_dict(),
            "splits": splits,
            "counts": [{"kind": k, "action": a, "count": n} for (k, a), n in sorted(self.counts.items())],
            "problems": [asdict(p) for p in self.problems],
        }


class _Item(NamedTuple):
    listed: Listed
    kept: Kept
    side: str  # "train" or "val"; of those that are still to be divided "train"


class _Doctor:
    """Collects problems while photos pass through."""

    def __init__(self, dataset: ClassDataset) -> None:
        self.dataset = dataset
        self.problems: list[Problem] = []

    def report(self, kind: str, file: str, text: str) -> str:
        """Note a problem; returns what becomes of it."""
        action = self.dataset.policies.action(kind)
        self.problems.append(Problem(kind, file, text, action))
        return action


def examine_classes(dataset: ClassDataset, *, progress: bool = False) -> ClassExamination:
    """Go over a dataset once; photos that were decoded before are not decoded again.

    Args:
        dataset: where photos are, their classes, split and policies.
        progress: show a bar on stderr.

    Returns:
        The division and all problems; call raise_on_errors before training on it.

    Raises:
        DataError: there are no photos at all.
        ConfigError: the decoded photos do not fit into cache_gb.
        OutputError: the cache cannot be written.
    """
    doctor = _Doctor(dataset)
    listing = list_photos(dataset)
    doctor.problems += listing.problems
    photos = [*listing.train, *(listing.val or ())]
    pixels, kept = keep_photos(dataset, photos, progress=progress)
    sides = ["train"] * len(listing.train) + ["val"] * len(listing.val or ())
    items = [_Item(*each) for each in zip(photos, kept, sides, strict=True)]
    items = _readable(doctor, items)
    items, bands, dtype = _alike(doctor, items)
    names = _names(dataset, items, listing.kinds)
    items = _of_known_classes(doctor, items, names)
    items = _without_contested(doctor, items)
    divided = _to_photos(doctor, items, names, bands, pixels)
    train, val = divided if listing.val is not None else _divided(doctor, divided[0], len(names))
    likeness = {(i.listed.name, str(i.listed.path)): i.kept for i in items}
    train = _without_leaks(doctor, train, val, likeness)
    _count_classes(doctor, train, val, names)
    return ClassExamination(
        tuple(train), tuple(val), LabelSpace.named(names), tuple(doctor.problems), bands, dtype, dataset.train
    )


def _readable(doctor: _Doctor, items: Sequence[_Item]) -> list[_Item]:
    found = []
    for item in items:
        path = str(item.listed.path)
        if item.kept.error:
            doctor.report("bands" if item.kept.missing_band else "corrupt", path, item.kept.error)
            continue
        if item.kept.format:
            text = f"{path}: holds {item.kept.format}, though its name says otherwise; rename it"
            doctor.report("wrong_suffix", path, text)
        found.append(item)
    return found


def _alike(doctor: _Doctor, items: Sequence[_Item]) -> tuple[list[_Item], int, str]:
    """Leave out photos that differ from most in bands or data type, or make grey ones colourful."""
    kinds = Counter((item.kept.bands, item.kept.dtype) for item in items)
    if not kinds:
        return [], 0, ""
    (bands, dtype), _ = kinds.most_common(1)[0]
    found = []
    for item in items:
        known = item.kept
        if (known.bands, known.dtype) == (bands, dtype):
            found.append(item)
            continue
        path = str(item.listed.path)
        text = (
            f"{path}: {known.bands} bands of {known.dtype}, but most photos have {bands} of {dtype}; choose bands that "
            "all have, convert the file, or set policies.bands to drop (or to fix, for grey among coloured ones)"
        )
        grey = known.bands == 1 and known.dtype == dtype
        if doctor.dataset.policies.bands != "fix":
            doctor.report("bands", path, text)
        elif grey:
            doctor.report("bands", path, text)
            found.append(item)
        else:
            doctor.problems.append(Problem("bands", path, text, "error"))
    return found, bands, dtype


def _names(dataset: ClassDataset, items: Sequence[_Item], kinds: Sequence[str] | None) -> tuple[str, ...]:
    if dataset.classes is not None:
        return dataset.classes
    names = tuple(kinds) if kinds else tuple(sorted({i.listed.kind for i in items if i.side == "train"}))
    if not names:
        raise ConfigError(f"{dataset.train}: no class is left; name them in classes")
    return names


def _of_known_classes(doctor: _Doctor, items: Sequence[_Item], names: Sequence[str]) -> list[_Item]:
    known = set(names)
    strange: dict[tuple[str, str], list[_Item]] = defaultdict(list)
    for item in items:
        if item.listed.kind not in known:
            strange[item.side, item.listed.kind].append(item)
    for (side, kind), found in strange.items():
        where = (
            "validates, but never trains" if side == "val" and doctor.dataset.classes is None else "is not in classes"
        )
        text = (
            f"{found[0].listed.path}: class {kind} ({len(found)} photos) {where}; correct its name, add it, or set "
            "policies.unknown_class: drop"
        )
        doctor.report("unknown_class", str(found[0].listed.path), text)
    return [item for item in items if item.listed.kind in known]


def _without_contested(doctor: _Doctor, items: Sequence[_Item]) -> list[_Item]:
    """Photos whose very pixels stand in two classes, or twice in one class of a split."""
    same: dict[str, list[_Item]] = defaultdict(list)
    for item in items:
        same[item.kept.digest].append(item)
    gone: set[int] = set()
    for twins in same.values():
        kinds = sorted({t.listed.kind for t in twins})
        first = twins[0].listed
        if len(kinds) > 1:
            other = next(t.listed for t in twins if t.listed.kind != first.kind)
            text = (
                f"{_shown(first)}: the very same photo is {_shown(other)}, of another class ({', '.join(kinds)}); keep "
                "the right one, or set policies.contested to drop (both) or warn"
            )
            if doctor.report("contested", str(first.path), text) == "dropped":
                gone.update(id(t) for t in twins)
            continue
        for side in ("train", "val"):
            again = [t for t in twins if t.side == side][1:]
            for twin in again:
                text = (
                    f"{_shown(twin.listed)}: the very same photo is {_shown(first)}; remove one, or set "
                    "policies.repeated: drop"
                )
                if doctor.report("repeated", str(twin.listed.path), text) == "dropped":
                    gone.add(id(twin))
    return [item for item in items if id(item) not in gone]


def _shown(listed: Listed) -> str:
    return f"{listed.path}" if listed.pixels is None else f"{listed.path}: {listed.name}"


def _to_photos(
    doctor: _Doctor, items: Sequence[_Item], names: Sequence[str], bands: int, pixels: Path
) -> tuple[list[ClassPhoto], list[ClassPhoto]]:
    labels = {name: k for k, name in enumerate(names)}
    dataset = doctor.dataset
    sides: dict[str, list[ClassPhoto]] = {"train": [], "val": []}
    for listed, known, side in items:
        try:
            group = group_name(dataset.split, listed.name, known.size)
        except DataError as error:
            doctor.problems.append(Problem("split", str(listed.path), str(error), "error"))
            continue
        stored = known.offset >= 0
        photo = ClassPhoto(
            name=listed.name,
            label=labels[listed.kind],
            group=group,
            size=known.size,
            source=str(listed.path),
            bands=known.bands if stored else bands,
            dtype=known.dtype,
            store=str(pixels) if stored else "",
            offset=max(0, known.offset),
            chosen=dataset.bands,
        )
        sides[side].append(photo)
    return sides["train"], sides["val"]


def _divided(doctor: _Doctor, photos: Sequence[ClassPhoto], classes: int) -> tuple[list[ClassPhoto], list[ClassPhoto]]:
    """Cut the validation off. Without groups that is done class by class, so that shares are kept."""
    split = doctor.dataset.split
    try:
        if split.group is None and split.plan is None and not split.val_groups:
            chosen = _share_of_each(photos, classes, split.val_fraction, split.seed)
            return [p for i, p in enumerate(photos) if i not in chosen], [photos[i] for i in sorted(chosen)]
        groups: dict[str, Weight] = {}
        for photo in photos:
            weight = Weight(1, tuple(int(k == photo.label) for k in range(classes)))
            groups[photo.group] = groups[photo.group] + weight if photo.group in groups else weight
        validating = divide(split, groups)
    except DataError as error:
        doctor.problems.append(Problem("split", doctor.dataset.train, str(error), "error"))
        return list(photos), []
    return [p for p in photos if p.group not in validating], [p for p in photos if p.group in validating]


def _share_of_each(photos: Sequence[ClassPhoto], classes: int, share: float, seed: int) -> set[int]:
    """The same share of every class, drawn; at least one photo of a class that has two, if any is wanted."""
    rng = np.random.default_rng(seed)
    places: list[list[int]] = [[] for _ in range(classes)]
    for i, photo in enumerate(photos):
        places[photo.label].append(i)
    chosen: set[int] = set()
    for own in places:
        wanted = round(share * len(own))
        if 0 < share < 1 and len(own) > 1:
            wanted = min(max(1, wanted), len(own) - 1)
        chosen.update(int(i) for i in rng.permutation(own)[:wanted])
    return chosen


def _without_leaks(
    doctor: _Doctor, train: list[ClassPhoto], val: Sequence[ClassPhoto], known: Mapping[tuple[str, str], Kept]
) -> list[ClassPhoto]:
    """Photos that train though they, or ones like them, validate."""

    def kept(photo: ClassPhoto) -> Kept:
        return known[photo.name, photo.source]

    judged = {kept(photo).digest: photo for photo in val}
    gone: set[str] = set()
    copies: set[str] = set()
    for photo in train:
        twin = judged.get(kept(photo).digest)
        if twin is None:
            continue
        copies.add(photo.name)
        text = (
            f"{photo.source}: {photo.name} trains, but {twin.name}, the very same photo, validates; give both one "
            "group, or set policies.duplicate to drop or warn"
        )
        if doctor.report("duplicate", photo.source, text) == "dropped":
            gone.add(photo.name)
    rest = [photo for photo in train if photo.name not in copies]
    if rest and val and len(rest) * len(val) <= _PAIRS:
        gone |= _near(doctor, rest, val, kept)
    return [photo for photo in train if photo.name not in gone]


def _near(doctor: _Doctor, train: Sequence[ClassPhoto], val: Sequence[ClassPhoto], kept: Any) -> set[str]:
    ours, theirs = (
        np.stack([np.array(kept(photo).likeness, np.float32).reshape(SIDE, SIDE) for photo in side])
        for side in (train, val)
    )
    gone = set()
    for i, j, alike in near_duplicates(ours, theirs, np.zeros((len(train), len(val)), bool)):
        text = (
            f"{train[i].source}: {train[i].name} trains, but looks like {val[j].name} (likeness {alike:.2f}), which "
            "validates; give both one group (split.group), or set policies.near_duplicate to drop"
        )
        if doctor.report("near_duplicate", train[i].source, text) == "dropped":
            gone.add(train[i].name)
    return gone


def _count_classes(
    doctor: _Doctor, train: Sequence[ClassPhoto], val: Sequence[ClassPhoto], names: Sequence[str]
) -> None:
    ours, theirs = (Counter(photo.label for photo in side) for side in (train, val))
    for label, name in enumerate(names):
        if not ours[label] and not theirs[label]:
            text = f"class {name} has no photo; remove it from classes, or add photos"
            doctor.report("empty_class", "", text)
        elif not ours[label]:
            text = f"class {name} validates only, so it cannot be learned; add photos to train, or choose another split"
            doctor.report("unknown_class", "", text)
        elif ours[label] < FEW:
            text = f"class {name} has {ours[label]} photos to train on, fewer than {FEW}; add some, or merge classes"
            doctor.report("tiny_class", "", text)
        if val and ours[label] and not theirs[label]:
            text = f"class {name} trains only, so it cannot be judged; choose another split"
            doctor.report("one_sided_class", "", text)
