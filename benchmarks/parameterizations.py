"""What each parameterization and each order buys at equal cost: one network, one budget, one objective, every cell.

python -m benchmarks.parameterizations --workdir=runs/parameterizations --seeds 0 1 \
  --output=docs/results/parameterizations.json

Trains `eps`, `mixed`, `gaussian`, `sufficient` at orders 1 to 4, on the digits as vectors with a small perceptron, with
times log-normal in the effective noise (EDM's, the default) and uniform in t (the papers'), and reports of each:

- the held-out error of the denoiser, |D - q0|^2 per dimension: over `losses.log_normal`'s law of the effective noise
  ("q0": the units of `losses.q0_weight`), and divided by EDM's c_out^2, which weighs all noises alike ("edm": the best
  linear denoiser of Gaussian data has 1). Every cell sees the same pictures at the same effective noises with the same
  noise in the sufficient statistic, so that differences are paired: an optimal denoiser would have the same error at
  every order, whatever its parameterization.
- squared Frechet distances of samples of the default sampler to the training data, with jackknife errors.
- with --likelihood=N, bits per dimension of N test examples (a bound for n > 1).

Cells done are kept in the work directory and not computed again. Under a minute a cell on
2 CPU cores. Any other config does, with keys to change; the digits as pictures with a small convolutional network
(3 minutes a cell), and CIFAR-10 (for an accelerator):

python -m benchmarks.parameterizations --config=configs/digits_hold.py --steps=600 \
  --set model.channels=16 training.batch_size=64 --workdir=runs/parameterizations_pictures
python -m benchmarks.parameterizations --config=configs/cifar10_small_hold.py --steps=20000 --set model.dtype=bfloat16 \
  --num=10000 --workdir=runs/parameterizations_cifar --output=parameterizations_cifar.json

--compare runs/digits1 runs/digits3 ... prints the denoiser's errors of models trained before, on the same data.
"""

import argparse
import importlib.util
import itertools
import json
import math
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import logging

from configs import swissroll_hold
from hold_jax import kernels, samplers
from hold_jax.app import build, experiment, modes
from hold_jax.app.config import Config, read
from hold_jax.app.flags import Given
from hold_jax.condition import Condition, conditions_of
from hold_jax.data import Dataset, load, to_model_range
from hold_jax.data.dataset import array_dataset
from hold_jax.evaluation.classifier import classifier
from hold_jax.evaluation.feature_network import FeatureNetwork
from hold_jax.evaluation.features import features_of
from hold_jax.evaluation.pixels import pixels
from hold_jax.loops.likelihood import evaluate_likelihood
from hold_jax.losses import TIME_LAWS
from hold_jax.metrics.frechet import frechet_jackknife, moments
from hold_jax.model import Model
from hold_jax.runtime import workdir
from hold_jax.runtime.mesh import Devices
from hold_jax.runtime.resumable import PartialRows
from hold_jax.training.checkpoint import Checkpoints, abstract_state
from hold_jax.training.state import init_state

BINS = 8
PARAMETERIZATIONS = ("eps", "mixed", "gaussian", "sufficient")


def digits_as_vectors(folder: Path) -> ml_collections.ConfigDict:
    """A perceptron on the digits as vectors of 64, in [-1, 1], dequantized once by uniform noise of their 17 levels."""
    path = folder / "digits.npz"
    if not path.exists():
        rng, arrays = np.random.default_rng(0), {}
        for split, ending in (("train", ""), ("test", "_test")):
            data = load("digits", split=split)
            levels = np.rint(data.source.reshape(len(data), -1) * (16 / 255))
            arrays |= {f"x{ending}": 2 * (levels + rng.random(levels.shape)) / 17 - 1, f"y{ending}": data.labels}
        np.savez(path, **arrays)
    config = swissroll_hold.get_config()
    config.unlock()
    config.data.name = f"npz:{path.absolute()}"
    config.model.fourier_scale = 1.0
    config.model.hidden_layers, config.model.width = 3, 128
    config.loss.time_mean, config.loss.time_std = -1.2, 1.2
    config.training.batch_size = 64
    config.training.num_steps = 2500
    config.training.log_every = 500
    config.sampling.name, config.sampling.grid, config.sampling.frames = "gaussian_fitted", "log", 0
    config.sampling.num_samples = config.sampling.batch_size = 100
    config.model.sigma_data = 0.75
    config.likelihood.probes = 1
    return config.lock()


