"""The picture that explains orders: one path from data to noise and back, at orders 1, 2 and 3.

python -m docs.orders        # docs/images/orders.png, orders_dark.png, orders.gif; seconds

Data are two narrow peaks at -1 and 1. A path starts at one of them and runs forward by the exact transition kernel;
from where it ends, the reverse process with the exact denoiser leads back to a peak.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.animation import FuncAnimation, PillowWriter

from hold_jax import kernels, samplers, sde

FOLDER = Path(__file__).parent / "images"
ORDERS, PATHS, STEPS, STD, END = (1, 2, 3), 6, 600, 0.08, 4.0
NAMES = {1: "order 1: VP", 2: "order 2: CLD", 3: "order 3: HOLD"}
PALETTE = {"light": ("#1f4e8c", "#c8553d", "#333333", "white"), "dark": ("#7fb2f0", "#f09a7f", "#d8d8d8", "#0d1117")}


def denoiser(y: jax.Array, sigma: jax.Array) -> jax.Array:
    """E[q0 | y] for data (N(-1, STD^2) + N(1, STD^2)) / 2 and y = q0 + sigma * noise."""
    total = STD**2 + sigma**2
    mode = jnp.tanh(y / total)  # the posterior mean of the peak's sign
    return mode + STD**2 / total * (y - mode)


def there_and_back(order: int, seed: int) -> np.ndarray:
    """Positions (2 * STEPS + 1, PATHS): forward over [0, END], then backward."""
    process = sde.hold(order)
    rng = np.random.default_rng(seed)
    phi, chol = (np.asarray(matrix) for matrix in kernels.transition(process, 0.0, END / STEPS))
    u = np.sqrt(np.diag(process.cov0)) * rng.standard_normal((PATHS, order))
    u[:, 0] = np.where(np.arange(PATHS) % 2, 1.0, -1.0) + STD * rng.standard_normal(PATHS)
    forward = [u[:, 0]]
    for _ in range(STEPS):
        u = u @ phi.T + rng.standard_normal(u.shape) @ chol.T
        forward.append(u[:, 0])

    def eps_fn(u, t):
        y, sigma = kernels.sufficient_statistic(process, u, t)
        return kernels.last_noise(process, u, t, denoiser(y, sigma))

    times = tuple(np.linspace(END, float(process.t_min), STEPS + 1))
    back = samplers.sample(
        "euler_maruyama", process, eps_fn, key=jax.random.key(seed), start=jnp.asarray(u[:, :, None], jnp.float32),
        num_steps=STEPS, grid=times, frames=STEPS,
    )  # fmt: skip
    return np.concatenate([np.array(forward), np.asarray(back.frames)[1:, :, 0]])


def figure(paths: dict[int, np.ndarray], style: str, size: tuple[float, float]):
    """An empty drawing: the figure and, for each order, its lines and dots."""
    low, high, ink, paper = PALETTE[style]
    drawn, panels = plt.subplots(1, len(ORDERS), figsize=size, sharey=True, layout="constrained", facecolor=paper)
    lines = {}
    for order, axes in zip(ORDERS, panels, strict=True):
        axes.set_facecolor(paper)
        ends = paths[order][-1] > 0
        colors = [high if end else low for end in ends]
        lines[order] = [
            (axes.plot([], [], color=c, lw=1.1)[0], axes.plot([], [], "o", color=c, ms=3.5)[0]) for c in colors
        ]
        axes.axvline(END, color=ink, lw=0.6, ls=":")
        axes.set_title(NAMES[order], color=ink, fontsize=11)
        axes.set(xlim=(-0.15, 2 * END + 0.15), ylim=(-2.5, 2.5))
        axes.set_xticks([0, END, 2 * END], ["data", "noise", "samples"], color=ink, fontsize=9)
        axes.set_yticks([-1, 1])
        axes.tick_params(colors=ink, labelsize=9)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(ink)
    panels[0].set_ylabel("position", color=ink, fontsize=9)
    return drawn, lines


def draw(paths: dict[int, np.ndarray], lines, upto: int) -> None:
    """Draws every path up to a step."""
    clock = np.linspace(0, 2 * END, 2 * STEPS + 1)
    for order, pairs in lines.items():
        for path, (line, dot) in zip(paths[order].T, pairs, strict=True):
            line.set_data(clock[: upto + 1], path[: upto + 1])
            dot.set_data([clock[upto]], [path[upto]])


def main() -> None:
    """Writes the three files."""
    FOLDER.mkdir(exist_ok=True)
    paths = {order: there_and_back(order, seed=5) for order in ORDERS}
    for style in PALETTE:
        drawn, lines = figure(paths, style, (10, 2.9))
        draw(paths, lines, 2 * STEPS)
        name = "orders.png" if style == "light" else f"orders_{style}.png"
        drawn.savefig(FOLDER / name, dpi=150, facecolor=drawn.get_facecolor())
        plt.close(drawn)
    drawn, lines = figure(paths, "light", (8, 2.4))
    steps = [*range(0, 2 * STEPS + 1, 20), *[2 * STEPS] * 15]
    film = FuncAnimation(drawn, lambda k: draw(paths, lines, k), frames=steps, cache_frame_data=False)
    film.save(FOLDER / "orders.gif", writer=PillowWriter(fps=20), dpi=80)


if __name__ == "__main__":
    main()
