"""The tutorial as its readers run it: the notebook's code, cell after cell, with JAX as it comes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from docs.make_notebook import cells, notebook

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"


def test_the_notebook_is_the_script():
    script = (ROOT / "docs" / "tutorial.py").read_text()
    assert json.loads(NOTEBOOK.read_text()) == notebook(script, ROOT / "docs" / "tutorial")
    assert NOTEBOOK.stat().st_size < 500_000


def test_cells_are_prose_or_code_and_none_is_lost():
    script = "# %% [markdown]\n# # Title\n#\n# text\n\n# %%\na = 1  # %% no cell\n\n\n# %%\nb = 2\n"
    assert cells(script) == [("markdown", "# Title\n\ntext"), ("code", "a = 1  # %% no cell"), ("code", "b = 2")]


@pytest.mark.parametrize("inside", [".", "docs"])
def test_figures_lie_beside_the_notebook_wherever_it_is_run(tmp_path, monkeypatch, inside):
    (tmp_path / "docs").mkdir()
    monkeypatch.chdir(tmp_path / inside)
    code = next(source for kind, source in cells((ROOT / "docs" / "tutorial.py").read_text()) if kind == "code")
    exec(code.partition("ORDERS")[0], {})
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("tutorial")] == ["docs/tutorial"]


@pytest.mark.slow
def test_the_notebook_runs_and_draws_what_it_shows(tmp_path):
    code = [
        "".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"
    ]
    # The oracles are the notebook's own assertions; a file, because a notebook's cells are compiled one by one too.
    (tmp_path / "cells.json").write_text(json.dumps(code))
    run = "import json\nspace = {'__name__': '__main__'}\nfor c in json.load(open('cells.json')): exec(c, space)"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    environment |= {"MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", run], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "sliced Wasserstein distance" in done.stdout
    drawn = {path.name for path in (tmp_path / "tutorial").iterdir()}
    assert drawn == {path.name for path in (ROOT / "docs" / "tutorial").iterdir()}


def test_a_broken_claim_stops_the_tutorial():
    """The assertions are live: with a friction that is not critical the first of them fails."""
    script = (ROOT / "docs" / "tutorial.py").read_text()
    code = next(source for kind, source in cells(script) if kind == "code" and "def chain" in source)
    import matplotlib.pyplot as plt
    import numpy as np
    from scipy.linalg import expm

    from hold_jax import sde

    class Wrong:
        hold = staticmethod(sde.hold)

        @staticmethod
        def critical_damping(order):
            gammas, xi = sde.critical_damping(order)
            return gammas, 1.5 * xi

    space = {"plt": plt, "np": np, "expm": expm, "sde": Wrong, "ORDERS": (1, 2), "COLORS": {2: "black"}}
    with pytest.raises(AssertionError):
        exec(code, space)
    plt.close("all")
