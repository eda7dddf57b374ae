"""Draws the figures of docs/results/*.md from docs/results/*.json: python -m docs.plots.

One scale a row, one legend below the panels, so that it covers nothing; a line style as well as a color, for print.
"""

import matplotlib.pyplot as plt
import numpy as np

from benchmarks.parameterizations import BINS, noises
from docs.tables import ORDERS, ROOT, SHOWN, results, worst

FOLDER = ROOT / "docs" / "results"
STYLES = {
    "euler_maruyama": ("#8c8c8c", ":", "v"),
    "lie_trotter": ("#b58b52", ":", "^"),
    "sscs (strang, start)": ("#b8a500", "--", "s"),
    "ancestral": ("#d17ab0", "--", "D"),
    "ddim": ("#27a3b8", "-.", "v"),
    "heun": ("#7a5ab5", "-.", "^"),
    "dpmpp_2m": ("#e07b00", "-", "s"),
    "unipc": ("#2d6cb5", "-", "D"),
    "gaussian_fitted (churn=0)": ("#000000", "-", "o"),
    "gaussian_fitted": ("#c1272d", "-", "o"),
}
BY_ORDER = {1: ("#8c8c8c", ":", "v"), 2: ("#e39b27", "--", "s"), 3: ("#2d6cb5", "-", "o"), 4: ("#b5352d", "-.", "D")}
plt.rcParams.update(
    {"font.size": 9, "axes.titlesize": 9, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
)


def panels(count: int, height: float = 2.7, width: float = 9.0):
    """A row of panels with one vertical scale."""
    return plt.subplots(1, count, figsize=(width, height + 0.6), sharey=True, layout="constrained", squeeze=False)


def line(axes, x, y, style, label) -> None:
    """One line with markers."""
    color, dash, marker = style
    axes.plot(x, y, dash, color=color, marker=marker, ms=3.5, lw=1.3, label=label)


def finish(figure, name: str, columns: int = 5) -> None:
    """Puts the legend below the panels and writes the file."""
    handles = {label: h for axes in figure.axes for h, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=columns)
    figure.savefig(FOLDER / f"{name}.png", dpi=150)
    plt.close(figure)


def calls_axis(axes, calls, title: str, unit: str = "") -> None:
    """A logarithmic axis of network calls with these ticks alone."""
    axes.set(xscale="log", title=title, xlabel="network calls", ylabel=unit)
    axes.set_xticks(calls, [str(c) for c in calls])
    axes.minorticks_off()
    axes.grid(alpha=0.25)


def samplers_gaussian() -> None:
    """KL of each sampler against calls, orders 1 to 4."""
    calls = (10, 20, 35, 50, 100, 200)
    figure, axes = panels(len(ORDERS))
    for n, panel in zip(ORDERS, axes[0], strict=True):
        for key, style in STYLES.items():
            line(panel, calls, [worst(key, n, c) for c in calls], style, SHOWN[key].replace("`", ""))
        calls_axis(panel, calls, f"order {n}", "worst KL, std 0.5, 0.1, 0.02" if n == 1 else "")
        panel.set(yscale="log", ylim=(1e-8, 1e3))
        panel.tick_params(axis="x", labelsize=7)
    finish(figure, "samplers_gaussian")


def samplers_mixture() -> None:
    """Sliced Wasserstein distance of two mixtures."""
    rows, calls = results("samplers_mixture"), (10, 20, 50)
    figure, axes = panels(2, width=7)
    for data, panel in zip(("8 unequal modes", "25-mode grid"), axes[0], strict=True):
        for key, style in STYLES.items():
            found = {
                r["calls"]: r["sliced_wasserstein_over_floor"] for r in rows if (r["sampler"], r["data"]) == (key, data)
            }
            if found:
                line(panel, calls, [found[c] for c in calls], style, SHOWN[key].replace("`", ""))
        panel.axhline(1, color="black", lw=0.7, ls=":")
        calls_axis(panel, calls, f"{data}, order 3", "distance / floor" if panel is axes[0][0] else "")
        panel.set(yscale="log")
    finish(figure, "samplers_mixture", 4)


def samplers_digits() -> None:
    """Squared Frechet distance of the digits model."""
    rows, calls = results("samplers_digits"), (10, 20, 50)
    figure, axes = panels(len(ORDERS))
    for n, panel in zip(ORDERS, axes[0], strict=True):
        for key, style in STYLES.items():
            found = {r["calls"]: r["frechet"] for r in rows if (r["sampler"], r["order"]) == (key, n) and "calls" in r}
            if found:
                line(panel, calls, [found[c] for c in calls], style, SHOWN[key].replace("`", ""))
        calls_axis(panel, calls, f"order {n}", "squared Frechet distance" if n == 1 else "")
        panel.set(yscale="log", ylim=(0.2, 60))
    finish(figure, "samplers_digits")


def cross_order() -> None:
    """One denoiser at four orders, two samplers, two problems."""
    rows, calls = [row for row in results("cross_order") if "sampler" in row], (10, 20, 50)
    figure, axes = plt.subplots(2, 2, figsize=(7, 5.6), sharey="row", layout="constrained")
    units = {"digits": "squared Frechet distance", "mixture": "distance / floor"}
    titles = {"digits": "digits, trained at order 1", "mixture": "8 Gaussians, exact denoiser"}
    for line_of, problem in zip(axes, units, strict=True):
        for panel, sampler in zip(line_of, ("gaussian_fitted", "lie_trotter"), strict=True):
            for n, (color, dash, marker) in BY_ORDER.items():
                found = [r for r in rows if (r["problem"], r["sampler"], r["order"]) == (problem, sampler, n)]
                found.sort(key=lambda r: r["calls"])
                # Side by side, because equal values would hide one another.
                x = np.array([r["calls"] for r in found]) * 1.04 ** (n - 2.5)
                y, e = [r["distance"] for r in found], [r["error"] for r in found]
                panel.errorbar(x, y, e, color=color, ls=dash, marker=marker, ms=3.5, lw=1.2, label=f"order {n}")
            title = f"{titles[problem]}: {SHOWN[sampler].split(' (')[0].replace('`', '')}"
            calls_axis(panel, calls, title, units[problem] if panel is line_of[0] else "")
            panel.set(yscale="log")
            ticks = (1, 2, 5)
            panel.set_yticks(ticks, [str(v) for v in ticks])
            panel.minorticks_off()
    finish(figure, "cross_order", 4)


def parameterizations() -> None:
    """Error of the denoiser by noise level, for each parameterization and order; log-normal times."""
    data = results("parameterizations")["rows"]
    styles = {"eps": BY_ORDER[1], "mixed": BY_ORDER[2], "gaussian": BY_ORDER[3], "sufficient": BY_ORDER[4]}
    sigmas = np.sort(noises(20, 297).ravel())
    centers = [float(np.exp(np.log(part).mean())) for part in np.array_split(sigmas, BINS)]
    figure, axes = panels(len(ORDERS))
    for n, panel in zip(ORDERS, axes[0], strict=True):
        for name, style in styles.items():
            row = next(
                r
                for r in data
                if (r["parameterization"], r["order"], r["time_law"], r["seed"]) == (name, n, "log_normal", 0)
            )
            line(panel, centers, row["curve"], style, name)
        panel.set(xscale="log", yscale="log", ylim=(0.3, 5), title=f"order {n}", xlabel="effective noise")
        panel.set_yticks((0.5, 1, 2, 5), ("0.5", "1", "2", "5"))
        panel.minorticks_off()
        panel.grid(alpha=0.25)
    axes[0][0].set_ylabel("error / EDM's c_out²")
    finish(figure, "parameterizations", 4)


if __name__ == "__main__":
    samplers_gaussian()
    samplers_mixture()
    samplers_digits()
    cross_order()
    parameterizations()
