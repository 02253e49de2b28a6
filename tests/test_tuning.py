"""The search for rules: what its tables say is what drawn labels score, and what it finds is what trying all finds."""

import itertools
from dataclasses import dataclass, field

import numpy as np
import pytest
from scipy import ndimage

from visionapps.competition import tuning as tuning_module
from visionapps.competition.components import Contest
from visionapps.competition.nested import tune_nested
from visionapps.competition.objective import Objective
from visionapps.competition.pieces import Asked, level_units, piece_units
from visionapps.competition.postprocess import PostProcess, Rule, to_share
from visionapps.competition.search import Ledger
from visionapps.competition.tuning import Tuner, Tuning
from visionapps.errors import ConfigError, DataError
from visionapps.metrics.competition import build_metric
from visionapps.structures import LabelSpace


@dataclass
class Made:
    """Out-of-fold predictions in memory."""

    labels: LabelSpace
    planes: dict[str, np.ndarray]
    masks: dict[str, np.ndarray]
    folds: int = 3
    read: list[str] = field(default_factory=list)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self.planes))

    def fold(self, name: str) -> int:
        return self.names.index(name) % self.folds

    def scores(self, name: str) -> np.ndarray:
        self.read.append(name)
        return self.planes[name]

    def truth(self, name: str) -> np.ndarray:
        return self.masks[name]


