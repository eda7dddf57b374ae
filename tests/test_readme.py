import re
from pathlib import Path

import numpy as np
import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, flags=re.S)


@pytest.mark.slow
@pytest.mark.parametrize("snippet", SNIPPETS)
def test_the_readmes_snippets_run(snippet):
    names = {}
    exec(snippet, names)  # the README is ours
    assert names["loss"].shape == (8,)
    assert np.isfinite(np.asarray(names["out"].x)).all()
    assert names["out"].nfe == 21


def test_the_readme_names_configs_that_exist():
    named = set(re.findall(r"configs/(\w+)\.py", README))
    there = {path.stem for path in (Path(__file__).parents[1] / "configs").glob("*.py")}
    assert named <= there
