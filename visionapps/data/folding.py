"""Drawing a fold plan: whole groups, every class in every fold as far as it goes, nothing near on both sides.

Shapes: N photos, G groups, K classes, F features that are spread evenly, k folds.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from visionapps.data.dataset import CELL
from visionapps.data.folds import FoldItem, FoldPlan
from visionapps.errors import ConfigError, DataError
from visionapps.windows import Window

Stratify = Literal["area", "presence", "none"]
Box = tuple[float, float, float, float]  # x0 y0 x1 y1 on the ground, in metres

_TRIES, _ASSIGNMENTS = 64, 40_000  # draws of which the best is kept, and groups assigned in all of them together
_NOISE = 0.3  # by which the order of groups varies between draws: their amounts by a factor of e^0.3
_MOVED_GROUPS = 500  # beyond which folds are even enough without moving single groups
_IMPROVED = 300  # groups in all draws that are improved: where a climb ends depends on where it begins
_TRIED = 20  # of the changes that promise most, which are looked at in full


class _Spread(NamedTuple):
    """What groups bring: shares of the whole of each feature, and which classes they hold."""

    features: np.ndarray  # (G, F) sum to 1 over groups
    present: np.ndarray  # (G, K) bool


def plan_folds(
    items: Sequence[FoldItem],
    k: int,
    *,
    seed: int = 0,
    stratify: Stratify = "area",
    rule: Mapping[str, Any] | None = None,
    together: Iterable[tuple[str, str]] = (),
    boxes: Mapping[str, Box] | None = None,
    buffer: float = 0.0,
) -> FoldPlan:
    """Divide photos into k folds.

    Groups are spread by iterative stratification: the rarest class first, each of its groups to the fold that lacks
    most of it. Of several such draws that differ in their order the most even one is kept, and single groups move
    where that makes it more even. The same arguments give the same plan on every machine.

    Args:
        items: all photos, or blocks of photos.
        k: folds, at least 2.
        seed: of the draws.
        stratify: what is even besides the pixels: "area": how much of each class there is; "presence": in how many
            photos it is; "none": neither. With both, as many classes as can be are in every fold, which comes first.
        rule: how groups were formed, kept in the plan: group, block_px, block_m of a Split.
        together: pairs of photos whose groups must share a fold.
        boxes: where photos lie on the ground.
        buffer: photos nearer than this to one that validates are on neither side, in metres. Of blocks it is in pixels:
            those of one photo lose the part that is nearer. Distances are the larger of those along the two axes.

    Raises:
        ConfigError: a number makes no sense.
        DataError: fewer groups than folds, or a buffer that leaves nothing to train on.

    Source: Sechidis, Tsoumakas, Vlahavas, On the stratification of multi-label data, 2011.
    """
    require_sense(k, seed=seed, stratify=stratify, buffer=buffer)
    joined = _joined(items, together)
    names = sorted(set(joined.values()))
    if len(names) < k:
        raise DataError(
            f"folds: {len(items)} photos make {len(names)} groups ({', '.join(names[:4])}), but {k} folds need one "
            "each; take fewer folds, or form smaller groups (--group, --block-px, --block-m)"
        )
    chosen = _spread_out(_measure(items, joined, names, stratify), k, seed)
    of = dict(zip(names, chosen.tolist(), strict=True))
    folds = {item.name: int(of[joined[item.group]]) for item in items}
    excluded = _excluded(items, folds, boxes or {}, buffer, k) if buffer else {}
    trimmed, excluded = _without_empty(_trimmed(items, folds, math.ceil(buffer), k) if buffer else {}, excluded)
    plan = FoldPlan(
        k=k,
        seed=seed,
        rule={"group": None, "block_px": None, "block_m": None, **(rule or {}), "stratify": stratify, "buffer": buffer},
        folds=folds,
        groups={item.name: item.group for item in items},
        digests={item.name: item.digest for item in items},
        excluded=excluded,
        trimmed=trimmed,
    )
    _require_training(plan)
    return plan


def require_sense(k: int, *, seed: int = 0, stratify: str = "area", buffer: float = 0.0) -> None:
    """Refuse numbers that no plan can be made with, before anything is read.

    Raises:
        ConfigError: which one.
    """
    if k < 2:
        raise ConfigError(f"folds: k {k} must be at least 2")
    if not 0 <= buffer < math.inf:
        raise ConfigError(f"folds: buffer {buffer:g} must be a distance, 0 or more")
    if seed < 0:
        raise ConfigError(f"folds: seed {seed} must not be negative")
    if stratify not in get_args(Stratify):
        raise ConfigError(f"folds: stratify {stratify!r} is unknown; choose from {', '.join(get_args(Stratify))}")


def _require_training(plan: FoldPlan) -> None:
    for fold in range(plan.k):
        if not any(plan.saw(fold, name) for name in plan.folds):
            raise DataError(
                f"folds: with a buffer of {plan.rule['buffer']:g} nothing is left to train on in fold {fold}; make it "
                "smaller"
            )


def class_table(plan: FoldPlan, items: Sequence[FoldItem]) -> np.ndarray:
    """(k, K) amounts of each class in each fold: pixels, objects or photos."""
    table = np.zeros((plan.k, len(items[0].amounts)), np.int64)
    for item in items:
        table[plan.folds[item.name]] += np.array(item.amounts, np.int64)
    return table


def _joined(items: Sequence[FoldItem], together: Iterable[tuple[str, str]]) -> dict[str, str]:
    """By group the name of the set of groups that it shares a fold with: its first one."""
    parent = {item.group: item.group for item in items}
    group = {item.name: item.group for item in items}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for one, other in together:
        first, second = sorted((root(group[one]), root(group[other])))
        parent[second] = first
    return {name: root(name) for name in parent}


def _measure(items: Sequence[FoldItem], joined: Mapping[str, str], names: Sequence[str], stratify: Stratify) -> _Spread:
    place = {name: i for i, name in enumerate(names)}
    rows = np.array([place[joined[item.group]] for item in items])
    amounts = np.array([item.amounts for item in items], np.float64).reshape(len(items), -1)
    pixels = np.array([item.size[0] * item.size[1] for item in items], np.float64)[:, None]
    columns = [pixels]
    if stratify == "presence":
        columns.append((amounts > 0).astype(np.float64))
    if stratify == "area":
        columns.append(amounts)
    features = np.zeros((len(names), sum(c.shape[1] for c in columns)))
    np.add.at(features, rows, np.concatenate(columns, 1))
    present = np.zeros((len(names), amounts.shape[1]), bool)
    np.logical_or.at(present, rows, amounts > 0)
    whole = features.sum(0)
    return _Spread(features[:, whole > 0] / whole[whole > 0], present if stratify != "none" else present[:, :0])


def _spread_out(spread: _Spread, k: int, seed: int) -> np.ndarray:
    """(G,) fold of each group."""
    generator = np.random.default_rng(seed)
    groups = len(spread.features)
    draws: list[tuple[tuple[float, float], np.ndarray]] = []
    for attempt in range(max(2, min(_TRIES, _ASSIGNMENTS // groups))):
        noise = np.exp(generator.normal(0, _NOISE if attempt else 0.0, groups))
        chosen = _stratified(spread, k, noise, generator)
        draws.append((_cost(spread, chosen, k), chosen))
    draws.sort(key=lambda draw: draw[0])
    if groups > _MOVED_GROUPS:
        return draws[0][1]
    ends = [_improved(spread, chosen, k) for _, chosen in draws[: max(1, _IMPROVED // groups)]]
    return min(ends, key=lambda chosen: _cost(spread, chosen, k))


def _stratified(spread: _Spread, k: int, noise: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """One draw of iterative stratification over the features, of which the first is the pixels."""
    features, groups = spread.features, len(spread.features)
    chosen = np.full(groups, -1)
    lacking = np.full((k, features.shape[1]), 1.0 / k)
    held = np.zeros(k, np.int64)
    while (chosen < 0).any():
        free = chosen < 0
        owners = ((features[:, 1:] > 0) & free[:, None]).sum(0)
        wanted = np.flatnonzero(owners)
        feature = 1 + int(wanted[owners[wanted].argmin()]) if len(wanted) else 0
        candidates = np.flatnonzero(free & (features[:, feature] > 0)) if len(wanted) else np.flatnonzero(free)
        for group in candidates[np.argsort(-(features[candidates, feature] * noise[candidates]), kind="stable")]:
            left = int((chosen < 0).sum())
            empty = held == 0
            allowed = empty if empty.sum() >= left else np.ones(k, bool)  # the last groups fill folds without any
            ties = np.lexsort((generator.random(k), -lacking[:, 0].round(9), -lacking[:, feature].round(9), ~allowed))
            fold = int(ties[0])
            chosen[group] = fold
            lacking[fold] -= features[group]
            held[fold] += 1
    return chosen


def _cost(spread: _Spread, chosen: np.ndarray, k: int) -> tuple[float, float]:
    """How many classes too few folds hold, and how uneven the features are: the mean square of (k share - 1)."""
    shares = np.zeros((k, spread.features.shape[1]))
    np.add.at(shares, chosen, spread.features)
    present = np.zeros((k, spread.present.shape[1]), bool)
    np.logical_or.at(present, chosen, spread.present)
    empty = k - len(np.unique(chosen))
    return float((~present).sum() + 1000 * empty), float(((k * shares - 1) ** 2).mean())


def _improved(spread: _Spread, chosen: np.ndarray, k: int) -> np.ndarray:
    """Move single groups or exchange two, the best change first, as long as that makes the folds more even."""
    chosen = chosen.copy()
    for _ in range(2 * len(chosen)):
        cost, found = _cost(spread, chosen, k), None
        moves, swaps = _changes(spread.features, chosen, k)
        for flat in np.argsort(moves, axis=None, kind="stable")[:_TRIED]:
            group, fold = divmod(int(flat), k)
            trial = chosen.copy()
            trial[group] = fold
            found = _better(spread, trial, k, cost, found)
        for flat in np.argsort(swaps, axis=None, kind="stable")[: 2 * _TRIED : 2]:  # each pair stands there twice
            one, other = divmod(int(flat), len(chosen))
            trial = chosen.copy()
            trial[one], trial[other] = chosen[other], chosen[one]
            found = _better(spread, trial, k, cost, found)
        if found is None:
            return chosen
        chosen = found[1]
    return chosen


def _changes(features: np.ndarray, chosen: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """How the sum of squares of shares changes when a group moves to a fold (G, k), or two change places (G, G)."""
    shares = np.zeros((k, features.shape[1]))
    np.add.at(shares, chosen, features)
    squares = (features**2).sum(1)
    # |s - x|^2 - |s|^2 of the fold that is left, and |t + x|^2 - |t|^2 of the one that is joined.
    held = (features * shares[chosen]).sum(1)
    moves = 2 * squares[:, None] - 2 * held[:, None] + 2 * features @ shares.T
    moves[np.arange(len(chosen)), chosen] = np.inf
    # With d = x - y: |s - d|^2 + |t + d|^2 - |s|^2 - |t|^2.
    inner = features @ shares[chosen].T  # x of the row in the fold of the column
    apart = squares[:, None] + squares[None] - 2 * features @ features.T
    swaps = 2 * (apart - held[:, None] - held[None] + inner + inner.T)
    swaps[chosen[:, None] == chosen[None]] = np.inf
    return moves, swaps


_Found = tuple[tuple[float, float], np.ndarray]


def _better(
    spread: _Spread, trial: np.ndarray, k: int, cost: tuple[float, float], found: _Found | None
) -> _Found | None:
    """The better of a division that was found and another, if that costs less than what is at hand."""
    own = _cost(spread, trial, k)
    if own >= (cost if found is None else found[0]) or (own[0] == cost[0] and own[1] > cost[1] - 1e-12):
        return found
    return own, trial


def _excluded(
    items: Sequence[FoldItem], folds: Mapping[str, int], boxes: Mapping[str, Box], buffer: float, k: int
) -> dict[int, tuple[str, ...]]:
    """By fold, what lies in other folds and nearer than the buffer to what validates; of blocks, in other photos."""
    placed = sorted((item for item in items if item.name in boxes), key=lambda item: item.name)
    if not placed:
        return {}
    places = np.array([boxes[item.name] for item in placed])
    reach = np.array([buffer * _metres(item, boxes[item.name]) for item in placed])
    own = np.array([folds[item.name] for item in placed])
    sources = np.unique([item.source for item in placed], return_inverse=True)[1]
    blocks = np.array([item.window is not None for item in placed])
    found = {}
    for fold in range(k):
        near = np.zeros(len(placed), bool)
        for i in np.flatnonzero(own == fold):
            apart = ~blocks | (sources != sources[i])  # blocks of one photo lose a strip, see _trimmed
            near |= apart & (gap(places, places[i]) < np.maximum(reach, reach[i]))
        found[fold] = tuple(item.name for item, n, f in zip(placed, near, own, strict=True) if n and f != fold)
    return {fold: out for fold, out in found.items() if out}


def _metres(item: FoldItem, box: Box) -> float:
    """Metres in the unit of the buffer: that is a pixel of blocks, and a metre of photos."""
    if item.window is None:
        return 1.0
    return max((box[2] - box[0]) / item.window.width, (box[3] - box[1]) / item.window.height)


def gap(boxes: np.ndarray, box: np.ndarray) -> np.ndarray:
    """How far boxes (N, 4) lie from a box (4,), the larger of the gaps along the two axes; negative: they overlap."""
    across = np.maximum(boxes[:, 0] - box[2], box[0] - boxes[:, 2])
    down = np.maximum(boxes[:, 1] - box[3], box[1] - boxes[:, 3])
    return np.asarray(np.maximum(across, down))


def _trimmed(items: Sequence[FoldItem], folds: Mapping[str, int], buffer: int, k: int) -> dict[int, dict[str, Window]]:
    """By fold, what is left of the blocks that train and come near to one of the same photo that validates."""
    whole: dict[str, list[FoldItem]] = {}
    for item in items:
        if item.window is not None:
            whole.setdefault(item.source, []).append(item)
    found: dict[int, dict[str, Window]] = {}
    for fold in range(k):
        for blocks in whole.values():
            judged = [b.window for b in blocks if folds[b.name] == fold and b.window is not None]
            for block in blocks:
                if block.window is None or folds[block.name] == fold:
                    continue
                left = block.window
                for window in judged:
                    left = _cut(left, window, buffer)
                if left != block.window:
                    found.setdefault(fold, {})[block.name] = left
    return found


def _cut(block: Window, judged: Window, buffer: int) -> Window:
    """The largest part of a block, on the CELL grid, that is not nearer than the buffer to another."""
    zone = Window(judged.row - buffer, judged.col - buffer, judged.height + 2 * buffer, judged.width + 2 * buffer)
    common = zone.intersect(block)
    if not common.height or not common.width:
        return block
    # Labels are counted in cells, so a part ends and begins between two of them.
    top, left = -(-zone.row_end // CELL) * CELL, -(-zone.col_end // CELL) * CELL
    bottom, right = zone.row // CELL * CELL, zone.col // CELL * CELL
    parts = (
        Window(block.row, block.col, max(0, bottom - block.row), block.width),
        Window(block.row, block.col, block.height, max(0, right - block.col)),
        Window(top, block.col, max(0, block.row_end - top), block.width),
        Window(block.row, left, block.height, max(0, block.col_end - left)),
    )
    return max(parts, key=lambda part: part.height * part.width)


def _without_empty(
    trimmed: Mapping[int, Mapping[str, Window]], excluded: Mapping[int, tuple[str, ...]]
) -> tuple[dict[int, dict[str, Window]], dict[int, tuple[str, ...]]]:
    """Blocks of which less than a cell is left do not train at all."""
    kept, out = {}, dict(excluded)
    for fold, windows in trimmed.items():
        gone = tuple(sorted(name for name, w in windows.items() if min(w.height, w.width) < CELL))
        kept[fold] = {name: w for name, w in windows.items() if name not in gone}
        if gone:
            out[fold] = tuple(sorted({*out.get(fold, ()), *gone}))
    return {fold: windows for fold, windows in kept.items() if windows}, out
