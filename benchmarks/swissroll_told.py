"""TOLD against TOLD++ on the Swiss roll: table I of 2409.07697, with the prior's error and training's told apart.

python -m benchmarks.swissroll_told --output=docs/results/swissroll_told.json      # python -m docs.plots draws it

The squared Frechet distance (FD) between raw points, samples and data. The process ends at T = 1, long before its
stationary law N(0, 1/L), so that starting there is wrong however good the network; for each model, from that prior:

- `linear`: the exact reverse process for Gaussian data of the same mean and variance: what a network gives that has
  learned the data's spread and nothing of its shape.
- `exact`: the exact reverse process for the roll. No step size, no Monte Carlo: u_T tells of q0 what
  y = A' Sigma^-1 u / SNR ~ N(q0, sigma_eff^2) tells, so a sample is a draw from p(q0 | y) with y ~ N(0, tau^2) in place
  of y's true law, and its moments are an integral over the plane.
- `exact, EM`: the exact score in the sampler, at its number of steps.
- the trained network.

The last two again from the true law of u_T (data, perturbed), where the first two are zero: what is left without the
prior's error. FD sees means and covariances only: from the true start a linear score has none either, so that it says
little of what was learned; from the prior it says how far the network is from `linear` to `exact`. A seed means the
same data, noise and prior draws for TOLD and TOLD++; their difference is paired.

From the paper: L = 4, T = 1, alpha = 0.1, t ~ U(0, T), learning rate 5e-3, a network of 7 layers of 128 SiLU units that
sees position, velocity, acceleration and t, and the loss ||eps_n + s_theta / l_t||^2 of algorithm 1, l_t = 1 / L_nn, in
which the network is the score itself: eps_hat = -L_nn s_theta (`--parameterization=score`; `eps` is what HOLD and CLD
learn). Its batch is 2^20, and it takes 10 networks an entry with 10 x 2^20 samples each; here as much as 2 CPU cores
bear. Read by the letter (`--reading=literal`) algorithm 1 draws the auxiliaries and *also* takes all three initial
covariances, the data's too, as alpha / L; `--reading=block` is block coordinate score matching. Not stated:
- the roll and its scale. Here the package's four rolls times `--scale`, the deviation of a coordinate. At the default
  a network of this kind gives the level of the published numbers; the first author's later public code has five rolls
  of deviation 0.72, where the prior's error is a hundredth of that level.
- the sampler. Here that of the paper's CIFAR-10 table: Euler-Maruyama, 200 steps, equal in t.
- the optimizer, averaging and end times. Here as in the toy config of that later code: Adam, gradients clipped to 1,
  decay 0.999, t from 1e-5 in training, to 1e-3 in sampling.
About 30 minutes of CPU time; `--models TOLD --iterations 20 --seeds 1 --batch 256 --samples 512` for a look.
"""

import argparse
import functools
import itertools
import json
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import report
from hold_jax import kernels, losses, parameterization, samplers, sde
from hold_jax.data import toy
from hold_jax.metrics.frechet import Moments, frechet_distance, moments
from hold_jax.nn.mlp import MLP
from hold_jax.parameterization import EpsFn
from hold_jax.sde import LinearSDE
from hold_jax.training import optimizer

CHAIN = {"L_inv": 0.25, "alpha": 0.1}
MODELS = {
    "TOLD": {"order": 3, "damping": "told"},
    "TOLD++": {"order": 3},
    "order 2": {"order": 2},
    "order 4": {"order": 4},
}
# Table I of the paper, means.
PAPER = {"TOLD": {1000: 2.681, 5000: 2.583}, "TOLD++": {1000: 2.566, 5000: 2.375}}
STARTS = ("prior", "true")

LEARNING_RATE, CLIP_NORM, EMA_DECAY = 5e-3, 1.0, 0.999
TRAIN_T_MIN, SAMPLE_T_MIN, SAMPLER_STEPS = 1e-5, 1e-3, 200
DATA_POINTS, STEPS_PER_CALL = 2**20, 500
# The data of the exact score: Gaussians on points of the roll, as wide as they are apart.
MIXTURE_POINTS, MIXTURE_STD = 1024, 0.03
# The plot's end times and scales of the data, for the prior's error alone.
END_TIMES, CURVE_SCALES = np.linspace(0.75, 4, 14), (0.72, 1.0, 1.8, 2.5)


