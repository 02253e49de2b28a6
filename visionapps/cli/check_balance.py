"""What check says about rare classes: how often they occur, and the weights that a loss would give them."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from visionapps.cli.table import render

if TYPE_CHECKING:
    from visionapps.class_weights import ClassCounts
    from visionapps.data.doctor import Examination


def weight_table(found: "Examination") -> Iterable[str]:
    """One line per class: its pixels in training, and its weight by each rule; nothing where nothing is labelled."""
    rules = weights_by_rule(found)
    if not rules:
        return
    counts = _counts(found)
    whole = sum(counts.pixels)
    rows = [
        (name, pixels, f"{pixels / whole:8.3%}", *(weights[k] for weights in rules.values()))
        for k, (name, pixels) in enumerate(zip(counts.names, counts.pixels, strict=True))
    ]
    yield "Weights that class_weights of a loss would give:\n" + render(
        ("class", "train pixels", "share", *rules), rows
    )


def weights_by_rule(found: "Examination") -> dict[str, tuple[float, ...]]:
    """(K,) weights by the name of the rule, with its usual settings; none where nothing is labelled."""
    from visionapps.class_weights import RULES, ClassWeights

    counts = _counts(found)
    return {rule: ClassWeights(rule).of(counts) for rule in RULES} if sum(counts.pixels) else {}


def balance_report(found: "Examination") -> dict[str, Any]:
    """The same for JSON, under one key: pixels and weights by the name of the class."""
    counts, rules = _counts(found), weights_by_rule(found)
    named = {rule: dict(zip(counts.names, weights, strict=True)) for rule, weights in rules.items()}
    pixels = dict(zip(counts.names, counts.pixels, strict=True))
    return {"balance": {"train_pixels": pixels, "class_weights": named}}


def _counts(found: "Examination") -> "ClassCounts":
    from visionapps.data.balance import class_counts

    return class_counts(found.coding.labels.names, found.learned)
