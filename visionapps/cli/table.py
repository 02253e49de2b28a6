"""Aligned plain-text tables for the terminal."""

from collections.abc import Sequence


def render(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Lay out a table: numbers (float: three decimals) to the right, text to the left.

    Args:
        headers: one title per column.
        rows: cells; None is shown as a dash.
    """
    cells = [[_text(value) for value in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(headers), *cells]) for i in range(len(headers))]
    right = [bool(rows) and all(isinstance(r[i], int | float | None) for r in rows) for i in range(len(headers))]
    lines = [list(headers), ["-" * w for w in widths], *cells]
    aligned = (
        "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True))
        for line in lines
    )
    return "\n".join(line.rstrip() for line in aligned)


def _text(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
