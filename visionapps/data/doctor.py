"""Goes over a whole dataset once: stores every photo, divides them, and reports all problems together."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from visionapps.data.dataset import Dataset, Findings, Pair, Policies, Problem, find_pairs
from visionapps.data.extra import Opened, apart, extra_photos, open_extras, taught_by_validation
from visionapps.data.images import read_header
from visionapps.data.ingest import Ingest, Stored, judged
from visionapps.data.labels import MaskCoding
from visionapps.data.likeness import SIDE, near_duplicates
from visionapps.data.splits import Weight, beyond_buffer, cut_blocks, divide, group_name
from visionapps.data.store import Entry, Photo, Store
from visionapps.errors import DataError
from visionapps.windows import Window

_THREADS = 8  # decoders release the interpreter lock; more would only hold more photos in memory


@dataclass(frozen=True)
class Examination(Findings):
    """What a dataset holds, how it is divided, and what is wrong with it.

    Attributes:
        train: items to train on, by name.
        val: items to validate on, by name.
        coding: how mask values stand for labels.
        problems: all of them, whatever became of them.
        bands: channels of every photo.
        dtype: of every photo.
        source: the folder of images.
        extra: items that only train, of the dataset's extra sources.
    """

    train: tuple[Photo, ...]
    val: tuple[Photo, ...]
    coding: MaskCoding
    problems: tuple[Problem, ...]
    bands: int
    dtype: str
    source: str
    extra: tuple[Photo, ...] = ()

    @property
    def learned(self) -> tuple[Photo, ...]:
        """All items that crops are drawn from: those of the split that train, and the extra ones."""
        return (*self.train, *self.extra)

    def sources(self) -> dict[str, tuple[Photo, ...]]:
        """The extra items by their source."""
        names = dict.fromkeys(photo.origin for photo in self.extra)
        return {name: tuple(photo for photo in self.extra if photo.origin == name) for name in names}

    @property
    def class_pixels(self) -> dict[str, tuple[int, ...]]:
        """Per split ("train", "val") the (K,) labelled pixels of each class."""
        return {"train": _sum_pixels(self.train, self.coding), "val": _sum_pixels(self.val, self.coding)}

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        names = self.coding.labels.names
        splits = {}
        for split, photos in (("train", self.train), ("val", self.val)):
            pixels = self.class_pixels[split]
            area = sum(p.size[0] * p.size[1] for p in photos)
            splits[split] = {
                "photos": [p.name for p in photos],
                "groups": sorted({p.group for p in photos}),
                "pixels": area,
                "void_pixels": area - sum(pixels),
                "class_pixels": dict(zip(names, pixels, strict=True)),
                "class_photos": {n: sum(p.class_pixels[k] > 0 for p in photos) for k, n in enumerate(names)},
            }
        extra = [
            {
                "source": name,
                "weight": photos[0].weight,
                "soft": photos[0].soft,
                "photos": [p.name for p in photos],
                "pixels": sum(p.size[0] * p.size[1] for p in photos),
                "class_pixels": dict(zip(names, _sum_pixels(photos, self.coding), strict=True)),
            }
            for name, photos in self.sources().items()
        ]
        return {
            "images": self.source,
            "bands": self.bands,
            "dtype": self.dtype,
            "coding": self.coding.to_dict(),
            "splits": splits,
            "extra": extra,
            "counts": [{"kind": k, "action": a, "count": n} for (k, a), n in sorted(self.counts.items())],
            "problems": [asdict(p) for p in self.problems],
        }


def examine(dataset: Dataset, *, progress: bool = False) -> Examination:
    """Go over a dataset once; photos that are stored already are not decoded again.

    Args:
        dataset: folders, classes, split and policies.
        progress: show a bar on stderr.

    Returns:
        The division and all problems; call raise_on_errors before training on it.

    Raises:
        ConfigError: the class table contradicts itself, extra labels have other classes, or the decoded photos do not
            fit into cache_gb.
        DataError: a folder is missing or empty, or no mask belongs to an image.
        OutputError: the cache cannot be written.
    """
    coding = dataset.coding()
    pairs, problems = find_pairs(dataset)
    ingest = Ingest(dataset, coding, Store(dataset.cache_folder(), dataset.cache_gb))
    opened, more = open_extras(dataset, coding, ingest.store)
    problems += more
    entries = iter(_put_all([(ingest, pairs), *((source.ingest, source.pairs) for source in opened)], progress))
    stored = [Stored(pair, next(entries)) for pair in pairs]
    beside = [[Stored(pair, next(entries)) for pair in source.pairs] for source in opened]
    problems += judged(stored, dataset.policies)
    stored = [s for s in stored if s.entry.folder]
    stored, more = _alike_in_bands(stored, dataset.policies)
    problems += more
    if dataset.masks is not None:
        stored, more = _with_labels(stored, dataset.policies)
        problems += more
    items, more = _items(stored, dataset)
    problems += more
    train, val, more = _divided(items, dataset)
    problems += more
    train, more = _without_leaks(train, val, stored, dataset.policies)
    problems += more
    first = stored[0].entry if stored else Entry("")
    extra, more = _extras(opened, beside, train, val, first, dataset.policies)
    if dataset.masks is not None and (train or val):
        problems += _class_problems((*train, *extra), val, coding, dataset.policies)
    problems += more
    return Examination(
        tuple(train), tuple(val), coding, tuple(problems), first.bands, first.dtype, dataset.images, tuple(extra)
    )


def _put_all(sources: Sequence[tuple[Ingest, Sequence[Pair]]], progress: bool) -> list[Entry]:
    """The entries of all photos of all sources, which share a store, in order."""
    from tqdm import tqdm

    items = [(ingest, pair) for ingest, pairs in sources for pair in pairs]
    keys = {ingest.key(pair): (ingest, pair) for ingest, pair in items}
    store, needed = sources[0][0].store, 0
    for key, (ingest, pair) in keys.items():
        if store.find(key) is None:
            try:
                needed += ingest.bytes_of(read_header(pair.image, ingest.dataset.bands))
            except DataError:  # reported when it is decoded
                continue
    if needed:
        store.make_room(needed, keys.keys())
    pool = ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1))
    try:
        jobs = pool.map(lambda item: item[0].put(item[1]), items)
        quiet = None if progress else True  # None: silent where stderr is no terminal
        return list(tqdm(jobs, "reading photos", len(items), unit="photo", disable=quiet, leave=False))
    finally:
        pool.shutdown(cancel_futures=True)  # on Ctrl-C or a full disk nobody waits for the rest


def _extras(
    opened: Sequence[Opened],
    beside: Sequence[Sequence[Stored]],
    train: Sequence[Photo],
    val: Sequence[Photo],
    first: Entry,
    policies: Policies,
) -> tuple[list[Photo], list[Problem]]:
    """The photos of the extra sources that may train beside a split."""
    found, problems = [], []
    for source, stored in zip(opened, beside, strict=True):
        photos, more = extra_photos(source, stored, policies, (first.bands, first.dtype) if first.folder else None)
        found += photos
        problems += more
    found, more = apart(found, train, val, policies)
    return found, [*problems, *more, *taught_by_validation(opened, val)]


def _alike_in_bands(stored: list[Stored], policies: Policies) -> tuple[list[Stored], list[Problem]]:
    """Leave out photos that differ from most in bands or dtype."""
    kinds = Counter((s.entry.bands, s.entry.dtype) for s in stored)
    if len(kinds) < 2:
        return stored, []
    (bands, dtype), _ = kinds.most_common(1)[0]
    problems = [
        Problem(
            "bands",
            str(pair.image),
            f"{pair.image}: {entry.bands} bands of {entry.dtype}, but most photos have {bands} of {dtype}; choose "
            "bands that all have, convert the file, or set policies.bands: drop",
            policies.action("bands"),
        )
        for pair, entry in stored
        if (entry.bands, entry.dtype) != (bands, dtype)
    ]
    return [s for s in stored if (s.entry.bands, s.entry.dtype) == (bands, dtype)], problems


def _with_labels(stored: list[Stored], policies: Policies) -> tuple[list[Stored], list[Problem]]:
    problems = [
        Problem(
            "unlabelled",
            str(s.pair.mask),
            f"{s.pair.mask}: every pixel is void, so it teaches nothing; label it, or set policies.unlabelled: drop",
            policies.action("unlabelled"),
        )
        for s in stored
        if not sum(s.entry.class_pixels)
    ]
    if policies.unlabelled == "drop":
        stored = [s for s in stored if sum(s.entry.class_pixels)]
    return stored, problems


def _items(stored: Iterable[Stored], dataset: Dataset) -> tuple[list[Photo], list[Problem]]:
    """Photos with their groups, or the blocks of photos."""
    items, problems = [], []
    for pair, entry in stored:
        whole = Window(0, 0, entry.height, entry.width)
        if dataset.split.block_px is not None:
            for block in cut_blocks(entry.height, entry.width, dataset.split.block_px):
                name = f"{pair.name}@{block.row},{block.col}"
                photo = Photo(name, name, block, (), str(pair.image), entry.folder)
                pixels = tuple(photo.presence.sum((0, 1), dtype=np.int64).tolist())
                items.append(Photo(name, name, block, pixels, photo.source, photo.folder))
            continue
        try:
            header = read_header(pair.image, dataset.bands) if dataset.split.block_m is not None else None
            size = (header.height, header.width) if header else (entry.height, entry.width)
            group = group_name(dataset.split, pair.name, size, header.georef if header else None)
        except DataError as error:
            problems.append(Problem("split", str(pair.image), str(error), "error"))
            continue
        items.append(Photo(pair.name, group, whole, entry.class_pixels, str(pair.image), entry.folder))
    return items, problems


def _divided(items: Sequence[Photo], dataset: Dataset) -> tuple[list[Photo], list[Photo], list[Problem]]:
    if not items:
        text = f"{dataset.images}: no photo is left to train on; see the other problems"
        return [], [], [Problem("split", dataset.images, text, "error")]
    groups: dict[str, Weight] = {}
    for photo in items:
        weight = Weight(photo.size[0] * photo.size[1], photo.class_pixels)
        groups[photo.group] = groups[photo.group] + weight if photo.group in groups else weight
    try:
        validating = divide(dataset.split, groups, blocks=True)
        train = beyond_buffer(dataset.split, [photo for photo in items if photo.group not in validating])
    except DataError as error:
        return list(items), [], [Problem("split", dataset.images, str(error), "error")]
    return train, [photo for photo in items if photo.group in validating], []


def _without_leaks(
    train: list[Photo], val: list[Photo], stored: Sequence[Stored], policies: Policies
) -> tuple[list[Photo], list[Problem]]:
    """Find near-duplicates across the splits, and leave them out of training if the policy says so."""
    pictures = {str(s.pair.image): np.array(s.entry.likeness, np.float32).reshape(SIDE, SIDE) for s in stored}
    left, right = (sorted({p.source for p in side}) for side in (train, val))
    if not left or not right:
        return train, []
    same = np.array(left)[:, None] == np.array(right)[None]
    found = near_duplicates(np.stack([pictures[s] for s in left]), np.stack([pictures[s] for s in right]), same)
    action = policies.action("near_duplicate")
    problems = [
        Problem(
            "near_duplicate",
            left[i],
            f"{left[i]}: trains, but looks like {Path(right[j]).name} (likeness {alike:.2f}), which validates; give "
            "both one group (split.group), or set policies.near_duplicate to drop or warn",
            action,
        )
        for i, j, alike in found
    ]
    if action == "dropped":
        leaks = {left[i] for i, _, _ in found}
        train = [photo for photo in train if photo.source not in leaks]
        if not train:
            text = "split: every training photo looks like a validation photo; form groups of neighbours (split.group)"
            problems.append(Problem("split", "", text, "error"))
    return train, problems


def _class_problems(
    train: Sequence[Photo], val: Sequence[Photo], coding: MaskCoding, policies: Policies
) -> list[Problem]:
    problems = []
    sides = (_sum_pixels(train, coding), _sum_pixels(val, coding))
    for name, ids, ours, theirs in zip(coding.labels.names, coding.ids, *sides, strict=True):
        if not ours and not theirs:
            text = f"class {name} (ids {', '.join(map(str, ids))}) occurs in no mask; remove it, or mend its ids"
            problems.append(Problem("unused_class", "", text, policies.action("unused_class")))
        elif val and train and not (ours and theirs):
            where, cannot = ("validation", "be learned") if theirs else ("training", "be judged")
            text = f"class {name} occurs in {where} only, so it cannot {cannot}; choose another split"
            problems.append(Problem("one_sided_class", "", text, policies.action("one_sided_class")))
    return problems


def _sum_pixels(photos: Sequence[Photo], coding: MaskCoding) -> tuple[int, ...]:
    return tuple(sum(p.class_pixels[k] for p in photos) for k in range(len(coding.labels)))
