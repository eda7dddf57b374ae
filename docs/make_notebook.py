"""Makes docs/tutorial.ipynb of docs/tutorial.py and its figures: python -m docs.make_notebook.

Cells begin at lines `# %%` (code) and `# %% [markdown]` (prose, in comments). A figure that a cell saves in the
tutorial's folder becomes that cell's output. Nothing is executed: run the tutorial first.
"""

import base64
import json
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent


def cells(script: str) -> list[tuple[str, str]]:
    """("markdown" or "code", source) of each cell of a script in the percent format."""
    found = []
    for part in re.split(r"^# %%", script, flags=re.M)[1:]:
        head, _, body = part.partition("\n")
        if head.strip() == "[markdown]":
            found.append(("markdown", re.sub(r"^# ?", "", body.strip(), flags=re.M)))
        else:
            found.append(("code", body.strip()))
    return found


def notebook(script: str, figures: Path) -> dict[str, Any]:
    """The notebook (nbformat 4.5) of a script, with the figures that its cells save in `figures` as outputs."""
    made = []
    for i, (kind, source) in enumerate(cells(script)):
        cell = {"cell_type": kind, "id": f"cell-{i}", "metadata": {}, "source": source.splitlines(keepends=True)}
        if kind == "code":
            names = re.findall(r'savefig\(FOLDER / "([^"]+)"', source)
            images = [base64.b64encode((figures / name).read_bytes()).decode() for name in names]
            outputs = [{"output_type": "display_data", "data": {"image/png": i}, "metadata": {}} for i in images]
            cell |= {"execution_count": None, "outputs": outputs}
        made.append(cell)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": made, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


if __name__ == "__main__":
    made = notebook((DOCS / "tutorial.py").read_text(), DOCS / "tutorial")
    (DOCS / "tutorial.ipynb").write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n")
