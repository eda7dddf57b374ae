"""The model card of a run: `README.md` in its work directory, made from what the folder holds."""

import datetime
from collections.abc import Iterator, Mapping
from typing import Any

from hold_jax.app import build, constructors, experiment
from hold_jax.app.config import KEYS, Config
from hold_jax.evaluation import report
from hold_jax.loops import generate, origin
from hold_jax.loops.evaluate import FOLDER as EVALUATION_FOLDER
from hold_jax.runtime import schema, storage, workdir
from hold_jax.runtime.log import RESULTS_FILE, read_jsonl
from hold_jax.runtime.storage import Path

FILE = "README.md"
COMMANDS_FILE = "commands.txt"
_MARK = "<!-- hold_jax writes this file; without this line it leaves the file alone -->"


def remember(folder: Path, command: str) -> None:
    """Appends a command, with the time and the version, to `folder`/commands.txt."""
    time = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    lines = storage.Lines(folder / COMMANDS_FILE)
    words = command.encode(errors="backslashreplace").decode()  # of bytes that are no text
    lines.append(f"{time}, hold_jax {origin.versions()['hold_jax']}: {words}")
    lines.close()


def forget(folder: Path) -> None:
    """Deletes the commands of a run that another one replaces."""
    if storage.exists(folder / COMMANDS_FILE):
        storage.remove(folder / COMMANDS_FILE)


def write(folder: Path) -> Path | None:
    """Writes the model card of the run in `folder`, and returns its path; None where the user has a README.md."""
    path = folder / FILE
    if storage.is_file(path) and not storage.read(path).startswith(_MARK.encode()):
        return None
    record = workdir.read(folder)
    config = experiment.of_record(record, folder)
    results = read_jsonl(folder / RESULTS_FILE) if storage.is_file(folder / RESULTS_FILE) else []
    parts = [_MARK, *_title(folder, record, config), *_figures(results, config.data.name), *_settings(config), *_use()]
    parts += [*_history(folder), *_pictures(folder)]
    storage.write(path, ("\n\n".join(parts) + "\n").encode())
    return path


def _title(folder: Path, record: workdir.Record, config: Config) -> Iterator[str]:
    shape = "x".join(map(str, record.data_shape))
    counts = record.statistics.get("class_counts") or ()
    classes = f", {len(counts)} classes" if counts else ""
    number = f", {sum(counts):,} training examples" if counts else ""
    yield f"# {folder.name}"
    yield (
        f"A diffusion model of `{config.data.name}` (examples of {shape}{classes}{number}). "
        f"Process: `{config.sde.name}` of order {build.process(config).order}. "
        f"Network: `{config.model.name}`, parameterization `{config.model.parameterization}`."
    )
    grid = _newest(folder / generate.FOLDER, "grid.png")
    if grid is not None:
        yield f"![samples]({_relative(grid, folder)})"


def _figures(results: list[dict[str, Any]], data: str) -> Iterator[str]:
    if not results:
        return
    newest = results[-1]
    yield "## Figures"
    yield _made_by(newest, data)
    rows = "\n".join(f"| {row.name} | {row.value} | {row.meaning} |" for row in report.rows(newest))
    yield f"| figure | value | |\n|---|---|---|\n{rows}"
    errors = "After +- is one standard error, or what the line says; in brackets is a 95 % interval."
    yield f"{errors} `{RESULTS_FILE}` has all figures."


def _made_by(results: Mapping[str, Any], data: str) -> str:
    made = results.get("made_by", {})
    text = f"Checkpoint of step {results['step']:,}"
    if "ema_length" in made:
        text += f", the average of length {made['ema_length']:g}"
    if "sampler" in made and "num_samples" in results:
        calls = f", {made['calls']:,} network evaluations each" if "calls" in made else ""
        text += (
            f"; {results['num_samples']:,.0f} samples, drawn by the sampler `{made['sampler']['name']}` at order "
            f"{made['process']['order']} in {made['steps']:,} steps{calls}, seed {made['seed']}"
        )
    if made.get("guidance") is not None:
        text += f"; guided with scale {made['guidance']:g}"
    if "guide" in made:
        guide = made["guide"]
        text += f" by `{guide['path']}`, step {guide['step']:,}, whose evaluations are not counted"
    if made.get("data", data) != data:
        text += f"; compared with `{made['data']}`, not with the data of the run"
    return f"{text}."


def _settings(config: Config) -> Iterator[str]:
    values = config.flat()
    changed = [f"{key} = {schema.shown(values[key])}  # {KEYS[key].note}" for key in constructors.differences(config)]
    yield "## Settings that differ from the defaults"
    yield "```\n" + "\n".join(changed) + "\n```"
    yield f"`{workdir.RECORD_FILE}` has all settings; `python main.py --mode=show --workdir=DIR` prints them."


def _use() -> Iterator[str]:
    yield "## Use"
    yield "With DIR for this folder:"
    yield "```bash\npython main.py --mode=sample --workdir=DIR\n```"
    yield '```python\nimport hold_jax, jax\n\nx = hold_jax.load("DIR").sample(16, jax.random.key(0))\n```'


def _history(folder: Path) -> Iterator[str]:
    if not storage.is_file(folder / COMMANDS_FILE):
        return
    yield "## How it was made"
    commands = storage.read(folder / COMMANDS_FILE).decode(errors="replace").rstrip()
    versions = ", ".join(f"{name} {version}" for name, version in origin.versions().items())
    yield f"```\n{commands}\n```"
    yield f"This card was written with {versions}."


def _pictures(folder: Path) -> Iterator[str]:
    found = {
        "training loss": folder / "loss.png",
        "samples, and the training pictures nearest to each": _newest(folder / EVALUATION_FOLDER, "neighbors.png"),
        "the reverse process": _newest(folder / generate.FOLDER, "film.gif"),
    }
    shown = [(text, path) for text, path in found.items() if path is not None and storage.is_file(path)]
    if shown:
        yield "## Pictures"
    for text, path in shown:
        yield f"{text.capitalize()}:\n\n![{text}]({_relative(path, folder)})"


def _newest(parent: Path, name: str) -> Path | None:
    """Returns the file `name` in the sub-folder step_N... of the largest N, and of the shortest name for this N."""
    found = []
    for folder in storage.names(parent):
        step = folder.removeprefix("step_").partition("_")[0]
        if step.isdecimal() and storage.is_file(parent / folder / name):
            found.append((-int(step), len(folder), folder))
    return parent / min(found)[2] / name if found else None


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()
