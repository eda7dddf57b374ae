"""The command itself, in processes of its own."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from training import small

import main
from hold_jax.app import modes

ROOT = Path(__file__).parents[2]
ROLL = "configs/swissroll_hold.py"
# The first lines stand for what compiles in a third of the time: fewer kernels.
TINY = {
    "sde.order": 2,
    "model.parameterization": "eps",
    "model.conditioning": "time",
    "model.embedding": "positional",
    "data.name": "gaussians8",
    "data.size": 200,
    "model.width": 16,
    "model.hidden_layers": 1,
    "optimizer.schedule": "constant",
    "optimizer.warmup_steps": 2,
    "training.batch_size": 16,
    "training.steps_per_call": 5,
    "training.num_steps": 20,
    "training.log_every": 5,
    "training.sample_every": 20,
    "training.checkpoint_every": 10,
    "sampling.num_steps": 4,
    "sampling.num_samples": 16,
    "sampling.batch_size": 16,
    "sampling.frames": 2,
    "eval.batch_size": 16,
    "eval.num_samples": 16,
    "likelihood.num_examples": 24,
    "likelihood.batch_size": 16,
    "likelihood.rtol": 1e-3,
    "likelihood.atol": 1e-3,
}


def command(*arguments, cwd=ROOT, cache=None):
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    if cache is not None:
        environment |= {
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.05",
        }
    return subprocess.run(
        [sys.executable, str(ROOT / "main.py"), *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def tiny(mode, workdir, **changes):
    keys = TINY | {key.replace("__", "."): value for key, value in changes.items()}
    flags = [f"--config.{key}={value}" for key, value in keys.items()]
    return [f"--config={ROOT / ROLL}", f"--mode={mode}", f"--workdir={workdir}", *flags]


def lines(path):
    return [{k: v for k, v in json.loads(x).items() if "second" not in k} for x in path.read_text().splitlines()]


@pytest.mark.slow
def test_train_sample_eval_and_train_again(tmp_path):
    run, cache = tmp_path / "run", tmp_path / "cache"
    train = command(*tiny("train", "run", training__num_steps=10, training__report=False), cwd=tmp_path, cache=cache)
    assert train.returncode == 0, train.stderr
    assert "process: order 2, t from" in train.stdout and "step 10/10" in train.stderr

    on = command(*tiny("train", "run"), cwd=tmp_path, cache=cache)  # the report comes too
    assert on.returncode == 0, on.stderr
    assert "checkpoint of step 10" in on.stdout and "loss, test" in on.stdout
    assert [line["step"] for line in lines(run / "metrics.jsonl")] == [5, 10, 15, 20]
    files = [".lock", "README.md", "commands.txt", "config.json", "loss.png", "metrics.jsonl", "parameters.txt"]
    files += ["results.jsonl"]
    folders = ["checkpoints", "eval", "grids", "samples", "stats", "tensorboard"]
    assert sorted(p.name for p in run.iterdir()) == sorted(files + folders)
    report = np.load(run / "samples" / "step_20_strang4" / "samples.npz")["x"]

    drawn = command(*tiny("sample", "run"), cwd=tmp_path, cache=cache)
    assert drawn.returncode == 0, drawn.stderr
    np.testing.assert_array_equal(np.load(run / "samples" / "step_20_strang4" / "samples.npz")["x"], report)

    before = small.contents(run / "checkpoints")
    scored = command(*tiny("eval", "run", eval__likelihood=True), cwd=tmp_path, cache=cache)
    assert scored.returncode == 0, scored.stderr
    report, later = lines(run / "results.jsonl")
    bits = {name: value for name, value in later.items() if name not in report}
    assert later == report | bits and "likelihood 24/24" in scored.stderr
    rows = np.concatenate([np.load(p) for p in sorted((run / "eval" / "step_20").glob("likelihood_*/*.npy"))])
    assert rows.shape == (24, 2) and np.isfinite(rows).all()
    assert bits == {
        "bits_per_dim": pytest.approx(rows[:, 0].mean(), rel=1e-12),
        "bits_per_dim_error": pytest.approx(rows[:, 0].std(ddof=1) / np.sqrt(24), rel=1e-12),
        "bits_per_dim_is_bound": 1.0,
        "likelihood_nfe": pytest.approx(rows[:, 1].mean(), rel=1e-12),
        "likelihood_examples": 24,
    }

    again = command(*tiny("train", "run", training__report=False), cwd=tmp_path, cache=cache)
    assert again.returncode == 0, again.stderr
    assert "already trained" in again.stderr and small.contents(run / "checkpoints") == before
    kept = (run / "commands.txt").read_text().splitlines()
    assert len(kept) == 5 and all(f": python main.py --config={ROOT / ROLL} --mode=" in line for line in kept)


WRONG = {
    "unknown key": (["--config.training.num_step=3"], "num_steps"),
    "unknown section": (
        ["--config.trainin.num_steps=3"],
        "there is no key `trainin.num_steps` (did you mean",
    ),
    "order of a half": (["--config.sde.order=2.5"], "2.5"),
    "order of twelve": (["--config.sde.order=12"], "`sde.order` is 12; it must be a whole number from 1 to 6"),
    "bad mode": (["--mode=smaple"], "argument --mode: invalid choice: 'smaple' (choose from"),
    "no such config": (["--config=configs/none.py"], "--config=configs/none.py: no such file; configs/ holds the exp"),
    "no checkpoint": (["--mode=sample"], "no trained model in "),
    "nothing to evaluate": (["--mode=eval"], "no trained model in "),
    "stray word": (["train"], "unknown argument 'train'; flags are written --name=value"),
    "unknown flag": (["--wrkdir=x"], "wrkdir"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG)
def test_a_mistake_is_one_line_and_exit_code_two(arguments, message, tmp_path):
    done = command(f"--config={ROLL}", "--mode=train", f"--workdir={tmp_path / 'run'}", *arguments)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and message in done.stderr
    assert done.stderr.count("\n") == 1 and done.stdout == ""
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("where", ["in the program", "where Python ignores exceptions"])
def test_an_interruption_is_one_line_that_claims_no_step(where):
    # Raised before the first step, by a second Ctrl-C in training, and in every other mode; JAX's callback of the
    # garbage collector is a place where Python ignores exceptions, and so is __del__.
    in_the_program = (
        "import main\nclass Interrupted:\n    def __init__(self, *_): raise KeyboardInterrupt\n    __del__ = __init__\n"
    )
    program = in_the_program + (
        f"main._run = {'Interrupted' if where == 'in the program' else 'lambda *_: Interrupted.__new__(Interrupted)'}\n"
        f"main.main(['--config={ROLL}', '--mode=train'])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 130
    assert done.stderr == "error: interrupted; the same command goes on from what is saved\n" and done.stdout == ""


@pytest.mark.parametrize("flag", ["--workdir={}/λ", "--config=λ.py", "--config.data.name=folder:λ"])
def test_an_argument_that_python_cannot_decode_is_one_line(flag, tmp_path, monkeypatch):
    for name, value in {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}.items():
        monkeypatch.setenv(name, value)
    done = command("--mode=show", flag.format(tmp_path), cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stdout == ""
    assert done.stderr.startswith(f"error: {flag.partition('=')[0]} is not text in ascii, the encoding of this")
    assert "set PYTHONUTF8=1" in done.stderr and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "No space left on device; make room, and"),
        (errno.EACCES, "Permission denied; make it writable, and"),
        (errno.EEXIST, "File exists; remove what is in its place, and"),
        (errno.ENOENT, "No such file or directory; do not delete or move it while a run uses it, and"),
    ],
)
@pytest.mark.parametrize("mode", ["train", "plot"])
def test_a_fault_of_the_file_system_is_one_line(mode, number, advice, monkeypatch, capsys):
    def fail(*_):
        raise OSError(number, os.strerror(number), "runs/a/damaged")

    monkeypatch.setattr(modes, "run", fail)
    with pytest.raises(SystemExit) as caught:
        main.main([f"--mode={mode}", "--workdir=runs/a"])
    assert caught.value.code == 2
    want = f"error: cannot read or write runs/a/damaged: {advice} run the same command again"
    more = ": it goes on from the newest checkpoint" if mode == "train" else ""
    assert capsys.readouterr().err == f"{want}{more}\n"


def test_another_error_keeps_its_traceback(monkeypatch):
    def fail(*_):
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(modes, "run", fail)
    with pytest.raises(OSError, match="Bad file descriptor"):
        main.main(["--mode=sample", "--workdir=runs/a"])


def test_the_required_flags_are_named():
    done = command(f"--config={ROLL}")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "--mode" in done.stderr or "--workdir" in done.stderr


def test_help_names_every_mode_and_the_flags_used_most(capsys):
    assert main._MODES.keys() == modes.MODES.keys()
    with pytest.raises(SystemExit) as done:
        main.main(["--help"])
    assert done.value.code == 0
    text = capsys.readouterr().out
    assert all(f"\n  {mode:<8}{what}\n" in text for mode, what in main._MODES.items())
    assert "\n  --config.sde.name=                  family: hold | vp | ve | cld | psld\n" in text
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
@pytest.mark.parametrize(
    ("given", "start", "found"),
    [
        (None, ["-X", "utf8", "main.py"], "glibc.malloc.hugetlb=1"),
        ("glibc.malloc.check=0", ["-X", "utf8", "main.py"], "glibc.malloc.check=0"),
        # Another program's process is not started again.
        (None, ["-X", "utf8", "-m", "cProfile", "main.py"], None),
        (None, ["-X", "utf8", "-c", "import runpy; runpy.run_path('main.py', run_name='__main__')"], None),
    ],
)
def test_the_program_starts_again_with_huge_pages(given, start, found, tmp_path):
    config = tmp_path / "config.py"
    config.write_text(
        "import os, sys\n"
        "from configs.swissroll_hold import get_config\n"
        "print(os.environ.get('GLIBC_TUNABLES'), sys.argv[1:], sys.flags.utf8_mode)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    environment |= {} if given is None else {"GLIBC_TUNABLES": given}
    words = [f"--config={config}", "--mode=show"]
    done = subprocess.run([sys.executable, *start, *words], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.startswith(f"{found} {words} 1\n"), done.stderr
