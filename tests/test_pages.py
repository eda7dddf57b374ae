"""The pages as their readers use them: commands and flags are accepted, snippets and the walkthrough of a run work."""

import contextlib
import itertools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import main
from hold_jax.app import flags
from hold_jax.app.config import KEYS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
# docs/library.md, the README and the tutorial have tests of their own. your_data.md's snippet needs a network.
WITH_SNIPPETS = ("start", "inverse", "conditions", "langevin")
# The walkthroughs at a size that takes seconds: flags that follow those of the page's first command.
SMALL = """--config.training.num_steps=4 --config.training.checkpoint_every=2 --config.training.sample_every=0
--config.training.steps_per_call=1 --config.training.log_every=2 --config.optimizer.warmup_steps=1
--config.sampling.num_steps=2 --config.sampling.frames=1 --config.sampling.num_samples=8
--config.sampling.batch_size=8 --config.eval.features=pixels --config.eval.num_samples=16""".split()
by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(text):
    """(language, code) of each fenced or indented block of a page, in order; the language is empty if not given."""
    fenced = r"^```(?P<language>\w*)\n(?P<code>.*?)^```$"
    indented = r"(?<=\n\n)(?P<lines>(?: {4}[^\n]*\n|\n(?= {4}))+)"
    for found in re.finditer(f"{fenced}|{indented}", text, flags=re.M | re.S):
        yield found["language"] or "", found["code"] or re.sub("^ {4}", "", found["lines"], flags=re.M)


def commands(text):
    """The Python commands of a page, in order: the words after `python`, up to a pipe or another command."""
    for language, code in blocks(text):
        for line in code.replace("\\\n", " ").splitlines() if language in ("", "bash", "sh") else ():
            for found in re.finditer(r"python3? ((?:main\.py|-m ).*)", line):
                words = shlex.shlex(found[1].rstrip('"'), posix=True, punctuation_chars="|;&")
                words.whitespace_split = True
                yield list(itertools.takewhile(lambda word: not set(word) <= set("|;&"), words))


def accept(text):
    """Raises an error for a command of a page that main.py, or the module that it names, does not take."""
    inline = "\n".join(re.findall(r"`(python [^`]+)`", text.replace("\n", " ")))
    for words in [*commands(text), *commands(f"```sh\n{inline}\n```\n")]:
        if words[0] == "main.py" and len(words) > 1:
            rest = [word for word in words[1:] if not word.endswith("...")]
            options, rest = main._parser().parse_known_args(rest if rest == words[1:] else ["--mode=train", *rest])
            flags.read(options.config, rest)
        elif words[0] == "-m" and words[1].startswith(("hold_jax", "benchmarks", "docs")):
            module = ROOT / words[1].replace(".", "/")
            files = [*module.parent.glob(f"{module.name}.py"), *module.rglob("*.py")]
            source = "".join(file.read_text() for file in files)
            assert source, words[1]
            source += (ROOT / "benchmarks" / "report.py").read_text() if "report.parser(" in source else ""
            for name in (word.partition("=")[0] for word in words[2:] if word.startswith("--")):
                given = name.removeprefix("--config.")
                assert name == "--config" or given in KEYS or f'"{name}"' in source, words


@by_page
def test_commands_are_accepted(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    accept(page.read_text())


@pytest.mark.parametrize(
    "command", ["main.py --mode=sample --config.sampling.nonsense=3", "-m hold_jax.fid --nonsense"]
)
def test_a_wrong_flag_is_noticed(command):
    with pytest.raises(Exception, match="nonsense"):
        accept(f"text\n\n```bash\npython {command}\n```\n")


@by_page
def test_flags_exist_and_may_have_their_values(page):
    for key, value in re.findall(r"--config\.(\w+\.\w+)(?:=((?:[^\s`|\"']|\"[^\"]*\")*))?", page.read_text()):
        if key == "a.b":  # any key
            continue
        assert key in KEYS
        if value and not re.search("[A-Z]{3}", value):  # capitals stand for a value
            KEYS[key].parse(key, value.strip('"').rstrip(",."))


def python(folder, *words):
    """Runs Python as a reader does: in a process of its own, with one device."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as the reader's: main.py and configs/ are there, and the run that docs/conditions.md starts from."""
    here = tmp_path_factory.mktemp("pages")
    for name in ("main.py", "configs"):
        (here / name).symlink_to(ROOT / name)
    train = next(c for c in commands((ROOT / "docs" / "conditions.md").read_text()) if "--workdir=runs/circles" in c)
    python(here, "-m", "docs.conditional_data")
    python(here, *train, *SMALL)
    return here


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_SNIPPETS)
def test_snippets_run_in_order(name, folder):
    space = {}
    with contextlib.chdir(folder), jax.numpy_rank_promotion("allow"):
        for language, code in blocks((ROOT / "docs" / f"{name}.md").read_text()):
            if language == "python":
                exec(code, space)  # the page is ours


@pytest.mark.slow
def test_the_run_of_docs_runs_md(folder):
    first, *rest = commands((ROOT / "docs" / "runs.md").read_text())
    python(folder, *first, *SMALL)
    printed = [python(folder, *words) for words in rest]
    run = folder / "runs" / "digits"
    assert "step 2, 16 samples" in printed[1] and "loss, train" in printed[1]
    assert "* training.num_steps = 4 " in printed[-1]
    for file in ("README.md", "training.png", "figures.png", "samples/step_4_gaussian_fitted20/grid.png"):
        assert (run / file).is_file()
