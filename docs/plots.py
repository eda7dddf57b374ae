"""Draws the figures of docs/results/*.md from docs/results/*.json: python -m docs.plots.

One scale a row, one legend below the panels, so that it covers nothing; a line style as well as a color, for print.
"""

import matplotlib.pyplot as plt
import numpy as np

from benchmarks import paper_choices as choices
from benchmarks import paper_mixing as mixing
from benchmarks import paper_told_densities as told_densities
from benchmarks.parameterizations import BINS, noises
from docs.tables import INVERSE, ORDERS, ROOT, SHOWN, only, results, worst, worst_kl

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
                r["calls"]: r["sliced_wasserstein_over_floor"]
                for r in rows
                if (r["sampler"], r["data"], r["grid"], r["order"]) == (key, data, "log", 3)
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
            at = (key, n, "log")
            found = {r["calls"]: r["frechet"] for r in rows if (r["sampler"], r["order"], r.get("grid")) == at}
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


# --- docs/results/papers.md ------------------------------------------------------------------------


def paper_poisson_midpoint() -> None:
    """KL against calls: what is held, and K."""
    rows, calls = results("paper_poisson_midpoint")["rows"], (25, 50, 80)
    figure, axes = panels(len(ORDERS))
    shades = {"denoiser": ("#9ec3e6", "#2d6cb5", "#123a6b"), "score": ("#edb0ab", "#c1272d", "#6e1014")}
    for n, panel in zip(ORDERS, axes[0], strict=True):
        of = {"data": "gaussian", "order": n}
        for base, colors in shades.items():
            for k, color in zip((4, 16, 40), colors, strict=True):
                own = of | {"base": base, "spacing": "uniform", "K": k}
                style = (color, "-", "o") if base == "denoiser" else (color, "--", "s")
                line(panel, calls, [only(rows, **own, calls=c)["kl"] for c in calls], style, f"{base} held, K = {k}")
        ancestral = {c: only(rows, **of, sampler="ancestral", calls=c)["kl"] for c in (*calls, 1000)}
        line(panel, calls, [ancestral[c] for c in calls], ("black", "-.", "D"), "ancestral")
        panel.axhline(ancestral[1000], color="black", lw=0.8, ls=":", label="ancestral, 1,000 calls")
        calls_axis(panel, calls, f"order {n}", "worst KL, std 0.5, 0.1, 0.02" if n == 1 else "")
        panel.set(yscale="log", ylim=(1e-7, 1e4))
    finish(figure, "paper_poisson_midpoint", 4)


def categories(axes, names, title: str) -> None:
    """Names on the vertical axis, the first on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set(title=title, ylim=(len(names) - 0.5, -0.5))
    axes.grid(alpha=0.25, axis="x")


def paper_poisson_digits() -> None:
    """Frechet distance of a trained network's samples, with errors."""
    floor, *rows = results("paper_poisson_digits")["rows"]
    figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
    colors = {"poisson_midpoint": "#2d6cb5", "ancestral": "black"}
    for i, row in enumerate(rows):
        color = colors.get(row["sampler"].split(",")[0], "#8c8c8c")
        axes.errorbar(row["distance"], i, xerr=row["error"], fmt="o", ms=4, capsize=3, color=color)
    axes.axvline(floor["distance"], color="black", lw=0.8, ls=":", label="as many training pictures")
    categories(axes, [f"{row['sampler'].replace('_', ' ')}, {row['calls']}" for row in rows], "digits, order 3")
    axes.set_xlabel("squared Frechet distance of pixels")
    finish(figure, "paper_poisson_digits")