def configured(args: argparse.Namespace, name: str, order: int, law: str, seed: int) -> Config:
    """The config of one cell."""
    if args.config is None:
        config = digits_as_vectors(args.workdir)
    else:
        spec = importlib.util.spec_from_file_location("config", args.config)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        config = module.get_config()
    for assignment in args.set:
        key, _, value = assignment.partition("=")
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            pass  # a word
        config.update_from_flattened_dict({key: tuple(value) if isinstance(value, list) else value})
    if law != config.loss.time_law:
        with config.ignore_type():
            config.loss.time_law, config.loss.time_mean, config.loss.time_std = law, None, None
    config.seed = seed
    config.sde.order = order
    config.model.parameterization = name
    if args.steps:
        config.training.num_steps = args.steps
    config.training.sample_every = 0
    config.training.checkpoint_every = config.training.num_steps
    config.training.keep_every = 0
    config.training.report = False
    return read(config)


def trained(config: Config, folder: Path) -> tuple[Model, Any]:
    """The model and its averaged parameters, trained in `folder` as far as they are not yet."""
    modes.run("train", Given("cell", config.flat()), str(folder))
    data = build.dataset(config, "train")
    model, optimizer = build.model(config, data.shape, data.num_classes), build.optimizer(config)
    abstract = abstract_state(lambda: init_state(model, optimizer, config.seed), Devices.all().replicated)
    with Checkpoints.open_to_read(folder.absolute()) as checkpoints:
        return model, checkpoints.restore(abstract, None).ema


def trained_in(folder: Path) -> tuple[Model, Any, Dataset, Dataset]:
    """The model, its averaged parameters, training and test data, by what a work directory says of itself."""
    found = workdir.read(folder)
    config = experiment.of_record(found, folder)
    model, optimizer = (
        build.model(config, found.data_shape, found.num_classes, build.statistics(found)),
        build.optimizer(config),
    )
    abstract = abstract_state(lambda: init_state(model, optimizer, config.seed), Devices.all().replicated)
    with Checkpoints.open_to_read(folder.absolute()) as checkpoints:
        params = checkpoints.restore(abstract, None).ema
    return model, params, build.dataset(config, "train"), build.dataset(config, "test")


def errors(
    model: Model, params: Any, data: Dataset, *, repeats: int, mean: float = -1.2, std: float = 1.2
) -> np.ndarray:
    """|D - q0|^2 per dimension, (repeats, N, 2): as it is, and over c_out^2; row i, j is at `noises(repeats, N)[i, j]`.

    The state is put together from its sufficient statistic and the rest (`kernels.state_of`), so that the first, all
    that an optimal denoiser looks at, is the same at every order.
    """
    count = len(data)
    x = jnp.asarray(to_model_range(data.gather(np.arange(count))["x"]))
    condition = conditions_of(data.gather(np.arange(count)))
    of_repeat = jax.jit(lambda params, sigma, key: errors_at(model, params, x, sigma, key, condition))
    sigmas = noises(repeats, count, mean=mean, std=std)
    keys = jax.random.split(jax.random.key(0), repeats)
    return np.stack([of_repeat(params, s, k) for s, k in zip(sigmas, keys, strict=True)]).astype(np.float64)


def errors_at(
    model: Model,
    params: Any,
    x: jax.Array,
    sigma: jax.Array,
    key: jax.Array,
    condition: Condition = Condition(),  # noqa: B008
) -> jax.Array:
    """The two errors of `errors`, (N, 2), of examples x (N, *S) in the model's range at effective noises sigma (N,)."""
    m = model.sde
    key_y, key_rest = jax.random.split(key)
    t = kernels.time_of_noise(m, sigma)
    y = x + kernels.append_dims(sigma, x) * jax.random.normal(key_y, x.shape)
    rest = jax.random.normal(key_rest, (*x.shape[:-1], m.order - 1, x.shape[-1]))
    u = kernels.state_of(m, y, rest, t)
    denoised = kernels.denoiser(m, u, t, model.eps_fn(params, condition=condition)(u, t))
    error = jnp.mean(jnp.square(denoised - x), axis=tuple(range(1, x.ndim)))
    c_out = sigma * model.sigma_data / jnp.sqrt(sigma**2 + model.sigma_data**2)
    return jnp.stack([error, error / c_out**2], axis=-1)


def noises(repeats: int, count: int, *, mean: float = -1.2, std: float = 1.2) -> np.ndarray:
    """Effective noises (repeats, count), stratified draws of EDM's log-normal law between 0.0025 and 75."""
    rng = np.random.default_rng(0)
    quantile = (rng.permuted(np.tile(np.arange(count), (repeats, 1)), axis=1) + rng.random((repeats, count))) / count
    normal = np.asarray(jax.scipy.special.ndtri(quantile))
    # Inside the range that every process reaches, whose ends differ by rounding.
    return np.clip(np.exp(mean + std * normal), 0.0025, 75.0).astype(np.float32)