class Mixture(NamedTuple):
    """Equal Gaussians: means (K, 2), one standard deviation, and the moments of the whole."""

    means: np.ndarray
    std: float

    @property
    def moments(self) -> Moments:
        """Of the law: without the factor K / (K - 1) of a sample's covariance."""
        centered = self.means - self.means.mean(axis=0)
        return _law(self.means.mean(axis=0), centered.T @ centered / len(centered) + self.std**2 * np.eye(2))

    @property
    def linear(self) -> "Mixture":
        """One Gaussian of the same mean and mean variance."""
        whole = self.moments
        return Mixture(whole.mean[None], math.sqrt(np.trace(whole.cov) / 2))

    def draw(self, key: jax.Array, num: int) -> jax.Array:
        """(num, 2) points."""
        key_mean, key_noise = jax.random.split(key)
        centers = jax.random.choice(key_mean, jnp.asarray(self.means, jnp.float32), (num,))
        return centers + self.std * jax.random.normal(key_noise, centers.shape)


def main() -> None:
    """Prints a table; writes JSON."""
    args = _arguments()
    rows = []
    for scale in args.scales:
        data = scale * toy.sample("swissroll", DATA_POINTS, seed=301)
        floors = [frechet_distance(moments(_fresh(scale, args.samples, i)), moments(data)) for i in range(args.seeds)]
        rows.append({"scale": scale, "model": "data", "kind": "second draw", "start": "", "values": floors})
        for name in args.models:
            make = functools.partial(_measure, name, scale, data, args)
            rows += report.kept(args, f"told_{args.reading}_{scale:g}_{name}", _settings(args) | {"models": name}, make)
    _table(rows, args)
    print(f"\n{args.seconds:.0f} s of processor time")
    if args.output:
        result = {"settings": _settings(args), "processor_seconds": args.seconds, "paper": PAPER, "rows": rows}
        result |= {"end_times": END_TIMES.tolist(), "curves": _curves(args)}
        args.output.write_text(json.dumps(result, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = report.parser(__doc__, parts=True, output="JSON file")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--scales", type=float, nargs="+", default=[1.8], help="of the data, standard deviations")
    parser.add_argument("--T", type=float, default=1.0, help="end time; beta is 1")
    parser.add_argument("--seeds", type=int, default=5, help="networks trained for each model and scale")
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--iterations", type=int, nargs="+", default=[1000, 5000], help="of one run, evaluated at each")
    parser.add_argument("--samples", type=int, default=4096, help="of each network and start")
    one_block = sorted(parameterization.PARAMETERIZATIONS.keys() - parameterization.ALL_NOISE.keys())
    parser.add_argument("--parameterization", default="eps", choices=one_block)
    parser.add_argument("--reading", default="block", choices=("block", "literal"), help="of algorithm 1")
    return parser.parse_args()


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """What the figures depend on."""
    return {k: v for k, v in vars(args).items() if k not in ("output", "workdir", "most", "seconds")}


def _curves(args: argparse.Namespace) -> list[dict]:
    """The prior's error alone against the end time, for TOLD and TOLD++ in turn."""
    names = ("TOLD", "TOLD++")
    curves = [{"scale": scale, "model": name} for scale in CURVE_SCALES for name in names]
    for curve in curves:
        m, mixture = _chain(curve["model"], args), _mixture(curve["scale"])
        curve["exact"] = [exact_distance(m, mixture, end, nodes=65) for end in END_TIMES]
    return curves


def _chain(name: str, args: argparse.Namespace) -> LinearSDE:
    return sde.hold(**CHAIN, **MODELS[name], T=args.T)


def _mixture(scale: float) -> Mixture:
    return Mixture(scale * toy.sample("swissroll", MIXTURE_POINTS, seed=302).astype(np.float64), scale * MIXTURE_STD)


def _fresh(scale: float, num: int, seed: int) -> np.ndarray:
    """A draw of data of a seed's own."""
    return scale * toy.sample("swissroll", num, seed=400 + seed)


def _law(mean: np.ndarray, cov: np.ndarray) -> Moments:
    """The moments of a law rather than a sample: the count is for form."""
    return Moments(2**31, mean, cov)


def _measure(name: str, scale: float, data: np.ndarray, args: argparse.Namespace) -> list[dict]:
    """All rows of one model at one scale of the data: a list of values, one a seed, in each."""
    m, mixture = _chain(name, args), _mixture(scale)
    init, train, eps_fn = _trainable(m, scale, args)
    training_points = jnp.asarray(data)
    draw_exact = jax.jit(lambda key, start: _draw(m, mixture_eps(m, mixture), key, start))
    draw_trained = jax.jit(lambda params, key, start: _draw(m, eps_fn(params), key, start))
    found: dict[tuple[str, str], list[float]] = {
        ("linear", "prior"): [exact_distance(m, mixture.linear, m.T)],
        ("exact", "prior"): [exact_distance(m, mixture, m.T)],
    }

    def record(kind: str, start: str, value: float) -> None:
        found.setdefault((kind, start), []).append(value)

    truth, at_end = moments(data), kernels.marginal(m, jnp.float32(m.T))
    for seed in range(args.seeds):
        began = time.monotonic()
        key_init, key_train, key_prior, key_points, key_sample = jax.random.split(jax.random.key(seed), 5)
        noise = jax.random.normal(key_prior, (args.samples, m.order, 2))
        prior = math.sqrt(CHAIN["L_inv"]) * noise

        points = jnp.asarray(mixture.draw(key_points, args.samples))
        for label, start in zip(STARTS, (prior, kernels.perturb(at_end, points, noise)), strict=True):
            record("exact, EM", label, frechet_distance(moments(draw_exact(key_sample, start)), mixture.moments))

        fresh = jnp.asarray(_fresh(scale, args.samples, seed))
        state = init(key_init)
        for done, upto in itertools.pairwise((0, *_stops(args.iterations))):
            state, loss = train(state, key_train, training_points, jnp.arange(done, upto))
            if upto not in args.iterations:
                continue
            record(f"loss, {upto:,}", "", float(loss.mean()))
            for label, start in zip(STARTS, (prior, kernels.perturb(at_end, fresh, noise)), strict=True):
                x = draw_trained(state.ema, key_sample, start)
                record(f"{upto:,}", label, frechet_distance(moments(x), truth))
        shown = ", ".join(f"{kind} {start} {values[-1]:.4f}" for (kind, start), values in found.items())
        print(f"scale {scale:g}, {name}, seed {seed}, {time.monotonic() - began:.0f} s: {shown}", flush=True)
    return [
        {"scale": scale, "model": name, "kind": kind, "start": start, "values": values}
        for (kind, start), values in found.items()
    ]


def _stops(iterations: list[int]) -> list[int]:
    """Where the compiled loop returns: at every `STEPS_PER_CALL` steps, and at every stop that is asked for."""
    return sorted({*iterations, *range(STEPS_PER_CALL, max(iterations), STEPS_PER_CALL)})


# --- The exact score -----------------------------------------------------------------------------


def exact_distance(m: LinearSDE, mixture: Mixture, end: float, *, nodes: int = 97) -> float:
    """FD of the exact reverse process from the prior at t = `end`: E and Cov of q0 ~ p(q0 | y), y ~ N(0, tau^2 I).

    tau^2 is the variance that the prior gives to y, the one thing that u_T tells of q0. Given y the mixture is one with
    other weights, means pulled towards y and a smaller deviation; the integral over y is a trapezoidal sum.
    """
    row, sigma = (np.asarray(v, np.float64) for v in kernels.sufficient_row(m, jnp.float32(end)))
    tau = math.sqrt((row @ m.prior_cov @ row.T).item())
    grid = np.linspace(-5, 5, nodes)
    density = np.exp(-(grid**2) / 2)
    weight = np.outer(density, density).ravel() / density.sum() ** 2
    y = tau * np.stack(np.meshgrid(grid, grid, indexing="ij"), axis=-1).reshape(-1, 2)

    variance = mixture.std**2 + sigma**2
    pull = mixture.std**2 / variance
    log_weight = (y @ mixture.means.T - (mixture.means**2).sum(axis=1) / 2) / variance
    posterior = np.exp(log_weight - log_weight.max(axis=1, keepdims=True))
    posterior /= posterior.sum(axis=1, keepdims=True)
    # Each component's center is c_i + pull y with c_i = (1 - pull) mean_i.
    centers = (1 - pull) * mixture.means
    total = weight @ posterior
    mean = total @ centers
    cross = y.T @ (weight[:, None] * (posterior @ centers)) * pull
    second = (total[:, None] * centers).T @ centers + cross + cross.T + (pull * tau) ** 2 * np.eye(2)
    cov = second - np.outer(mean, mean) + pull * sigma**2 * np.eye(2)
    return frechet_distance(_law(mean, cov), mixture.moments)


def mixture_eps(m: LinearSDE, mixture: Mixture) -> EpsFn:
    """E[eps_n | u] for the mixture: the Gaussian's linear prediction about the posterior mean of the components' means.

    The row of that prediction is bounded; going by way of the denoiser would cancel in float32 for small t.
    """
    means = jnp.asarray(mixture.means, jnp.float32)

    def eps_fn(u: jax.Array, t: jax.Array) -> jax.Array:
        y, sigma = kernels.sufficient_statistic(m, u, t)
        variance = jnp.square(sigma) + mixture.std**2
        posterior = jax.nn.softmax((y @ means.T - jnp.sum(means**2, axis=1) / 2) / variance, axis=-1)
        row = parameterization.gaussian(m, t, mixture.std).c_skip
        center = kernels.mix(kernels.marginal(m, t).phi[:, :1], (posterior @ means)[:, None, :])
        return kernels.mix(row, u - center)

    return eps_fn


# --- The network ---------------------------------------------------------------------------------


class State(NamedTuple):
    """Of training: parameters, Adam's state, averaged parameters."""

    params: Any
    opt_state: Any
    ema: Any


def literal_pair(m: LinearSDE, x: jax.Array, t: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Algorithm 1 by the letter: u_t = Phi (q0, p0, s0) + L eps, L L' = Q + alpha/L Phi Phi', target eps_3 l / L_nn.

    With l the process's own L_nn the score that samplers read off, -target / l, is that of the letter, -eps_3 / L_nn.
    """
    key_start, key_eps = jax.random.split(key)
    spread = math.sqrt(CHAIN["alpha"] * CHAIN["L_inv"])
    start = spread * jax.random.normal(key_start, (*x.shape[:-1], m.order, x.shape[-1]))
    start = start.at[..., 0, :].set(x)
    chol = kernels.total_chol(m, t, spread)
    eps = jax.random.normal(key_eps, start.shape)
    u = kernels.mix(kernels.transition(m, jnp.zeros_like(t), t).phi, start) + kernels.mix(chol, eps)
    ratio = kernels.marginal(m, t).chol[..., -1, -1] / chol[..., -1, -1]
    return u, kernels.append_dims(ratio, eps) * eps[..., -1:, :]


def _trainable(m: LinearSDE, scale: float, args: argparse.Namespace) -> tuple[Callable, ...]:
    """init(key) -> State; train(state, key, points, steps) -> (state, losses), compiled; eps_fn(params) -> EpsFn."""
    network = MLP(out_channels=2, conditional=False)
    form = parameterization.PARAMETERIZATIONS[args.parameterization]
    adam = optimizer.adam(LEARNING_RATE, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0, clip_norm=CLIP_NORM)

    def init(key: jax.Array) -> State:
        blocks = form(m, jnp.float32(m.T), scale).c_in.shape[-2]
        params = network.init(key, jnp.zeros((1, 2 * blocks + 1)), jnp.zeros((1,)))["params"]
        return State(params, adam.init(params), jax.tree.map(jnp.copy, params))

    def eps_fn(params: Any) -> EpsFn:
        def with_time(inputs: jax.Array, t: jax.Array) -> jax.Array:
            return network.apply({"params": params}, jnp.concatenate([inputs, t[:, None]], axis=1), t)

        own = {"parameterization": form, "conditioning": lambda m, t: jnp.asarray(t, jnp.float32), "sigma_data": scale}
        return parameterization.eps_function(m, with_time, **own)

    def one_step(key: jax.Array, points: jax.Array, state: State, step: jax.Array) -> tuple[State, jax.Array]:
        key_batch, key_loss = jax.random.split(jax.random.fold_in(key, step))
        x = points[jax.random.randint(key_batch, (args.batch,), 0, len(points))]

        def loss(params: Any) -> jax.Array:
            pair = {"block": losses.bcsm_pair, "literal": literal_pair}[args.reading]
            options = {"pair": pair, "time_law": losses.uniform, "t_min": TRAIN_T_MIN}
            return jnp.mean(losses.score_matching_loss(m, eps_fn(params), x, key_loss, **options)) / 2

        value, gradient = jax.value_and_grad(loss)(state.params)
        updates, opt_state = adam.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return State(params, opt_state, optimizer.update_ema(state.ema, params, step, EMA_DECAY)), value

    @functools.partial(jax.jit, donate_argnums=0)
    def train(state: State, key: jax.Array, points: jax.Array, steps: jax.Array) -> tuple[State, jax.Array]:
        return jax.lax.scan(functools.partial(one_step, key, points), state, steps)

    return init, train, eps_fn


def _draw(m: LinearSDE, eps_fn: EpsFn, key: jax.Array, start: jax.Array) -> jax.Array:
    """Samples (B, 2) by the paper's sampler from `start` (B, n, 2)."""
    sampler = samplers.SAMPLERS["euler_maruyama"]()
    shape = (start.shape[0], 2)
    options = {"num_steps": SAMPLER_STEPS, "grid": "uniform", "t_min": SAMPLE_T_MIN, "denoise": False}
    return samplers.sample(sampler, m, eps_fn, key=key, shape=shape, start=start, **options).x


# --- Table -------------------------------------------------------------------------------------


def _values(rows: list[dict], scale: float, model: str, kind: str, start: str) -> np.ndarray:
    """One value a seed, or one for all."""
    key = {"scale": scale, "model": model, "kind": kind, "start": start}
    return np.array(next(row["values"] for row in rows if key.items() <= row.items()))


def _error(values: np.ndarray) -> float:
    """Standard error of the mean; 0 for a closed form or one seed."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0


def _columns(args: argparse.Namespace) -> list[tuple[str, str]]:
    """(kind, start) in the table's order."""
    trained = [f"{i:,}" for i in sorted(args.iterations)]
    prior = [(kind, "prior") for kind in ("linear", "exact", "exact, EM", *trained)]
    return prior + [(kind, "true") for kind in ("exact, EM", *trained)]


def _table(rows: list[dict], args: argparse.Namespace) -> None:
    columns = _columns(args)
    for scale in args.scales:
        of = functools.partial(_values, rows, scale)
        print(f"\ndata of deviation {scale:g}: FD, mean (standard error) of {args.seeds} seeds, batch {args.batch}")
        print(f"{'start of sampling':<18}" + "".join(f"{start:>18}" for _, start in columns))
        print(f"{'':<18}" + "".join(f"{kind:>18}" for kind, _ in columns))

        def line(name: str, cells: list[np.ndarray]) -> None:
            print(f"{name:<18}" + "".join(f"{c.mean():>9.4f} ({_error(c):.4f})" for c in cells))

        for name in args.models:
            line(name, [of(name, *column) for column in columns])
        if {"TOLD", "TOLD++"} <= set(args.models):
            line("TOLD++ minus TOLD", [of("TOLD++", *column) - of("TOLD", *column) for column in columns])
        floor = of("data", "second draw", "")
        print(f"a second draw of {args.samples} data points: {floor.mean():.4f} ({_error(floor):.4f})")
    print("published: " + ", ".join(f"{name} {i:,}: {x}" for name, by in PAPER.items() for i, x in by.items()))


if __name__ == "__main__":
    main()