def paper_mixing() -> None:
    """KL from the prior against B; and the B at which it is 1e-4 against the friction."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    colors = plt.cm.viridis(np.linspace(0, 0.9, 6))
    styles = {f"critical, n = {n}": (colors[n - 1], "-") for n in range(1, 7)}
    styles |= {"TOLD": ("#c1272d", "--"), "CLD": ("black", ":")}
    times = mixing.TIMES
    for name, m in mixing.PROCESSES.items():
        left.plot(times, mixing.divergence(m, times), styles[name][1], color=styles[name][0], label=name)
    left.set(title="given one data point", xlabel="B", ylabel="KL from the prior", yscale="log")
    left.set(ylim=(1e-8, 1e2), xlim=(0, 12))
    rows = [row for row in results("paper_mixing")["rows"] if "friction" in row]
    for n in (2, 3, 4):
        found = np.array([(r["friction"], r["mixed_1e-4"]) for r in rows if r["order"] == n])
        found[found[:, 1] >= times[-1], 1] = np.nan  # not reached
        right.plot(*found.T, color=colors[n - 1])
    right.axvline(1, color="black", lw=0.8, ls=":")
    right.set(
        title="couplings of critical damping", xlabel="friction over the critical one", ylabel="B at a KL of 1e-4"
    )
    for axes in (left, right):
        axes.grid(alpha=0.25)
    finish(figure, "paper_mixing", 4)


def paper_told_densities() -> None:
    """Square root of the density of the position against time, from TOLD++'s mixture."""
    figure, axes = plt.subplots(2, 2, figsize=(9, 4.4), sharex=True, sharey=True, layout="constrained")
    times, grid = np.linspace(1e-3, 3, 150), told_densities.GRID
    for panel, (name, m) in zip(axes.ravel(), told_densities.MODELS.items(), strict=True):
        picture = np.sqrt(np.stack([told_densities.density(m, t) for t in times], axis=1))
        shown = panel.imshow(picture, aspect="auto", origin="lower", extent=(0, 3, grid[0], grid[-1]), cmap="magma")
        panel.axvline(1.0, color="white", lw=0.8, ls="--")
        panel.set(title=name, ylim=(-8, 8), xlabel="t", ylabel="position")
        panel.label_outer()
    figure.colorbar(shown, ax=axes, label="root of the density")
    figure.savefig(FOLDER / "paper_told_densities.png", dpi=150)
    plt.close(figure)


def paper_psld_samplers() -> None:
    """Distance of Gaussian widths against calls."""
    rows, calls = results("paper_psld_samplers")["rows"], (50, 100, 200)
    colors = {"ROBA": "#2d6cb5", "RBAO": "#e07b00", "ROBAB": "#7a5ab5", "lambda-DDIM": "#2a8c4a"}
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for name in dict.fromkeys(row["sampler"] for row in rows):
        dash, marker = (":", "v") if "unset" in name else ("--", "s") if "best" in name else ("-", "o")
        if name.startswith("lambda-DDIM-II"):
            marker = "D"
        if name == "lambda-DDIM, lambda = 0":
            dash, marker = ":", "v"
        own = {"euler_maruyama": "#8c8c8c", "sscs": "#b8a500", "gaussian_fitted, log": "#c1272d"}
        color = own.get(name) or next(c for k, c in reversed(colors.items()) if name.startswith(k))
        y = [only(rows, sampler=name, calls=c)["distance"] for c in calls]
        line(
            axes,
            calls,
            y,
            (color, dash, marker),
            SHOWN.get(name, name.replace("sscs", "SSCS")).split(" (")[0].replace("`", ""),
        )
    calls_axis(axes, calls, "PSLD, data of std 0.5, 0.1 and 0.02", "sum of (std' - std)²")
    axes.set(yscale="log")
    finish(figure, "paper_psld_samplers", 3)


def paper_sub_flows() -> None:
    """Worst KL of each order of the sub-flows."""
    rows = results("paper_sub_flows")["rows"]
    names = list(dict.fromkeys(row["sequence"] for row in rows))
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for n in (2, 3, 4):
        color, _, marker = BY_ORDER[n]
        x = [only(rows, sequence=name, order=n, calls=100)["kl"] for name in names]
        axes.plot(x, range(len(names)), marker, color=color, ms=5, label=f"order {n}")
    categories(axes, [name.replace("lie_trotter", "O and H in one") for name in names], "100 calls")
    axes.set(xscale="log", xlabel="worst KL, std 0.5, 0.1, 0.02")
    finish(figure, "paper_sub_flows")


def paper_cld_toys() -> None:
    """Distance over the floor against calls."""
    rows, calls = results("paper_cld_toys")["rows"], (20, 50, 100, 200)
    styles = {"euler_maruyama": "euler_maruyama", "sscs": "sscs (strang, start)", "strang": "dpmpp_2m"}
    styles |= {"gaussian_fitted, log": "gaussian_fitted"}
    shown = {"euler_maruyama": "Euler-Maruyama", "sscs": "SSCS", "strang": "strang, score at the midpoint"}
    figure, axes = panels(2, width=7)
    for data, panel in zip(("diamond9", "swissroll5"), axes[0], strict=True):
        for name, style in styles.items():
            y = [only(rows, data=data, sampler=name, calls=c)["ratio"] for c in calls]
            line(panel, calls, y, STYLES[style], shown.get(name, "gaussian_fitted"))
        panel.axhline(1, color="black", lw=0.7, ls=":")
        calls_axis(panel, calls, data, "distance / floor" if data == "diamond9" else "")
    finish(figure, "paper_cld_toys", 4)


