"""Which of HOLD's choices matter: loss, weight, alpha, 1/L, damping; and this package's times and network output.

python -m benchmarks.paper_choices --output=docs/results

From the process and loss of HOLD++'s code (order 3, critical damping, 1/L = 0.5, alpha = 0.08, block coordinate score
matching of eps_n, weight 1, times uniform in t; but T is where sigma_eff = 80) one choice is changed at a time, on the
digits as vectors of 64 and on CLD's five Swiss rolls. The network (a perceptron, 3 layers of 128), the data, the
optimizer and the number of steps are the same for all; the seeds differ in parameters, batches, noise and samples. Of
each:

- error: of the denoiser on held-out data, |D - q0|^2 / c_out^2 over a log-normal law of the effective noise, the same
  pictures and noises for all (`parameterizations.errors`).
- samples: distance of samples by 50 calls of the default sampler to data. Digits: squared Frechet distance of pixels;
  rolls: sliced Wasserstein. Over that of as many real examples: 1 is indistinguishable.

About 15 minutes of processor time. A row that is done is kept in --workdir and not computed again.
"""

import argparse
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from benchmarks import report
from benchmarks.parameterizations import digits_as_vectors, errors_at, noises
from benchmarks.samplers import sliced
from configs import swissroll_hold
from hold_jax import samplers
from hold_jax.app import build
from hold_jax.app.config import Config, read
from hold_jax.data.toy import sample
from hold_jax.metrics.frechet import frechet_distance, moments
from hold_jax.model import Model
from hold_jax.training.state import init_state
from hold_jax.training.step import make_train_step

BASE: dict[str, Any] = {
    "loss.time_law": "uniform",
    "loss.time_mean": None,
    "loss.time_std": None,
    "model.parameterization": "eps",
}
# Keys of the config that differ from the base; the last three are not HOLD's choices but this package's.
CHANGES: dict[str, dict[str, Any]] = {
    "base": {},
    "loss = dsm": {"loss.name": "dsm"},
    "weighting = likelihood": {"loss.weighting": "likelihood"},
    "weighting = edm": {"loss.weighting": "edm"},
    "alpha = 0.01": {"sde.alpha": 0.01},
    "alpha = 1": {"sde.alpha": 1.0},
    "1/L = 0.25": {"sde.L_inv": 0.25},
    "1/L = 1": {"sde.L_inv": 1.0},
    "damping = told": {"sde.damping": "told"},
    "times log_normal": {"loss.time_law": "log_normal"},
    "output sufficient": {"model.parameterization": "sufficient"},
    "both": {"loss.time_law": "log_normal", "model.parameterization": "sufficient"},
}
NUM_OURS = 3
CALLS = 50
# Of the effective noise at which errors are measured: mean and deviation of its logarithm.
NOISES = {"digits": (-1.2, 1.2), "rolls": (-1.0, 1.8)}


def digits(folder: Path) -> ml_collections.ConfigDict:
    """The digits as vectors (`benchmarks.parameterizations`)."""
    return digits_as_vectors(folder)


def rolls(folder: Path) -> ml_collections.ConfigDict:
    """CLD's five Swiss rolls."""
    del folder
    config = swissroll_hold.get_config()
    config.data.name = "swissroll5"
    config.model.hidden_layers, config.model.width = 3, 128
    config.training.batch_size = 256
    config.training.num_steps = 2500
    config.training.ema_decay = 0.995
    return config


DATA: dict[str, Callable[[Path], ml_collections.ConfigDict]] = {"digits": digits, "rolls": rolls}


def configured(data: str, change: str, folder: Path) -> Config:
    """The settings of one row; the law of times that a data set's own config has is not the base's but `log_normal`."""
    own = read(DATA[data](folder))
    changed = BASE | CHANGES[change]
    if changed["loss.time_law"] == "log_normal":
        changed |= {"loss.time_mean": NOISES[data][0], "loss.time_std": NOISES[data][1]}
    return own.changed(changed)


def trained(config: Config, x: np.ndarray, seeds: int) -> tuple[Model, Any]:
    """The model and its averaged parameters, those of all seeds stacked on a first axis: trained at once."""
    model, optimizer, c = build.model(config, x.shape[1:], 0), build.optimizer(config), config.training
    step = jax.vmap(make_train_step(model, build.loss(config), optimizer, ema_decay=c.ema_decay))
    advance = jax.jit(lambda state, batch: step(state, batch)[0], donate_argnums=0)
    state = jax.jit(jax.vmap(functools.partial(init_state, model, optimizer)))(jnp.arange(seeds))
    rngs = [np.random.default_rng(seed) for seed in range(seeds)]
    for _ in range(c.num_steps):
        rows = np.stack([rng.integers(len(x), size=c.batch_size) for rng in rngs])
        state = advance(state, {"x": x[rows], "label": np.zeros(rows.shape, np.int32)})
    return model, state.ema


