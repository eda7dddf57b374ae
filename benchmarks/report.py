"""What every `benchmarks/paper_*.py` ends with: one sentence, a JSON file and a figure in docs/results."""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

Rows = list[dict[str, Any]]

BEGAN = time.monotonic()


def parser(doc: str | None) -> argparse.ArgumentParser:
    """With --output; without it nothing is written."""
    out = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument("--output", type=Path, default=None, help="folder of the JSON file and the figure: docs/results")
    return out


def finish(args: argparse.Namespace, name: str, rows: Rows, sentence: str, plot: Callable[[Figure], None]) -> None:
    """Prints the sentence; writes `name`.json and `name`.png into --output."""
    seconds = time.monotonic() - BEGAN
    print(f"\n{sentence}\n{seconds:.0f} s")
    if args.output is None:
        return
    args.output.mkdir(parents=True, exist_ok=True)
    command = " ".join(["python -m", f"benchmarks.{name}", *sys.argv[1:]])
    result = {"command": command, "seconds": round(seconds), "sentence": sentence, "rows": rows}
    (args.output / f"{name}.json").write_text(json.dumps(result, indent=0) + "\n")
    figure = Figure(dpi=110, layout="constrained")
    plot(figure)
    figure.savefig(args.output / f"{name}.png")


def value(rows: Rows, column: str, **where: Any) -> Any:
    """The entry of the one row that has these values."""
    (row,) = [row for row in rows if where.items() <= row.items()]
    return row[column]