def paper_choices() -> None:
    """Held-out error and samples for each choice, mean and standard error over the seeds."""
    rows = results("paper_choices")["rows"]
    names = list(choices.CHANGES)
    titles = {"error": "held-out error / EDM's c_out²", "samples": "distance of the samples / floor"}
    ticks = {"digits": {"error": (0.6, 0.8, 1, 1.5, 2), "samples": (20, 50, 100, 200, 500)}}
    ticks["rolls"] = {"error": (0.7, 0.8, 0.9, 1), "samples": (0.8, 1, 1.5, 2)}
    figure, axes = plt.subplots(2, 2, figsize=(9, 6.4), sharey=True, layout="constrained")
    for data, panels_of in zip(choices.DATA, axes, strict=True):
        for panel, (column, title) in zip(panels_of, titles.items(), strict=True):
            for i, name in enumerate(names):
                value, spread = choices.mean_and_error(only(rows, data=data, change=name)[column])
                color = "#c1272d" if i >= len(names) - choices.NUM_OURS else "#2d6cb5"
                panel.errorbar(value, i, xerr=spread, fmt="o", ms=4, capsize=3, color=color)
                if name == "base":
                    panel.axvline(value, color="black", lw=0.8, ls=":")
            panel.set(xscale="log")
            panel.set_xticks(ticks[data][column], [f"{tick:g}" for tick in ticks[data][column]])
            panel.minorticks_off()
            categories(panel, names, f"{data}: {title}")
    figure.savefig(FOLDER / "paper_choices.png", dpi=150)
    plt.close(figure)


# --- docs/results/told.md --------------------------------------------------------------------------