def measured(
    config: Config, data: str, train: np.ndarray, test: np.ndarray, distance: Callable, args: argparse.Namespace
) -> dict[str, list[float]]:
    """Error and distance of samples, one value a seed."""
    model, params = trained(config, train, args.seeds)
    sigmas = jnp.asarray(noises(args.repeats, len(test), mean=NOISES[data][0], std=NOISES[data][1]))

    @jax.jit
    @jax.vmap
    def error(params: Any) -> jax.Array:
        one = lambda sigma, key: errors_at(model, params, test, sigma, key)[:, 1].mean()  # noqa: E731
        return jax.lax.map(lambda pair: one(*pair), (sigmas, jax.random.split(jax.random.key(0), args.repeats))).mean()

    @jax.jit
    @jax.vmap
    def draw(params: Any, key: jax.Array) -> jax.Array:
        options = {"key": key, "shape": (args.num, *train.shape[1:]), "num_steps": CALLS - 1, "grid": "log"}
        return samplers.sample(samplers.gaussian_fitted(), model.sde, model.eps_fn(params), **options).x

    drawn = np.asarray(draw(params, jax.random.split(jax.random.key(1), args.seeds)), np.float64)
    return {"error": np.asarray(error(params), np.float64).tolist(), "samples": [float(distance(x)) for x in drawn]}


def setting(data: str, folder: Path, num: int) -> tuple[np.ndarray, np.ndarray, Callable[[np.ndarray], float]]:
    """Training and test data, and the distance of samples to data over that of as many real examples."""
    config = read(DATA[data](folder))
    train, test = (build.dataset(config, split).source[:] for split in ("train", "test"))
    rng = np.random.default_rng(0)
    if data == "digits":
        target = moments(train)
        # Vectors as pictures are: without this one sample far out makes the distance.
        of = lambda x: frechet_distance(moments(x.clip(-1, 1)), target)  # noqa: E731
        others = [train[rng.integers(len(train), size=num)] for _ in range(8)]
    else:
        real = sample("swissroll5", num, seed=2)
        of = lambda x: sliced(x, real, num_projections=128)  # noqa: E731
        others = [sample("swissroll5", num, seed=3 + i) for i in range(8)]
    floor = float(np.mean([of(other) for other in others]))
    return train, test, lambda x: of(x) / floor


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Mean over the seeds and its standard error."""
    return float(np.mean(values)), float(np.std(values, ddof=1) / math.sqrt(len(values)))


def main() -> None:
    """Prints a table; writes JSON."""
    parser = report.parser(__doc__, parts=True)
    parser.add_argument("--data", nargs="+", default=list(DATA), choices=DATA)
    parser.add_argument("--seeds", type=int, default=4, help="2 or more")
    parser.add_argument("--num", type=int, default=2000, help="samples")
    parser.add_argument("--repeats", type=int, default=16, help="noises of each held-out example")
    args = parser.parse_args()
    args.workdir.mkdir(parents=True, exist_ok=True)
    rows: report.Rows = []
    for data in args.data:
        train, test, distance = setting(data, args.workdir, args.num)
        print(f"\n{data + ', mean (standard error)':<34}{'held-out error':>20}{'samples':>20}")
        for i, change in enumerate(CHANGES):
            config = configured(data, change, args.workdir)
            settings = build.as_json(config) | {"seeds": args.seeds, "num": args.num, "repeats": args.repeats}
            settings["data"] = data  # the file's path is no part of it
            make = functools.partial(measured, config, data, train, test[:400], distance, args)
            values = report.kept(args, f"choices_{data}_{i}", settings, make)
            rows.append({"data": data, "change": change, **values})
            cells = (f"{m:.4g} ({e:.1g})" for m, e in map(mean_and_error, values.values()))
            print(f"{change:<34}" + "".join(f"{cell:>20}" for cell in cells), flush=True)

    report.finish(args, "paper_choices", rows, sentence(rows, args.data))


def sentence(rows: report.Rows, names: list[str]) -> str:
    """What each choice does to the samples, in words."""
    parts = []
    for data in names:
        of = {row["change"]: row["samples"] for row in rows if row["data"] == data}
        (base, error), both = mean_and_error(of["base"]), np.mean(of["both"])
        ratio = {c: float(np.mean(of[c]) / base) for c in list(CHANGES)[1:-NUM_OURS]}
        least, most = min(ratio, key=ratio.__getitem__), max(ratio, key=ratio.__getitem__)
        parts.append(
            f"On {data} the base's samples are at {base:.2f} ({error:.2f}) times the floor; HOLD's choices, one at a "
            f"time, multiply this by {ratio[least]:.2f} ({least}) to {ratio[most]:.2f} ({most}), this package's times "
            f"and output together by {both / base:.2f}."
        )
    return " ".join(parts)


if __name__ == "__main__":
    main()
