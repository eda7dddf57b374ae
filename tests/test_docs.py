"""README and docs: numbers are those of the result files, links lead somewhere."""

import re
from pathlib import Path

import pytest

from docs import tables

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_every_table_and_value_is_that_of_its_result_file():
    assert tables.main(check=True) == []


def test_a_changed_number_is_noticed():
    text = "<!-- value: cross_order_same -->0.1<!-- end --> and <!-- table: swissroll_orders -->\n\nx\n\n<!-- end -->"
    made = tables.fill(text, vars(tables))
    assert made != text and "0.1<" not in made and "| 1.46 ± 0.10 |" in made
    assert tables.fill(made, vars(tables)) == made


def anchors(page):
    """The ids that headings of a page get, from GitHub and MkDocs alike."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_exist(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"https?:|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        if anchor and there.suffix == ".md":
            found = {re.sub("-+", "-", name) for name in anchors(there)}
            assert re.sub("-+", "-", anchor) in found, (target, sorted(found))