def drawn(config: Config, model: Model, params: Any, args: argparse.Namespace) -> np.ndarray:
    """Samples as data; the prior draws and the noise of one order are the same for every parameterization."""
    settings = build.sampling(config)

    @jax.jit
    def draw(params: Any, index: jax.Array) -> jax.Array:
        labels = index % max(model.network.num_classes, 1) if model.takes_labels else None
        return samplers.sample(
            settings.sampler,
            model.sde,
            model.eps_fn(params, condition=Condition(labels)),
            key=jax.random.key(0),
            index=index,
            shape=(args.batch, *model.data_shape),
            num_steps=args.calls - 1,
            grid=settings.grid,
        ).x

    starts = range(0, args.num, args.batch)
    x = np.concatenate([np.asarray(draw(params, jnp.arange(s, s + args.batch))) for s in starts])
    # Vectors as pictures are: without this one sample far out makes the distance.
    return np.asarray(model.to_data(x[: args.num].clip(-1, 1)))


def likelihood(
    config: Config, model: Model, params: Any, data: Dataset, args: argparse.Namespace, folder: Path
) -> dict[str, float]:
    """Bits per dimension of random test examples."""
    config = config.changed(
        {"likelihood.num_examples": args.likelihood, "likelihood.batch_size": min(args.likelihood, 99)}
    )
    rows = PartialRows(folder / f"likelihood_{args.likelihood}", args.likelihood)
    return evaluate_likelihood(model, params, data.subset(None), build.likelihood(config), Devices.all(), rows)


def compare(args: argparse.Namespace) -> None:
    """Prints the denoiser's held-out error of each of the work directories, over that of the first, paired."""
    first = None
    print(f"{'work directory':<32}{'order':>6}{'|D - q0|^2':>14}{'/ c_out^2':>12}{'over the first':>22}")
    for folder in args.compare:
        model, params, _, test = trained_in(folder)
        own = errors(model, params, test, repeats=args.repeats).mean(axis=0)
        first = own if first is None else first
        ratio, spread = ratio_of_means(own[:, 1], first[:, 1])
        q0, edm = own.mean(axis=0)
        print(
            f"{folder!s:<32}{model.sde.order:>6}{q0:>14.5f}{edm:>12.4f}{f'{ratio:.4f} +- {spread:.4f}':>22}", flush=True
        )


