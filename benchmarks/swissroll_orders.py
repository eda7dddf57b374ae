"""Train the Swiss-roll model at several orders, equal cost each, and compare samples with data.

python -m benchmarks.swissroll_orders --output=docs/results/swissroll_orders.json \\
  --plot=docs/results/swissroll_orders.png

For each order: sliced Wasserstein distance (order 2) of 10,000 samples to data, over that of a second
data draw of the same size (1 is indistinguishable). How many points fall on which roll scatters, so both
are means over several draws. About 3 minutes an order on 2 CPU cores.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from configs import swissroll_hold
from hold_jax.app import build
from hold_jax.app.config import read
from hold_jax.data import toy
from hold_jax.loops.draw import draw_blocks
from hold_jax.loops.train import Trainer
from hold_jax.metrics.sliced_wasserstein import sliced_wasserstein
from hold_jax.runtime.mesh import Devices

NUM = 10_000
DATA_DRAWS = 8
SAMPLE_DRAWS = 12


def main() -> None:
    """Prints a table; writes JSON and a plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--orders", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--num_steps", type=int, default=None, help="training steps; default: the config's")
    parser.add_argument("--sampler_steps", type=int, default=None, help="default: the config's")
    parser.add_argument("--output", type=Path, default=None, help="JSON file")
    parser.add_argument("--plot", type=Path, default=None, help="PNG file")
    args = parser.parse_args()

    data = toy.sample("swissroll", NUM, seed=101)
    floors = [sliced_wasserstein(toy.sample("swissroll", NUM, seed=200 + i), data) for i in range(DATA_DRAWS)]
    floor = float(np.mean(floors))
    rows, drawn = [], {}
    for order in args.orders:
        config = swissroll_hold.get_config()
        config.sde.order = order
        if args.num_steps:
            config.training.num_steps = args.num_steps
        if args.sampler_steps:
            config.sampling.num_steps = args.sampler_steps
        config = read(config)
        dataset = build.dataset(config, "train")
        model = build.model(config, dataset.shape, dataset.num_classes)
        sampling = build.sampling(config)
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(
                model, build.loss(config), build.optimizer(config), dataset, build.training(config), sampling
            )
            state = trainer.run(Path(folder))
        seconds = time.monotonic() - began
        blocks = draw_blocks(model, state.ema, sampling, Devices.all(), np.arange(SAMPLE_DRAWS * NUM))
        x = np.concatenate([block.x for block in blocks])
        draws = np.split(x, SAMPLE_DRAWS)
        distances = [sliced_wasserstein(draw, data) for draw in draws]
        distance = float(np.mean(distances))
        error = float(np.std(distances, ddof=1) / SAMPLE_DRAWS**0.5)
        drawn[order] = draws[0]
        rows.append(
            {
                "order": order,
                "distance": distance,
                "distances": distances,
                "floor": floor,
                "ratio": distance / floor,
                "ratio_error": error / floor,
                "train_seconds": seconds,
            }
        )
        ratio = f"{distance / floor:.2f} +- {error / floor:.2f}"
        print(f"order {order}: sliced W2 {distance:.4f}, second draw {floor:.4f}, ratio {ratio}", flush=True)

    if args.output:
        host = {"device": jax.devices()[0].device_kind, "num_points": NUM, "floors": floors, "rows": rows}
        args.output.write_text(json.dumps(host, indent=2) + "\n")
    if args.plot:
        _plot(args.plot, data, drawn, rows)


def _plot(path: Path, data: np.ndarray, drawn: dict[int, np.ndarray], rows: list[dict]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2 * (len(drawn) + 1), 2.3), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(drawn) + 1, sharex=True, sharey=True)
    titles = ["data", *(f"order {row['order']}: {row['ratio']:.2f}" for row in rows)]
    side = 1.15 * np.abs(data).max()
    for axes, title, points in zip(panels, titles, [data, *drawn.values()], strict=True):
        axes.scatter(points[:, 0], points[:, 1], s=1, alpha=0.4, linewidths=0, color="#2d6cb5")
        axes.set(aspect="equal", xticks=[], yticks=[], xlim=(-side, side), ylim=(-side, side))
        axes.set_title(title, fontsize=10)
    figure.savefig(path)


if __name__ == "__main__":
    main()
