import re
from pathlib import Path

import numpy as np
import pytest

from docs import tables

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, flags=re.S)


def test_it_is_one_page():
    assert len(README.splitlines()) <= 180


@pytest.mark.slow
@pytest.mark.parametrize("snippet", SNIPPETS)
def test_the_readmes_snippets_run(snippet):
    names = {}
    exec(snippet, names)  # the README is ours
    for drawn in (names["pictures"], names["fourth"]):
        assert drawn.shape == (4, 8, 8, 1) and np.asarray(drawn).std() > 50
    assert names["out"].x.shape == (8, 2) and names["out"].nfe == 21


def test_the_readme_names_configs_that_exist():
    text = README + "".join(page.read_text() for page in (ROOT / "docs").rglob("*.md"))
    named = set(re.findall(r"configs/(\w+)\.py", text))
    there = {path.stem for path in (ROOT / "configs").glob("*.py")}
    assert named and named <= there


def test_what_it_says_of_samplers_holds_in_the_result_file():
    """The default beats three samplers, and its deterministic form DPM-Solver++(2M), at every order and budget."""
    for order in tables.ORDERS:
        for calls in (10, 20, 35, 50, 100):
            default = tables.worst("gaussian_fitted", order, calls)
            for other in ("euler_maruyama", "sscs (strang, start)", "heun"):
                assert default < tables.worst(other, order, calls), (order, calls, other)
            assert tables.worst("gaussian_fitted (churn=0)", order, calls) < tables.worst("dpmpp_2m", order, calls)
