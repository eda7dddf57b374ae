"""The model card, made of a folder's files alone."""

import json

from hold_jax.app import build, card, constructors
from hold_jax.app.config import Config
from hold_jax.loops import origin
from hold_jax.runtime import workdir

CONFIG = constructors.resolve(Config().changed({"data.name": "digits", "model.channels": 32, "sde.order": 4}))
FIGURES = {"step": 1000, "num_samples": 297.0, "test_loss": 0.0844, "test_loss_error": 0.00076}
MADE = {"sampler": {"name": "unipc"}, "process": {"order": 4}, "steps": 20, "calls": 21, "seed": 7}


def run(folder, *, results=(FIGURES | {"made_by": MADE},)):
    statistics = {"class_counts": [700, 800], "class_names": [], "mean": [], "std": []}
    workdir.write(folder, workdir.Record(build.as_json(CONFIG), (8, 8, 1), 2, statistics, run="r"))
    if results:
        (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in results))
    return folder


def test_it_says_what_the_model_is_how_good_and_what_made_it(tmp_path):
    folder = run(tmp_path / "digits4")
    for name in ("samples/step_500_unipc20/grid.png", "samples/step_1000_unipc20/grid.png", "loss.png",
                 "samples/step_1000_unipc20_label3/grid.png", "eval/step_1000/neighbors.png"):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    card.remember(folder, "python main.py --mode=train --config.data.name='folder:/d\u00e4ta'")
    card.remember(folder, "python main.py --mode=sample --workdir='\udce9'")  # a byte that Python could not decode
    assert card.write(folder) == folder / "README.md"
    text = (folder / "README.md").read_text()
    for part in (
        "# digits4\n", "`digits` (examples of 8x8x1, 2 classes, 1,500 training examples)", "`hold` of order 4.",
        "![samples](samples/step_1000_unipc20/grid.png)", "| loss, test | 0.08440 +- 0.00076 | lower is better |",
        "297 samples, drawn by the sampler `unipc` at order 4 in 20 steps, 21 network evaluations each, seed 7.",
        "sde.order = 4  # ", "model.channels = 32  # ", "(loss.png)", "(eval/step_1000/neighbors.png)",
        "python main.py --mode=train --config.data.name='folder:/d\u00e4ta'", r"--workdir='\udce9'",
        f"jax {origin.versions()['jax']}",
    ):  # fmt: skip
        assert part in text, part
    assert "film.gif" not in text and "optimizer.b1" not in text  # neither absent pictures nor defaults
    card.remember(folder, "python main.py --mode=eval")
    card.write(folder)
    assert text.count("--mode=eval") == 0 and (folder / "README.md").read_text().count("--mode=eval") == 1


def test_it_says_what_guided_the_samples(tmp_path):
    guide = {"path": "runs/weak", "step": 500, "checkpoint": "d1"}
    for name, more in (("own", {}), ("other", {"guide": guide})):
        folder = run(tmp_path / name, results=(FIGURES | {"made_by": MADE | {"guidance": 2.0} | more},))
        card.write(folder)
        by = " by `runs/weak`, step 500, whose evaluations are not counted" if more else ""
        assert f", seed 7; guided with scale 2{by}." in (folder / "README.md").read_text()


def test_the_newest_figures_count_and_a_run_without_any_has_a_card_too(tmp_path):
    newer = FIGURES | {"step": 2000, "test_loss": 0.05, "made_by": {"ema_length": 0.1, "data": "folder:/x"}}
    run(tmp_path / "a", results=(FIGURES, newer))
    card.write(tmp_path / "a")
    text = (tmp_path / "a" / "README.md").read_text()
    assert (
        "Checkpoint of step 2,000, the average of length 0.1; compared with `folder:/x`, not with the data of the run."
        in text
        and "0.05000 +- 0.00076" in text
        and "0.0844" not in text
    )
    run(tmp_path / "b", results=())
    card.write(tmp_path / "b")
    text = (tmp_path / "b" / "README.md").read_text()
    assert "## Figures" not in text and "## Pictures" not in text and "## How it was made" not in text


def test_a_readme_of_the_users_own_is_left_alone(tmp_path):
    folder = run(tmp_path)
    (folder / "README.md").write_text("mine")
    assert card.write(folder) is None and (folder / "README.md").read_text() == "mine"
