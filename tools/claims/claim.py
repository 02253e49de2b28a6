"""What a claim is, and how it is printed and written into a page."""

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple


class Claim(NamedTuple):
    """One statement with what it should give and what it gave."""

    text: str
    source: str  # deck 000 to 004, or the paper
    expected: str
    got: str
    holds: bool


Check = Callable[[], Iterable[Claim]]


def equal(text: str, source: str, expected: object, got: object) -> Claim:
    """A claim that must come out to the last digit."""
    return Claim(text, source, shown(expected), shown(got), expected == got)


def close(text: str, source: str, expected: float, got: float, *, within: float = 1e-3) -> Claim:
    """A claim that must come out within a share of what is expected."""
    holds = abs(got - expected) <= within * abs(expected)
    return Claim(text, source, f"{expected:.4g} within {within:.2g}", f"{got:.4g}", holds)


def below(text: str, source: str, bound: float, got: float) -> Claim:
    """A claim that something is smaller than a bound."""
    return Claim(text, source, f"< {bound:.4g}", f"{got:.4g}", got < bound)


def above(text: str, source: str, bound: float, got: float) -> Claim:
    """A claim that something is larger than a bound."""
    return Claim(text, source, f"> {bound:.4g}", f"{got:.4g}", got > bound)


def shown(value: object) -> str:
    """A value as people write it."""
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, tuple | list):
        return ", ".join(map(shown, value))
    return str(value)


def gather(checks: Sequence[Check]) -> tuple[list[Claim], float]:
    """All claims of all checks, and the CPU seconds they took."""
    begin = time.process_time()
    found = [claim for check in checks for claim in check()]
    return found, time.process_time() - begin


def markdown(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table as Markdown has it."""
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def write_section(page: Path, name: str, body: str) -> None:
    """Replace what stands between the marks of a section, or add the section at the end of the page."""
    begin, end = f"<!-- {name}: written by a tool -->", f"<!-- {name}: end -->"
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    section = f"{begin}\n{body}\n{end}"
    if begin in text:
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = before + section + after
    else:
        text = f"{text.rstrip()}\n\n{section}\n".lstrip()
    page.write_text(text, encoding="utf-8")
