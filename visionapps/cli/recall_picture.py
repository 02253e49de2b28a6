"""Recall of proposals as a picture: an SVG of two diagrams that any browser shows."""

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from visionapps.structures import distinct_colors

if TYPE_CHECKING:
    from visionapps.data.proposal_recall import RecallReport

_WIDE, _HIGH, _LEFT, _TOP = 360, 240, 60, 50  # px, of one diagram and the room before it
_STEP = _WIDE + 220  # from one diagram to the next: its legend stands between
Curve = tuple[str, Sequence[float]]


def recall_svg(report: "RecallReport", title: str) -> str:
    """Recall over IoU for every number of proposals, and average recall over that number for every class and size.

    Args:
        report: with at least one object.
        title: above both.
    """
    over_iou = [(f"{m} proposals", row.tolist()) for m, row in zip(report.budgets, report.all.recall, strict=True)]
    groups = [report.all, *report.sizes, *(report.classes if 1 < len(report.classes) <= 12 else ())]
    over_budget = [(g.name, g.average.tolist()) for g in groups if g.objects]
    width, height = 2 * _STEP + 40, _TOP + max(_HIGH, 18 * len(over_budget)) + 60
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
        'font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{_LEFT}" y="24" font-size="15">{escape(title)}</text>',
        *_diagram(_LEFT, "recall over IoU", [f"{iou:.2f}" for iou in report.ious], over_iou),
        *_diagram(_LEFT + _STEP, "average recall over proposals", list(map(str, report.budgets)), over_budget),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _diagram(left: int, title: str, ticks: Sequence[str], curves: Sequence[Curve]) -> list[str]:
    """Axes from 0 to 1 upwards, one place per tick to the right, curves with points, and a legend."""
    bottom = _TOP + _HIGH

    def x(place: int) -> float:
        return left + _WIDE * (place + 0.5) / len(ticks)

    def y(value: float) -> float:
        return bottom - _HIGH * value

    parts = [f'<text x="{left}" y="{_TOP - 8}">{title}</text>']
    for tenth in range(0, 11, 2):
        at = y(tenth / 10)
        parts.append(f'<path d="M{left} {at:.1f}h{_WIDE}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 8}" y="{at + 4:.1f}" text-anchor="end">{tenth / 10:.1f}</text>')
    parts += [
        f'<text x="{x(i):.1f}" y="{bottom + 18}" text-anchor="middle">{text}</text>' for i, text in enumerate(ticks)
    ]
    colors = distinct_colors(len(curves))
    for i, ((name, values), (r, g, b)) in enumerate(zip(curves, colors, strict=True)):
        color = f"rgb({r},{g},{b})"
        points = [(x(j), y(value)) for j, value in enumerate(values)]
        joined = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
        parts.append(f'<polyline points="{joined}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts += [f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="{color}"/>' for px, py in points]
        line = _TOP + 12 + 18 * i
        parts.append(f'<path d="M{left + _WIDE + 12} {line - 4}h20" stroke="{color}" stroke-width="2"/>')
        parts.append(f'<text x="{left + _WIDE + 38}" y="{line}">{escape(name)}</text>')
    return parts