def swissroll_told() -> None:
    """Distance from the prior and from the true law of u at T; and the prior's part against the end time."""
    data = results("swissroll_told")
    scale, iterations, models = (
        data["settings"]["scales"][0],
        data["settings"]["iterations"],
        data["settings"]["models"],
    )
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(9, 3.6), layout="constrained")

    def values(model: str, kind: str, start: str) -> np.ndarray:
        return np.array(only(data["rows"], scale=scale, model=model, kind=kind, start=start)["values"])

    dots = dict(zip(iterations, (("#9ec3e6", "s"), ("#2d6cb5", "o")), strict=True))
    for panel, start in ((left, "prior"), (middle, "true")):
        for i, (color, marker) in dots.items():
            found = [values(model, f"{i:,}", start) for model in models]
            at = np.arange(len(models)) + (0.12 if i == iterations[-1] else -0.12)
            errors = [2 * v.std(ddof=1) / np.sqrt(len(v)) for v in found]
            panel.errorbar(
                at, [v.mean() for v in found], yerr=errors, fmt=marker, ms=4.5, capsize=3, color=color,
                label=f"network, {i:,} steps",
            )  # fmt: skip
            if start == "prior":
                known = [(x, data["paper"][m][str(i)]) for x, m in zip(at, models, strict=True) if m in data["paper"]]
                panel.plot(*np.transpose(known), "*", ms=8, color="#c1272d", label="published, 1,000 and 5,000 steps")
        panel.set_xticks(range(len(models)), models)
        panel.set(xlim=(-0.5, len(models) - 0.5), ylim=(0, None))
        panel.grid(alpha=0.25, axis="y")
    for kind, dash, label in (("linear", ":", "linear score, no network"), ("exact", "-", "exact score, no network")):
        for x, model in enumerate(models):
            left.plot([x - 0.35, x + 0.35], [values(model, kind, "prior").mean()] * 2, dash, color="black", label=label)
    middle.axhline(
        values("data", "second draw", "").mean(), color="black", lw=1, ls="--", label="a second draw of data"
    )
    left.set(title="start from the prior, as published", ylabel="squared Frechet distance")
    middle.set(title="start from the true law of u at T = 1")
    colors = plt.cm.viridis(np.linspace(0, 0.85, len(data["curves"]) // 2))
    for told, plus, color in zip(data["curves"][::2], data["curves"][1::2], colors, strict=True):
        difference = np.subtract(plus["exact"], told["exact"])
        right.plot(data["end_times"], difference, color=color, label=f"exact, data std {told['scale']:g}")
    for i in iterations:
        y = data["paper"]["TOLD++"][str(i)] - data["paper"]["TOLD"][str(i)]
        right.plot(1.0, y, "*", ms=8, color="#c1272d")
    right.axvline(1, color="black", lw=0.8, ls=":")
    right.axhline(0, color="black", lw=0.8)
    right.set(title="TOLD++ minus TOLD", xlabel="end time T")
    right.grid(alpha=0.25)
    finish(figure, "swissroll_told", 4)


# --- docs/inverse.md -------------------------------------------------------------------------------


def inverse() -> None:
    """Error of the posterior against passes through the network, each method, orders 1 to 4, two problems."""
    rows, steps = results("inverse")["rows"], (10, 20, 40, 80)
    colors = ("#8c8c8c", "#27a3b8", "#e07b00", "#9ec3e6", "#2d6cb5", "#123a6b")
    styles = {key: (color, "-", marker) for key, color, marker in zip(INVERSE, colors, "vs^ooo", strict=True)}
    figure, axes = plt.subplots(2, len(ORDERS), figsize=(9, 5.6), sharex=True, sharey="row", layout="constrained")
    for n, upper, lower in zip(ORDERS, *axes, strict=True):
        for key, name in INVERSE.items():
            label = name.replace("`", "").replace("_", " ") + (" solver steps" if key[-1] in "38" else "")
            passes = [only(rows, problem="gaussian", operator="inpaint", method=key, order=n, steps=s) for s in steps]
            line(upper, [r["passes"] for r in passes], [worst_kl(key, n, s) for s in steps], styles[key], label)
            found = [only(rows, problem="mixture", method=key, order=n, steps=s) for s in steps[:3]]
            x, y, e = ([row[column] for row in found] for column in ("passes", "distance", "error"))
            color, dash, marker = styles[key]
            lower.errorbar(x, y, e, color=color, ls=dash, marker=marker, ms=3.5, lw=1.2)
        upper.set(xscale="log", yscale="log", ylim=(1e-4, 1e4), title=f"order {n}")
        lower.set(xscale="log", yscale="log", xlabel="network passes")
        lower.set_yticks((5, 10, 20, 50), ("5", "10", "20", "50"))
        lower.set_xticks((10, 30, 100, 300), ("10", "30", "100", "300"))
        for panel in (upper, lower):
            panel.minorticks_off()
            panel.grid(alpha=0.25)
    axes[0][0].set_ylabel("Gaussian: worst KL a dimension")
    axes[1][0].set_ylabel("mixture: distance / floor")
    finish(figure, "inverse", 3)


# --- docs/langevin.md ------------------------------------------------------------------------------

LANGEVIN = {
    "euler_maruyama": ("#8c8c8c", ":", "v"),
    "exponential_euler": ("#b58b52", ":", "^"),
    "strang": ("#e07b00", "-", "s"),
    "baoab": ("#c1272d", "-", "o"),
    "obabo": ("#7a5ab5", "--", "D"),
    "randomized_midpoint": ("#000000", "-", "v"),
    "poisson_midpoint, K = 4": ("#9ec3e6", "-.", "s"),
    "poisson_midpoint, K = 16": ("#2d6cb5", "-.", "o"),
    "picard_lagrange": ("#2a8c4a", "--", "^"),
}


def langevin_bias() -> None:
    """Relative bias of the variance against the step size over its gradients, orders 1 to 4."""
    rows = results("langevin_bias")["methods"]
    figure, axes = panels(len(ORDERS))
    for n, panel in zip(ORDERS, axes[0], strict=True):
        for name, style in LANGEVIN.items():
            row = next((r for r in rows if (r["case"], r["order"]) == (name, n)), None)
            if row:
                line(panel, np.array(row["h"]) / row["gradients"], row["bias"], style, name)
        panel.set(xscale="log", yscale="log", ylim=(1e-10, 3), title=f"order {n}", xlabel="time for each gradient")
        panel.grid(alpha=0.25)
    axes[0][0].set_ylabel("relative bias of the variance")
    finish(figure, "langevin_bias")


def langevin_cost() -> None:
    """Gradients for one e-fold of contraction at a bias of at most 0.01 against the condition number."""
    rows = results("langevin_cost")["cost"]
    figure, axes = panels(len(ORDERS))
    for n, panel in zip(ORDERS, axes[0], strict=True):
        for name, style in LANGEVIN.items():
            own = (name, n, 0.01, True)
            found = [r for r in rows if (r["case"], r["order"], r["tolerance"], r["tuned"]) == own]
            line(panel, [r["condition"] for r in found], [r["gradients"] for r in found], style, name)
        panel.set(xscale="log", yscale="log", title=f"order {n}", xlabel="condition number", xlim=(0.8, 1300))
        panel.grid(alpha=0.25)
    axes[0][0].set_ylabel("gradients for one e-fold")
    finish(figure, "langevin_cost")


if __name__ == "__main__":
    samplers_gaussian()
    samplers_mixture()
    samplers_digits()
    cross_order()
    parameterizations()
    paper_poisson_midpoint()
    paper_poisson_digits()
    paper_mixing()
    paper_told_densities()
    paper_psld_samplers()
    paper_sub_flows()
    paper_cld_toys()
    paper_choices()
    swissroll_told()
    inverse()
    langevin_bias()
    langevin_cost()
