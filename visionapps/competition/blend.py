"""Several out-of-fold stores as one: the weighted mean of their probabilities, which can be tuned like any other store.

Every photo was scored in each store by the models of its own fold, none of which saw it; so their mean is out of fold,
too. It is what an ensemble of these kinds of model would say. Shapes: M stores, K classes, H W photo, h w window.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from visionapps.competition.oof import INDEX, OofStore, OofWriter
from visionapps.competition.predicting import keep_labels
from visionapps.competition.weights import GRID, on_grid, require_one_plan
from visionapps.errors import ConfigError, DataError, OutputError
from visionapps.files import refuse_existing, refuse_sources, whole_output
from visionapps.metrics.confusion import argmax_labels
from visionapps.windows import Window

_ROWS = 512  # of the stores' blocks


def blend(
    stores: Sequence[OofStore],
    weights: Sequence[float],
    out: Path,
    *,
    overwrite: bool = False,
    progress: Callable[[str], None] | None = None,
) -> OofStore:
    """Write the weighted mean of stores as one store; a band of rows of one photo at a time is in memory.

    The label of a pixel is that of the exact mean, as ``fit_weights`` judges it: where rounding to 8 bits would have
    made another class as large, the label's plane is raised over it.

    Args:
        stores: whole, of one plan, see require_one_plan; true labels are kept where they are there.
        weights: (M,) >= 0, in whole parts of 1 / 840; a store of weight 0 is left out.
        out: the folder; it appears whole or not at all.
        overwrite: replace an out-of-fold store that is there.
        progress: told the name of each photo when it is written.

    Raises:
        ConfigError: a weight is negative, all are 0, or there is not one for each store.
        DataError: stores of different plans, classes or sizes, or a damaged one.
        OutputError: ``out`` is there already, is no store, is one of the stores, or the disk refuses it.
    """
    if len(weights) != len(stores) or not all(0 <= weight < np.inf for weight in weights) or not sum(weights):
        raise ConfigError(f"blend: weights {list(weights)} of {len(stores)} stores; give each one, positive or 0")
    folders = [store.folder.resolve() for store in stores]
    for place, folder in enumerate(folders):
        if folder in folders[:place]:
            raise ConfigError(f"blend: {stores[place].folder} is given twice; give it once, with a larger weight")
    require_one_plan(stores, judged=False)
    refuse_target(out, [store.folder for store in stores], overwrite)
    pairs = zip(stores, on_grid(weights), strict=True)
    parts = {store: round(weight * GRID) for store, weight in pairs if round(weight * GRID)}
    first = stores[0]
    with whole_output(out, overwrite) as part:
        writer = OofWriter(part, labels=first.labels, plan=_Plan.of(first), size=first.size, how=_how(parts))
        for fold in range(first.k):
            with writer.fold(fold, {"fold": fold, "members": _members(parts, fold, out)}) as photos:
                for name in (name for name in first.names if first.fold(name) == fold):
                    truth = first.truth(name) if first.photos[name].truth else None
                    photos.write(name, _bands(parts, name), shape=first.shape(name), truth=truth)
                    if progress is not None:
                        progress(name)
    return OofStore.open(out)


def refuse_target(out: Path, stores: Sequence[Path], overwrite: bool) -> None:
    """Refuse a folder that would be lost by writing a store there.

    Raises:
        OutputError: it is there already, holds something else than a store, or is, is in or holds one that is read.
    """
    for folder in stores:
        if folder.resolve() in (out.resolve(), *out.resolve().parents):
            raise OutputError(f"{out}: is one of the stores that are blended, or inside it; choose another folder")
    refuse_sources(out, stores)
    refuse_existing(out, overwrite)
    if out.exists() and not (out / INDEX).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out}: is no out-of-fold store, so it is not replaced by one; choose another folder")


def mean_levels(stacks: Sequence[NDArray[np.uint8]], parts: Sequence[int]) -> NDArray[np.uint8]:
    """The weighted mean of scores, of which the largest is that of the exact mean (the lowest class wins a tie).

    Args:
        stacks: (M) of (K, h, w), round(255 * p).
        parts: (M,) whole weights that sum to the grid of ``on_grid``.

    Returns:
        (K, h, w) uint8, round(255 * p) within one level.
    """
    total = np.zeros(stacks[0].shape, np.float32)  # whole numbers far below 2 ** 24: every sum is exact
    for levels, share in zip(stacks, parts, strict=True):
        total += levels * np.float32(share)
    labels = argmax_labels(torch.from_numpy(total)[None])[0].numpy()
    return keep_labels(np.rint(total / sum(parts)).astype(np.uint8), labels)


def views_of(stores: Sequence[OofStore]) -> tuple[str, tuple[float, ...]]:
    """Flips and scales that all stores were predicted with.

    Raises:
        ConfigError: they differ; both stores are named.
        DataError: a store is damaged.
    """
    found = []
    for store in stores:
        flips, scales = str(store.how.get("flips", "none")), store.how.get("scales") or [1.0]
        try:
            found.append((flips, tuple(map(float, scales))))
        except (TypeError, ValueError) as error:
            raise DataError(f"{store.folder}: scales {scales!r} of its views are no numbers; write it anew") from error
    for store, own in zip(stores, found, strict=True):
        if own != found[0]:
            raise ConfigError(
                f"{store.folder}: was predicted with {_shown(own)}, but {stores[0].folder} with {_shown(found[0])}; "
                "say with --tta and --scales how the ensemble shall look"
            )
    return found[0]


def members_of(store: OofStore, fold: int) -> list[tuple[Path, float]]:
    """The bundles whose mean a fold of a store is, and how much each counts (in all 1).

    A bundle is where the store says, or beside the store, where `visionapps folds` leaves it.

    Raises:
        DataError: the store does not say which bundles.
    """
    member = store.members[fold]
    try:
        if "members" in member:
            return [(store.folder / item["bundle"], float(item["weight"])) for item in member["members"]]
        said = Path(member["bundle"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{store.folder}: does not say which bundle predicted fold {fold}; predict it anew with `visionapps folds`"
        ) from error
    beside = store.folder.parent / f"fold_{fold}" / "bundle"
    return [(beside if not said.is_dir() and beside.is_dir() else said, 1.0)]


def _members(parts: Mapping[OofStore, int], fold: int, out: Path) -> list[dict[str, Any]]:
    return [
        {"bundle": os.path.relpath(bundle, out), "weight": share * weight / GRID}
        for store, share in parts.items()
        for bundle, weight in members_of(store, fold)
    ]


def _how(parts: Mapping[OofStore, int]) -> dict[str, Any]:
    """What the new store says of itself: whose mean it is, and the views if all have the same."""
    said: dict[str, Any] = {"blend": {str(store.folder): share / GRID for store, share in parts.items()}}
    try:
        flips, scales = views_of(tuple(parts))
    except ConfigError:
        return said
    return said | {"flips": flips, "scales": list(scales)}


def _bands(parts: Mapping[OofStore, int], name: str) -> Iterator[NDArray[np.uint8]]:
    height, width = next(iter(parts)).shape(name)
    for top in range(0, height, _ROWS):
        window = Window(top, 0, min(_ROWS, height - top), width)
        yield mean_levels([store.scores(name, window) for store in parts], list(parts.values()))


def _shown(views: tuple[str, tuple[float, ...]]) -> str:
    return f"flips {views[0]} and scales {','.join(f'{scale:g}' for scale in views[1])}"


@dataclass(frozen=True)
class _Plan:
    """What a store keeps of its fold plan, for another store of the same one."""

    k: int
    key: str
    fingerprint: str
    folds: Mapping[str, int]

    @classmethod
    def of(cls, store: OofStore) -> "_Plan":
        return cls(store.k, store.plan, store.fingerprint, store.expected)

    def names(self, fold: int) -> tuple[str, ...]:
        return tuple(sorted(name for name, own in self.folds.items() if own == fold))