def ratio_of_means(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """mean(x) / mean(y) of values (N,) of the same examples, and its standard error by the delta method."""
    ratio = x.mean() / y.mean()
    return float(ratio), float((x - ratio * y).std(ddof=1) / math.sqrt(len(x)) / y.mean())


def folder_of(args: argparse.Namespace, name: str, order: int, law: str, seed: int) -> Path:
    """The work directory of one cell."""
    return args.workdir / f"{name}_n{order}_{law}_seed{seed}"


def cell(
    args: argparse.Namespace, name: str, order: int, law: str, seed: int, networks: list[FeatureNetwork]
) -> dict[str, Any]:
    """Everything about one model; kept in its folder."""
    folder = folder_of(args, name, order, law, seed)
    kept = folder / "result.json"
    found = json.loads(kept.read_text()) if kept.exists() else {}
    if found and (not args.likelihood or "bits_per_dim" in found):
        return found
    config = configured(args, name, order, law, seed)
    began = time.monotonic()
    model, params = trained(config, folder)
    seconds = time.monotonic() - began
    train, test = build.dataset(config, "train"), build.dataset(config, "test")
    if not found:
        each = errors(model, params, test, repeats=args.repeats)
        np.save(folder / "errors.npy", each)
        of_example = each.mean(axis=0)
        scatter = of_example.std(axis=0, ddof=1) / math.sqrt(len(of_example))
        order_of = np.argsort(noises(args.repeats, len(test)).ravel())
        curve = [part.mean() for part in np.array_split(each[..., 1].ravel()[order_of], BINS)]
        count = sum(leaf.size for leaf in jax.tree.leaves(params))
        found = {"parameterization": name, "order": order, "time_law": law, "seed": seed}
        found |= {"steps": config.training.num_steps}
        found |= {"parameters": count, "train_seconds": seconds}
        found |= {"q0": of_example[:, 0].mean(), "q0_error": scatter[0], "edm": of_example[:, 1].mean()}
        found |= {"edm_error": scatter[1], "curve": curve}
        x = array_dataset("samples", "test", drawn(config, model, params, args), None, 0)
        for network in networks:
            reference = moments(features_of(network, train, Devices.all()).values)
            value, error, bias = frechet_jackknife(features_of(network, x, Devices.all()).values, reference)
            found |= {network.name: value, f"{network.name}_error": error, f"{network.name}_bias": bias}
    if args.likelihood:
        found |= likelihood(config, model, params, test, args, folder)
    kept.write_text(json.dumps(found, indent=1) + "\n")
    return found


def paired(args: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Adds to each row the ratio of its errors to `gaussian`'s of its order, law and seed, with paired errors."""

    def of_example(row: dict[str, Any], name: str) -> np.ndarray:
        folder = folder_of(args, name, row["order"], row["time_law"], row["seed"])
        return np.load(folder / "errors.npy").mean(axis=0)

    there = {(r["parameterization"], r["order"], r["time_law"], r["seed"]) for r in rows}
    for row in rows:
        if ("gaussian", row["order"], row["time_law"], row["seed"]) not in there:
            continue
        own, other = of_example(row, row["parameterization"]), of_example(row, "gaussian")
        for i, figure in enumerate(("q0", "edm")):
            ratio, spread = ratio_of_means(own[:, i], other[:, i])
            row |= {f"{figure}_over_gaussian": ratio, f"{figure}_over_gaussian_error": spread}


def main() -> None:
    """Prints a table; writes JSON; `python -m docs.plots` draws it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=None, help="an experiment; None: the digits as vectors")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="keys of the config")
    parser.add_argument("--steps", type=int, default=None, help="optimizer steps; None: the config's")
    parser.add_argument("--orders", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument(
        "--parameterizations", nargs="+", default=list(PARAMETERIZATIONS), choices=PARAMETERIZATIONS, metavar="NAME"
    )
    parser.add_argument("--time_laws", nargs="+", default=["log_normal", "uniform"], choices=TIME_LAWS, metavar="LAW")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/parameterizations"))
    parser.add_argument(
        "--compare", type=Path, nargs="+", default=None, metavar="DIR", help="only these, trained before"
    )
    parser.add_argument("--only_done", action="store_true", help="report the cells that are there, compute none")
    parser.add_argument("--repeats", type=int, default=16, help="noises for each test example")
    parser.add_argument("--num", type=int, default=3000, help="samples")
    parser.add_argument("--batch", type=int, default=1000, help="samples at once")
    parser.add_argument("--calls", type=int, default=20, help="network calls of the default sampler")
    parser.add_argument("--likelihood", type=int, default=0, help="test examples whose likelihood is computed")
    parser.add_argument("--output", type=Path, default=None, help="JSON file")
    args = parser.parse_args()

    logging.set_verbosity(logging.ERROR)  # Orbax tells of every write, and warns of reading
    if args.compare:
        return compare(args)
    args.workdir.mkdir(parents=True, exist_ok=True)
    data = build.dataset(configured(args, "eps", 1, args.time_laws[0], 0), "train")
    networks = [classifier(data, args.workdir)] if data.num_classes >= 2 else []
    networks.append(pixels())
    rows = []
    for seed, law, order, name in itertools.product(args.seeds, args.time_laws, args.orders, args.parameterizations):
        if args.only_done and not (folder_of(args, name, order, law, seed) / "result.json").exists():
            continue
        rows.append(cell(args, name, order, law, seed, networks))
        print(json.dumps(rows[-1]), flush=True)
    paired(args, rows)
    table(rows, args, networks)
    if args.output:
        args.output.write_text(json.dumps({"device": jax.devices()[0].device_kind, "rows": rows}, indent=1) + "\n")


def _cell(rows: list[dict[str, Any]], figure: str, name: str, order: int, law: str) -> tuple[float, float, int]:
    """Mean over the seeds, its standard error (over seeds if there are several) and their number; NaN without any."""
    found = [r for r in rows if (r["parameterization"], r["order"], r["time_law"]) == (name, order, law)]
    if not found:
        return math.nan, math.nan, 0
    values = [r[figure] for r in found]
    error = np.std(values, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else found[0].get(f"{figure}_error", 0.0)
    return float(np.mean(values)), float(error), len(values)


def table(rows: list[dict[str, Any]], args: argparse.Namespace, networks: list[FeatureNetwork]) -> None:
    """One block a figure."""
    titles = {
        "q0": ("held-out |D - q0|^2 per dimension, times 1000", 1000.0),
        "edm": ("held-out |D - q0|^2 / c_out^2", 1.0),
        "edm_over_gaussian": ("the same over that of gaussian, same order, law and seeds", 1.0),
        **{
            n.name: (f"squared Frechet distance, {n.name}, {args.num} samples, {args.calls} calls", 1.0)
            for n in networks
        },
        "bits_per_dim": ("bits per dimension", 1.0),
    }
    for figure, (title, scale) in titles.items():
        if not all(figure in row for row in rows):
            continue
        print(f"\n{title} (seeds)\n{'':<24}" + "".join(f"{f'n = {n}':>20}" for n in args.orders))
        for law, name in itertools.product(args.time_laws, args.parameterizations):
            found = [_cell(rows, figure, name, n, law) for n in args.orders]
            texts = (
                f"{v * scale:.4g} +- {e * scale:.1g}" + (f" ({k})" if k > 1 else "") if k else "-" for v, e, k in found
            )
            print(f"{f'{name}, {law}':<24}" + "".join(f"{text:>20}" for text in texts))


if __name__ == "__main__":
    main()
