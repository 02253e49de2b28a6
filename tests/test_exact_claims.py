"""Claims of the lectures: all hold, the page says so, and a wrong one would not pass."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tools():
    """The modules of tools/claims, which import each other by name."""
    sys.path.insert(0, str(ROOT / "tools" / "claims"))
    import claim
    import corrected
    import exact_counts
    import exact_numbers

    yield claim, corrected, (*exact_counts.COUNTS, *exact_numbers.NUMBERS)
    sys.path.remove(str(ROOT / "tools" / "claims"))


def test_all_claims_hold_and_stand_on_the_page(tools):
    claim, _, checks = tools
    claims, _ = claim.gather(checks)
    assert [each for each in claims if not each.holds] == []
    assert len(claims) > 80
    page = (ROOT / "docs" / "claims.md").read_text(encoding="utf-8")
    assert [each.text for each in claims if f"| {each.text} | {each.source} |" not in page] == []


def test_all_corrections_of_the_decks_hold_and_stand_on_the_page(tools):
    _, corrected, _ = tools
    found = corrected.corrections()
    assert [each for each in found if each.holds is False] == []
    assert sum(each.holds is True for each in found) > 12
    page = (ROOT / "docs" / "claims.md").read_text(encoding="utf-8")
    assert [each.prints for each in found if f"| {each.prints} | {each.true} |" not in page] == []


def test_what_does_not_come_out_does_not_hold(tools):
    claim, _, _ = tools
    wrong = [
        claim.equal("a", "b", (1, 2), (1, 3)),
        claim.close("a", "b", 100.0, 100.2),
        claim.below("a", "b", 1.0, float("nan")),
        claim.above("a", "b", 1.0, 1.0),
    ]
    assert not any(each.holds for each in wrong)
    assert claim.close("a", "b", -100.0, -100.05).holds
    assert claim.equal("a", "b", 1_000_000, 1_000_000).got == "1,000,000"


def test_a_section_of_a_page_is_replaced_and_the_rest_stays(tools, tmp_path):
    claim, _, _ = tools
    page = tmp_path / "page.md"
    page.write_text("# Title\n")
    claim.write_section(page, "one", claim.markdown(("a",), [("x|y",)]))
    claim.write_section(page, "two", "second")
    claim.write_section(page, "one", "first")
    marks = "<!-- {0}: written by a tool -->\n{1}\n<!-- {0}: end -->\n"
    assert page.read_text() == "# Title\n\n" + marks.format("one", "first") + "\n" + marks.format("two", "second")
    assert claim.markdown(("a", "b"), [("x|y", "z")]) == "| a | b |\n| --- | --- |\n| x\\|y | z |"
