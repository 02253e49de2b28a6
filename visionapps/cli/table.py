"""Aligned plain-text tables for the terminal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from visionapps.metrics.confusion import Scores
    from visionapps.metrics.topk import ClassScores
    from visionapps.structures import LabelSpace


def render(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Lay out a table: numbers (float: three decimals) to the right, text to the left.

    Args:
        headers: one title per column; all empty: no header lines.
        rows: cells; None is shown as a dash.
    """
    cells = [[_text(value) for value in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(headers), *cells]) for i in range(len(headers))]
    right = [bool(rows) and all(isinstance(r[i], int | float | None) for r in rows) for i in range(len(headers))]
    lines = [list(headers), ["-" * w for w in widths], *cells] if any(headers) else cells
    aligned = (
        "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True))
        for line in lines
    )
    return "\n".join(line.rstrip() for line in aligned)


def score_table(names: Sequence[str], scores: "Scores") -> str:
    """One line per class, and one with the means; a dash where a value is not defined."""

    def shown(value: float) -> float | None:
        return None if value != value else value  # NaN

    support, pixels = scores.support, max(1, sum(scores.support))
    columns = (scores.dice, scores.iou, scores.precision, scores.recall)
    rows: list[tuple[object, ...]] = [
        (name, *(shown(column[k]) for column in columns), f"{support[k] / pixels:.2%}") for k, name in enumerate(names)
    ]
    rows.append(("mean", shown(scores.mean_dice), shown(scores.mean_iou), None, None, "100%"))
    return render(("class", "Dice", "IoU", "precision", "recall", "of truth"), rows)


def class_table(labels: "LabelSpace", scores: "ClassScores", most: int = 40) -> str:
    """One line per class, of very many the worst; and one for all of them. A dash where a value is not defined."""

    def shown(value: float) -> float | None:
        return None if value != value else value  # NaN

    order = list(range(len(labels)))
    if len(order) > most:
        order = sorted((k for k in order if scores.support[k]), key=lambda k: scores.recall[k])[:most]
    rows: list[tuple[object, ...]] = [
        (labels.names[k], shown(scores.recall[k]), shown(scores.precision[k]), scores.support[k]) for k in order
    ]
    rows.append(("mean of the classes", shown(scores.mean_recall), None, None))
    head = f"top-1 {scores.top1:.3f}, top-5 {scores.top5:.3f} over {sum(scores.support)} images"
    left_out = f"\nthe worst {most} of {len(labels)} classes; --json has all" if len(labels) > most else ""
    return f"{render(('class', 'right', 'precision', 'images'), rows)}{left_out}\n\n{head}"


def _text(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
