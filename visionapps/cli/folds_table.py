"""Tables that `visionapps folds` prints: the plan, and what the folds are worth."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from visionapps.cli.table import render

if TYPE_CHECKING:
    from visionapps.competition.predicting import CrossValidation
    from visionapps.data.folds import FoldItem, FoldPlan
    from visionapps.inference.bundle import Bundle

_CLASSES = 12  # columns of the plan's table
_SCORES = ("mean_dice", "mean_iou", "accuracy", "ap", "ap50", "top1", "mean_recall")


def plan_table(plan: "FoldPlan", items: "Sequence[FoldItem]", names: Sequence[str]) -> str:
    """One line per fold: photos, groups, and its share of each class."""
    from visionapps.data.folding import class_table

    table = class_table(plan, items)
    whole = table.sum(0)
    area = [sum(i.size[0] * i.size[1] for i in items if plan.folds[i.name] == fold) for fold in range(plan.k)]
    rows: list[tuple[object, ...]] = []
    for fold in range(plan.k):
        own = plan.names(fold)
        shares = [f"{table[fold, c] / whole[c]:.0%}" if whole[c] else "-" for c in range(min(_CLASSES, len(names)))]
        groups = len({plan.groups[name] for name in own})
        out = len(plan.excluded.get(fold, ())), len(plan.trimmed.get(fold, {}))
        buffer = [f"{out[0]} out, {out[1]} cut"] if plan.rule.get("buffer") else []
        rows.append((str(fold), len(own), groups, f"{area[fold] / sum(area):.0%}", *buffer, *shares))
    titles = ["in buffer"] if plan.rule.get("buffer") else []
    return render(("fold", "photos", "groups", "area", *titles, *names[:_CLASSES]), rows)


def score_table(result: "CrossValidation") -> str:
    """One line per class: Dice over all photos, and how it varies from fold to fold."""

    def shown(value: float) -> float | None:
        return None if value != value else value  # NaN

    rows: list[tuple[object, ...]] = []
    folds = list(result.folds.values())
    for k, name in enumerate(result.names):
        mean, deviation = result.spread(lambda scores, k=k: scores.dice[k])  # type: ignore[misc]
        own = [shown(scores.dice[k]) for scores in folds]
        rows.append(
            (name, shown(result.pooled.dice[k]), shown(result.pooled.iou[k]), shown(mean), shown(deviation), *own)
        )
    mean, deviation = result.spread(lambda scores: scores.mean_dice)
    own = [shown(scores.mean_dice) for scores in folds]
    pooled = result.pooled
    rows.append(("mean", shown(pooled.mean_dice), shown(pooled.mean_iou), shown(mean), shown(deviation), *own))
    titles = [f"fold {fold}" for fold in result.folds]
    return render(("class", "Dice, pooled", "IoU, pooled", "Dice, mean", "deviation", *titles), rows)


def metrics_table(only: Sequence[int], bundles: "Sequence[Bundle]") -> str:
    """What each fold's validation gave."""
    metrics = [bundle.card.get("metrics") or {} for bundle in bundles]
    keys = [key for key in _SCORES if any(isinstance(found.get(key), float) for found in metrics)]
    rows: list[tuple[object, ...]] = [
        (str(fold), *(found.get(key) for key in keys)) for fold, found in zip(only, metrics, strict=True)
    ]
    columns = [[found[key] for found in metrics if isinstance(found.get(key), float)] for key in keys]
    means = [sum(column) / len(column) for column in columns]
    rows.append(("mean", *means))
    if len(bundles) > 1:
        spread = [
            (sum((v - m) ** 2 for v in column) / (len(column) - 1)) ** 0.5 if len(column) > 1 else None
            for column, m in zip(columns, means, strict=True)
        ]
        rows.append(("deviation", *spread))
    return render(("fold", *keys), rows)
