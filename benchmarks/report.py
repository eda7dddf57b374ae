"""What every `benchmarks/paper_*.py` shares: parts of a run that are kept, and its end, one sentence and a JSON file.

docs/plots.py draws the figures from the JSON files, docs/tables.py fills the tables of docs/results/papers.md.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]


def parser(
    doc: str | None, *, parts: bool = False, output: str = "folder of the JSON file: docs/results"
) -> argparse.ArgumentParser:
    """With --output, without which nothing is written; for a run in parts also where they are kept."""
    out = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument("--output", type=Path, default=None, help=output)
    if parts:
        out.add_argument("--workdir", type=Path, default=Path("runs/papers"), help="where the parts of a run are kept")
        out.add_argument("--most", type=int, default=None, help="stop after so many new parts")
    return out


def kept(args: argparse.Namespace, name: str, settings: dict[str, Any], make: Callable[[], Any]) -> Any:
    """One part of a run, JSON values: from --workdir if it was made there with the same settings, else `make()`.

    A run that was stopped goes on where it was. What a part took is counted by `finish`.
    """
    path, settings = args.workdir / f"{name}.json", json.loads(json.dumps(settings))
    found = json.loads(path.read_text()) if path.exists() else {}
    if found.get("settings") != settings:
        if args.most == 0:
            sys.exit("stopped: the same command goes on")
        args.most = None if args.most is None else args.most - 1
        began = time.process_time()
        value = make()
        found = {"settings": settings, "seconds": time.process_time() - began, "value": value}
        args.workdir.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n")
    args.seconds = getattr(args, "seconds", 0.0) + found["seconds"]
    return found["value"]


def finish(args: argparse.Namespace, name: str, rows: Rows, sentence: str) -> None:
    """Prints the sentence; writes `name`.json into --output. Processor seconds: of the parts, or of this process."""
    seconds = getattr(args, "seconds", time.process_time())
    print(f"\n{sentence}\n{seconds:.0f} s of processor time")
    if args.output is None:
        return
    args.output.mkdir(parents=True, exist_ok=True)
    command = " ".join(["python -m", f"benchmarks.{name}", *sys.argv[1:]])
    result = {"command": command, "processor_seconds": round(seconds), "sentence": sentence, "rows": rows}
    (args.output / f"{name}.json").write_text(json.dumps(result, indent=0) + "\n")


def value(rows: Rows, column: str, **where: Any) -> Any:
    """The entry of the one row that has these values."""
    (row,) = [row for row in rows if where.items() <= row.items()]
    return row[column]