def made(photos: int, classes: int, side: int = 48, *, noise: float = 6.0, signal: float = 2.5, seed: int = 0) -> Made:
    """Blocks of classes, smooth noise on their logits, and a frame without labels."""
    rng = np.random.default_rng(seed)
    planes, masks = {}, {}
    for i in range(photos):
        blocks = rng.choice(rng.choice(classes, min(classes, 3), replace=False), (side // 16, side // 16))
        truth = np.kron(blocks, np.ones((16, 16), int))
        logits = noise * ndimage.gaussian_filter(rng.normal(size=(classes, side, side)), (0, 1.5, 1.5))
        logits += signal * (truth == np.arange(classes)[:, None, None]) - 0.3 * np.arange(classes)[:, None, None]
        p = np.exp(logits - logits.max(0))
        planes[f"p{i:03}"] = np.rint(255 * p / p.sum(0)).astype(np.uint8)
        masks[f"p{i:03}"] = np.pad(truth[2:-2, 2:-2], 2, constant_values=255).astype(np.uint8)
    return Made(LabelSpace.named([f"c{k}" for k in range(classes)]), planes, masks)


def drawn_score(store: Made, metric, process: PostProcess) -> float:
    """By drawing every photo from its scores."""
    return metric.score(sum(metric.count(process.apply(store.planes[n]), store.masks[n]) for n in store.names))


def everyone(store: Made) -> np.ndarray:
    return np.ones(len(store.names), bool)


METRICS = [
    {"name": "dice_per_image", "empty": "one", "exclude": [0]},
    {"name": "dice_per_image", "empty": "skip"},
    {"name": "iou_per_image", "empty": "zero", "mean": "classes"},
    {"name": "dice_global"},
    {"name": "iou_global", "mean": "pooled", "exclude": [1]},
]


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: f"{metric['name']}-{metric.get('empty')}")
def test_the_objective_is_the_metric_for_any_counts(metric):
    rng = np.random.default_rng(5)
    areas = rng.integers(0, 9, (7, 4, 3)) * rng.integers(0, 2, (7, 4, 1))  # photos, classes; some without anything
    areas[..., 0] = np.minimum(areas[..., 0], areas[..., 1:].min(-1))
    built = build_metric(metric, 4)
    objective = Objective(built)
    sums = np.moveaxis(objective.sums(*np.moveaxis(areas, -1, 0)), 1, 0)
    counts = sum(built.of_parts(photo) for photo in areas)
    assert float(objective.score(sums)) == pytest.approx(built.score(counts), abs=1e-12)
    np.testing.assert_allclose(objective.per_class(sums), built.per_class(counts), atol=1e-12)


def counts_of(own: np.ndarray, k: int, won: Contest, truth: np.ndarray) -> list[int]:
    """Area, labelled pixels, hits, and of each of three rivals falls and those that are right, of some pixels."""
    known = own & (truth != 255)
    rivals = [known & (won.rival == r) for r in range(3)]
    falls = [int(n) for r, fall in enumerate(rivals) for n in (fall.sum(), (fall & (truth == r)).sum())]
    return [int(own.sum()), int(known.sum()), int((known & (truth == k)).sum()), *falls]


@pytest.mark.parametrize("seed", range(6))
def test_pieces_are_the_components_that_scipy_finds_at_each_threshold(seed):
    rng = np.random.default_rng(seed)
    shape, cell = rng.integers(5, 14, 2), np.ones((1 + seed % 2,) * 2, np.uint8)
    level = np.kron(rng.integers(0, 256, shape), cell).astype(np.uint8)
    winner = np.kron(rng.integers(0, 2, shape), cell).astype(np.uint8)
    won = Contest(winner, ((winner + rng.integers(1, 3, winner.shape)) % 3).astype(np.uint8), level)
    truth = rng.choice(np.array([0, 1, 2, 255], np.uint8), winner.shape)
    bottoms, sizes = np.array([40, 128, 200]), np.array([0, 3, 6])
    expected, alike = [], {}
    for (group, bottom), k in itertools.product(enumerate(bottoms), (0, 1)):
        ids, count = ndimage.label((winner == k) & (level >= bottom), np.ones((3, 3)))
        for i in range(1, count + 1):
            top, counts = int(level[ids == i].max()), counts_of(ids == i, k, won, truth)
            expected.append([group, k, top, counts[0], *counts])
            kind = group, k, int(bottoms[bottoms <= top][-1]), int(sizes[sizes <= counts[0]][-1])
            alike[kind] = np.add(alike.get(kind, 0), counts)

    def found(each: bool) -> list[list[int]]:
        units, cells = piece_units(won, truth, Asked(bottoms, bottoms, sizes, not each, 3))
        falls = np.zeros((len(units), 6), int)
        for unit, rival, fall, hits in cells:
            falls[unit, 2 * rival : 2 * rival + 2] += fall, hits
        return np.hstack([units, falls]).tolist()

    assert sorted(found(each=True)) == sorted(expected)
    assert sorted(found(each=False)) == sorted([*kind, *counts] for kind, counts in alike.items())
    units, cells = level_units(won, truth, 3)
    for u, (_, k, top, size, *counts) in enumerate(units.tolist()):
        own = counts_of((winner == k) & (level == top), k, won, truth)
        assert [size, *counts] == [own[0], *own[:3]]
        assert sorted(cells[cells[:, 0] == u, 1:].tolist()) == [
            [r, *own[3 + 2 * r :][:2]] for r in range(3) if own[3 + 2 * r]
        ]


@pytest.mark.parametrize("background", [0, None])
@pytest.mark.parametrize("metric", METRICS[:4], ids=lambda metric: f"{metric['name']}-{metric.get('empty')}")
def test_the_ledger_says_what_the_drawn_labels_score(monkeypatch, metric, background):
    ledgers: list[Ledger] = []

    class Watched(Ledger):
        def __init__(self, *given) -> None:
            super().__init__(*given)
            ledgers.append(self)

    monkeypatch.setattr(tuning_module, "Ledger", Watched)
    store, built = made(9, 4), build_metric(metric, 4)
    for rules in (("threshold",), ("triplet", "min_area", "min_present"), ("threshold", "min_area", "keep")):
        process = Tuner(store, built, Tuning(rules, background=background)).tune(everyone(store))
        score = drawn_score(store, built, process)
        assert ledgers[-1].score == pytest.approx(score, abs=1e-12)
        assert score > drawn_score(store, built, PostProcess.none(4, background)) - 1e-12


def test_the_threshold_of_one_class_is_the_best_of_all_that_can_be_tried():
    store, metric = made(8, 2), build_metric({"name": "dice_per_image", "exclude": [0]}, 2)
    found = Tuner(store, metric, Tuning(("threshold",), background=0)).tune(everyone(store))
    tried = [
        drawn_score(store, metric, PostProcess((Rule(), Rule(threshold=to_share(t))), background=0))
        for t in range(1, 256)
    ]
    assert drawn_score(store, metric, found) == pytest.approx(max(tried), abs=1e-12)
    assert max(tried) > tried[127] + 1e-3  # level 128 is the argmax: there was something to be found


def test_threshold_and_area_are_the_best_pair_of_the_grid():
    store, metric = made(6, 2, noise=8), build_metric({"name": "dice_per_image", "exclude": [0]}, 2)
    tuning = Tuning(("triplet", "min_area"), background=0)
    found = Tuner(store, metric, tuning).tune(everyone(store))
    pairs = itertools.product(tuning.bottoms[::2], tuning.bottoms, (0, 6, 13, 30, 68, 154))
    tried = [
        drawn_score(store, metric, PostProcess((Rule(), Rule(to_share(top), to_share(low), area)), background=0))
        for low, top, area in pairs
        if top >= low and (top - low) % 32 == 0
    ]
    assert drawn_score(store, metric, found) >= max(tried) - 1e-12


def test_holes_are_filled_where_that_helps():
    store, metric = made(8, 3, signal=5, noise=7), build_metric("dice_global", 3)
    found = Tuner(store, metric, Tuning(("holes",))).tune(everyone(store))
    assert any(rule.holes for rule in found.rules)
    assert drawn_score(store, metric, found) > drawn_score(store, metric, PostProcess.none(3)) + 0.005


def test_on_scores_that_mean_nothing_the_nested_estimate_shows_that_the_gain_is_none():
    store = made(6, 3, signal=0.0, noise=9, seed=4)
    metric = build_metric({"name": "dice_per_image", "empty": "skip"}, 3)
    rules = ("threshold", "triplet", "min_area", "min_present")
    tuned = tune_nested(Tuner(store, metric, Tuning(rules, background=0)))
    assert tuned.after.score > tuned.before.score
    assert tuned.nested.score < tuned.after.score - 0.005
    assert tuned.overfitting == pytest.approx(tuned.after.score - tuned.nested.score)
    # The estimate of one fold, by hand: rules from the other two folds, drawn on this one.
    others = np.array([store.fold(name) != 1 for name in store.names])
    process = Tuner(store, metric, Tuning(rules, background=0)).tune(others)
    own = [n for n in store.names if store.fold(n) == 1]
    by_hand = metric.score(sum(metric.count(process.apply(store.planes[n]), store.masks[n]) for n in own))
    assert tuned.folds[1].after == pytest.approx(by_hand)
    assert [gain.photos for gain in tuned.folds] == [2, 2, 2]


def test_rules_do_not_depend_on_photos_that_were_not_chosen():
    store, metric = made(6, 3), build_metric("dice_per_image", 3)
    chosen = np.arange(6) < 4
    tuning = Tuning(("threshold", "min_area", "holes"), calibration="platt")
    found = Tuner(store, metric, tuning).tune(chosen)
    spoilt = made(6, 3)
    for name in spoilt.names[4:]:
        spoilt.masks[name] = np.zeros_like(spoilt.masks[name])
    assert Tuner(spoilt, metric, tuning).tune(chosen) == found
    assert all(rule.calibration is not None for rule in found.rules)


def test_scores_are_read_once_however_many_rules_and_folds_there_are():
    store = made(6, 3)
    rules = ("threshold", "triplet", "min_area", "min_present", "keep", "holes")
    tune_nested(Tuner(store, build_metric("dice_per_image", 3), Tuning(rules, background=0)))
    assert sorted(store.read) == sorted(store.names)


def test_photos_whose_counts_do_not_fit_into_16_bits_are_tuned_exactly_too():
    small, large = made(3, 2), made(1, 2, 288, seed=1)
    store = Made(small.labels, small.planes | {"x": large.planes["p000"]}, small.masks | {"x": large.masks["p000"]})
    metric = build_metric("dice_per_image", 2)
    tuner = Tuner(store, metric, Tuning(("threshold", "min_area"), background=0))
    found = tuner.tune(everyone(store))
    counted = tuner._count(tuner.contests(None))
    assert (large.masks["p000"] != 255).sum() > 2**16
    assert counted.tables[1].standing.held.dtype == np.int32
    ledger = Ledger(tuner.objective, *counted[1:], everyone(store))
    table = counted.tables[1]
    scores = ledger.trial(1, table.standing.pick(0), table.standing)
    assert scores.max() == pytest.approx(drawn_score(store, metric, found), abs=1e-12)
    assert found.rules[1] != Rule()


@pytest.mark.parametrize("metric", ["dice_per_image", "dice_global"])
@pytest.mark.parametrize("background", [0, None])
def test_a_single_scored_class_that_other_folds_lack_is_tuned_where_it_is(metric, background):
    # Without fold 0, a candidate that leaves no pixel of class 1 leaves nothing to be scored: its score is NaN.
    store, built = made(6, 3), build_metric({"name": metric, "empty": "skip", "exclude": [0, 2]}, 3)
    for name in store.names:
        if store.fold(name) != 0:
            store.masks[name][store.masks[name] == 1] = 2
    tuned = tune_nested(Tuner(store, built, Tuning(("threshold", "min_area", "holes"), background=background)))
    assert tuned.after.score > tuned.before.score
    assert tuned.after.score == pytest.approx(drawn_score(store, built, tuned.process))
    for name in store.names:  # nor with class 1 nowhere, and holes of others with nothing to be scored
        store.masks[name][:], store.planes[name][1] = 2, 0
    assert Tuner(store, built, Tuning(("threshold", "holes"))).tune(everyone(store)) == PostProcess.none(3)


@pytest.mark.parametrize("background", [3, None])
def test_a_class_that_wins_no_pixel_has_no_rule_and_harms_none(background):
    store, metric = made(6, 4), build_metric("dice_per_image", 4)
    for name in store.names:
        store.planes[name][3] = 0
        store.masks[name][store.masks[name] == 3] = 1
    rules = ("threshold", "triplet", "min_area", "min_present", "keep", "holes")
    found = Tuner(store, metric, Tuning(rules, background=background)).tune(everyone(store))
    assert found.rules[3] == Rule()
    assert drawn_score(store, metric, found) > drawn_score(store, metric, PostProcess.none(4, background))


def test_what_does_not_fit_is_refused():
    store = made(3, 3)
    with pytest.raises(ConfigError, match="map_per_image: rules can be tuned on dice_per_image"):
        Tuner(store, build_metric("map_per_image", 3), Tuning())
    with pytest.raises(ConfigError, match="couples the classes of a photo"):
        Tuner(store, build_metric({"name": "dice_per_image", "empty": "skip", "mean": "images"}, 3), Tuning())
    with pytest.raises(ConfigError, match="of 4 classes, but the predictions have 3"):
        Tuner(store, build_metric("dice_per_image", 4), Tuning())
    with pytest.raises(ConfigError, match="erosion unknown; choose from threshold, triplet"):
        Tuning(("erosion",))
    with pytest.raises(ConfigError, match="seed -1: must be a whole number from 0 on"):
        Tuning(seed=-1)
    with pytest.raises(ConfigError, match="seed -1: must be a whole number from 0 on"):
        Tuning(seed=-1)
    with pytest.raises(ConfigError, match="needs at least two"):
        tune_nested(Tuner(made(1, 3), build_metric("dice_per_image", 3), Tuning()))
    store.masks["p001"] = store.masks["p001"][1:]
    with pytest.raises(DataError, match=r"p001: scores of \(48, 48\) px, but true labels of \(47, 48\)"):
        Tuner(store, build_metric("dice_per_image", 3), Tuning()).tune(everyone(store))
