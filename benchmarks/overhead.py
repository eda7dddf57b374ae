"""What everything around the network costs, as a share of a training step and of a sampler step.

python -m benchmarks.overhead --config=configs/cifar10_small_hold.py --batch_size=8

Two ratios, each from interleaved runs in one process:
- training: perturbation, kernels, preconditioning and loss with a network that only sums its input,
  forward and backward, over the whole training step;
- sampling: (N sampler steps) / (N bare network calls in the same kind of scan) - 1.
"""

import argparse
import functools
import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp

from hold_jax import samplers
from hold_jax.app import build
from hold_jax.app.config import read
from hold_jax.runtime.mesh import Devices
from hold_jax.training.state import init_state
from hold_jax.training.step import make_train_step, mean_loss


def seconds(functions: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each, run in turn `repeats` times after one warm-up."""
    found: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        jax.block_until_ready(function())
    for _ in range(repeats):
        for name, function in functions.items():
            began = time.perf_counter()
            jax.block_until_ready(function())
            found[name].append(time.perf_counter() - began)
    return {name: statistics.median(times) for name, times in found.items()}


def main() -> None:
    """Prints a table and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/cifar10_hold.py")
    parser.add_argument("--shape", type=lambda s: tuple(map(int, s.split("x"))), default=(32, 32, 3))
    parser.add_argument("--batch_size", type=int, default=4, help="of the training step and of the sampler")
    parser.add_argument("--order", type=int, default=None)
    parser.add_argument("--sampler", default="strang", choices=sorted(samplers.SAMPLERS))
    parser.add_argument("--steps", type=int, default=5, help="sampler steps in one scan")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=None, help="JSON file")
    args = parser.parse_args()

    spec = importlib.util.spec_from_file_location("config", args.config)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.sde.order = args.order
    config = read(config)

    model = build.model(config, args.shape, 0)
    loss, optimizer = build.loss(config), build.optimizer(config)
    jit = Devices.all().jit  # with the options that training and sampling have
    state = jax.jit(functools.partial(init_state, model, optimizer, 0))()
    step = jit(make_train_step(model, loss, optimizer, ema_decay=0.999))
    x = jax.random.randint(jax.random.key(0), (args.batch_size, *args.shape), 0, 256).astype(jnp.uint8)
    batch = {"x": x, "label": jnp.zeros((args.batch_size,), jnp.int32)}

    class Trivial:
        """A network of one parameter: what is left is everything else."""

        num_classes = 0

        @staticmethod
        def apply(variables, inputs, noise_cond, condition, train, rngs):
            out = variables["params"] * inputs[..., : args.shape[-1]]
            return out + 0 * noise_cond.reshape(-1, *(1,) * (out.ndim - 1))

    bare = build.model(config, args.shape, 0)
    object.__setattr__(bare, "network", Trivial())
    around = jit(jax.grad(lambda p: mean_loss(bare, loss, p, batch, jax.random.key(1), train=True)))

    sampler = samplers.SAMPLERS[args.sampler]()
    shape = (args.batch_size, *args.shape)

    @jit
    def drawn(params):
        return samplers.sample(
            sampler,
            model.sde,
            model.eps_fn(params),
            key=jax.random.key(2),
            shape=shape,
            num_steps=args.steps,
            denoise=False,
        ).x

    blocks = model.parameterization(model.sde, jnp.float32(1.0), model.sigma_data).c_in.shape[-2]

    @jit
    def called(params):
        def call(inputs, level):
            level = jnp.broadcast_to(level, (args.batch_size,))
            out = model.network.apply({"params": params}, inputs, level, None, False)
            # The next call depends on this one, as in a sampler.
            return inputs + 1e-3 * jnp.tile(out, blocks), None

        start = jnp.ones((*shape[:-1], blocks * shape[-1]))
        return jax.lax.scan(call, start, jnp.linspace(1.0, -1.0, args.steps))[0]

    times = seconds(
        {
            "training step": lambda: step(state, batch),
            "loss without the network": lambda: around(jnp.float32(0.1)),
            f"{args.steps} {args.sampler} steps": lambda: drawn(state.params),
            f"{args.steps} bare network calls": lambda: called(state.params),
        },
        args.repeats,
    )
    train_s, around_s, drawn_s, called_s = times.values()
    results = {
        "config": args.config,
        "order": model.sde.order,
        "batch_size": args.batch_size,
        "device": jax.devices()[0].device_kind,
        "seconds": times,
        "training_overhead": around_s / train_s,
        "sampling_overhead": drawn_s / called_s - 1,
    }
    for name, value in times.items():
        print(f"{name:<28}{value:>12.5f} s")
    print(f"{'training overhead':<28}{100 * results['training_overhead']:>11.2f} %")
    print(f"{'sampling overhead':<28}{100 * results['sampling_overhead']:>11.2f} %")
    if args.output:
        args.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
