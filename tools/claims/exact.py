"""Every claim of the lectures that can be computed, in seconds: what it says, what must come out, what came out.

python tools/claims/exact.py                          # exits with 1 if one does not hold
python tools/claims/exact.py --write docs/claims.md   # and writes the tables of the page
"""

import argparse
import sys
from pathlib import Path

import torch
from claim import Claim, gather, markdown, write_section
from corrected import CORRECTED, Correction, corrections
from exact_counts import COUNTS
from exact_numbers import NUMBERS

from visionapps.cli.table import render

HEADERS = ("claim", "source", "expected", "got", "holds")


def main() -> int:
    """Print the tables, or write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the tables into this page of Markdown")
    options = parser.parse_args()
    torch.set_num_threads(1)
    claims, seconds = gather((*COUNTS, *NUMBERS))
    mended = corrections()
    print(render(HEADERS, [_row(claim) for claim in claims]))
    print(f"\n{_verdict(claims)}, in {seconds:.1f} CPU seconds\n")
    print(render(("deck", "what it prints", "what is true", "got", "holds"), [_line(each) for each in mended]))
    if options.write is not None:
        counted = f"{_verdict(claims)}.\n\n{markdown(HEADERS, map(_row, claims))}"
        write_section(options.write, "exact claims", counted)
        write_section(options.write, "corrected", markdown(CORRECTED, map(_line, mended)))
    return 0 if all(claim.holds for claim in claims) and all(each.holds is not False for each in mended) else 1


def _row(claim: Claim) -> tuple[str, ...]:
    return claim.text, claim.source, claim.expected, claim.got, "yes" if claim.holds else "NO"


def _line(each: Correction) -> tuple[str, ...]:
    return each.deck, each.prints, each.true, each.got, {True: "yes", False: "NO", None: ""}[each.holds]


def _verdict(claims: list[Claim]) -> str:
    return f"{sum(claim.holds for claim in claims)} of {len(claims)} claims hold"


if __name__ == "__main__":
    sys.exit(main())
