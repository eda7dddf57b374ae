"""Fills the tables and numbers of README.md and docs/ from docs/results/*.json: python -m docs.tables [--check].

A table stands between `<!-- table: NAME -->` and `<!-- end -->`, a number of the text between `<!-- value: NAME -->`
and `<!-- end -->`; NAME is a function of this file. `--check` (a test runs it) changes nothing and fails where a page
differs from its results, so that no page says what no result file holds.
"""

import argparse
import functools
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MARK = re.compile(r"<!-- (table|value): (\w+) -->.*?<!-- end -->", re.S)
ORDERS = (1, 2, 3, 4)
SHOWN = {
    "euler_maruyama": "Euler-Maruyama",
    "lie_trotter": "Lie-Trotter",
    "sscs (strang, start)": "SSCS",
    "ancestral": "ancestral",
    "ddim": "DDIM",
    "heun": "Heun (EDM)",
    "dpmpp_2m": "DPM-Solver++(2M)",
    "unipc": "UniPC",
    "gaussian_fitted (churn=0)": "`gaussian_fitted`, `churn=0`",
    "gaussian_fitted": "`gaussian_fitted` (default)",
}


@functools.cache
def results(name: str) -> Any:
    """The content of docs/results/NAME.json."""
    return json.loads((ROOT / "docs" / "results" / f"{name}.json").read_text())


def table(head: Iterable[Any], rows: Iterable[Iterable[Any]]) -> str:
    """A Markdown table."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def short(x: float) -> str:
    """Two digits, in scientific notation without padding."""
    return f"{x:.1e}".replace("e-0", "e-").replace("e+0", "e+").replace("e+", "e")


def error(x: float, e: float, digits: int = 3) -> str:
    """A value with its standard error."""
    return f"{x:.{digits}f} ± {e:.{digits}f}"


def only(rows: list[dict[str, Any]], **want: Any) -> dict[str, Any]:
    """The one row that has these values."""
    found = [row for row in rows if all(row.get(key) == value for key, value in want.items())]
    if len(found) != 1:
        raise ValueError(f"{len(found)} rows have {want}")
    return found[0]


# --- samplers on exact problems -------------------------------------------------------------------


def worst(sampler: str, order: int, calls: int) -> float:
    """KL of a sampler on its best grid for each width, the worst of the widths."""
    rows = [
        r for r in results("samplers_gaussian") if (r["sampler"], r["order"], r["calls"]) == (sampler, order, calls)
    ]
    grids = {row["grid"] for row in rows}
    return min(max(row["kl"] for row in rows if row["grid"] == grid) for grid in grids)


def samplers_gaussian() -> str:
    """KL at order 3 against calls."""
    calls = (10, 20, 35, 50, 100)
    rows = ([name, *(short(worst(key, 3, c)) for c in calls)] for key, name in SHOWN.items())
    return table(["calls", *calls], rows)


def samplers_mixture() -> str:
    """Sliced Wasserstein distance over that of a second draw of data."""
    rows = results("samplers_mixture")
    kinds, calls, at = ("8 unequal modes", "25-mode grid"), (10, 20, 50), {"order": 3, "grid": "log"}
    names = [key for key in SHOWN if any(row["sampler"] == key for row in rows)]
    cells = (
        [SHOWN[key]]
        + [
            f"{only(rows, **at, sampler=key, data=k, calls=c)['sliced_wasserstein_over_floor']:.1f}"
            for k in kinds
            for c in calls
        ]
        for key in names
    )
    return table(["", *(f"{k.split('-')[0].split(' ')[0]} modes, {c}" for k in kinds for c in calls)], cells)


def samplers_digits() -> str:
    """Squared Frechet distance of pixels, order 3."""
    rows = results("samplers_digits")
    calls = (10, 20, 50)
    names = [key for key in SHOWN if any(row["sampler"] == key for row in rows)]
    cells = (
        [SHOWN[key]]
        + [f"{only(rows, sampler=key, order=n, calls=c, grid='log')['frechet']:.2f}" for n in (1, 3) for c in calls]
        for key in names
    )
    return table(["calls", *(f"order {n}, {c}" for n in (1, 3) for c in calls)], cells)


# --- orders, parameterizations, likelihood --------------------------------------------------------


def _parameterization(name: str, field: str, digits: int) -> list[str]:
    rows = results("parameterizations")["rows"]
    cells = (only(rows, parameterization=name, order=n, time_law="log_normal", seed=0)[field] for n in ORDERS)
    return [f"{cell:.{digits}f}" for cell in cells]


def parameterizations() -> str:
    """Held-out error of the denoiser over EDM's c_out^2, then the distance of samples."""
    names = ("eps", "mixed", "gaussian", "sufficient")
    head = ["", *(f"error, n = {n}" for n in ORDERS), *(f"distance, n = {n}" for n in ORDERS)]
    return table(head, ([f"`{k}`", *_parameterization(k, "edm", 3), *_parameterization(k, "pixels", 2)] for k in names))


def cross_order() -> str:
    """One denoiser trained at order 1, sampled at orders 1 to 4."""
    rows, out = results("cross_order"), []
    shown = {"gaussian_fitted": "`gaussian_fitted`", "lie_trotter": "Lie-Trotter"}
    for problem, title in (("digits", "digits"), ("mixture", "Gaussians")):
        for sampler, name in shown.items():
            for calls in (10, 20, 50):
                cells = (only(rows, problem=problem, sampler=sampler, order=n, calls=calls) for n in ORDERS)
                out.append([f"{title}, {name}", calls, *(f"{cell['distance']:.2f}" for cell in cells)])
    return table(["", "calls", *(f"n = {n}" for n in ORDERS)], out)


def cross_order_same() -> str:
    """Distance of the samples of each order to a second draw of order 1."""
    found = [row for row in results("cross_order") if "to_order_1" in row]
    return ", ".join(f"{row['to_order_1']:.3f}" for row in found)


def swissroll_orders() -> str:
    """Sliced Wasserstein distance over that of a second draw of data."""
    rows = results("swissroll_orders")["rows"]
    ratios = [error(r["ratio"], r["ratio_error"], 2) for r in rows]
    return table(["order", *(r["order"] for r in rows)], [["distance / floor", *ratios]])


def likelihood_swissroll() -> str:
    """Bits per dimension of a trained model at each order, beside the exact density's."""
    rows = results("likelihood_swissroll")
    return table(
        ["order", *(row["order"] for row in rows)],
        [
            ["model (a bound for n > 1)", *(f"{row['bits']:.3f}" for row in rows)],
            ["exact density", *(f"{row['exact_bits']:.3f}" for row in rows)],
            ["difference", *(error(row["excess"], row["excess_error"]) for row in rows)],
        ],
    )


def likelihood_gap() -> str:
    """The gap of the papers' bound on Gaussian data, bits per dimension."""
    rows, sigmas = results("likelihood_gap"), (0.02, 0.005, 0.002, 1e-3, 1e-4, 1e-5)
    cases = ((2, 0.08), (3, 0.08), (4, 0.08), (3, 1e-4), (4, 1e-4))
    return table(
        ["noise level at t_min", *(f"{sigma:g}" for sigma in sigmas)],
        (
            [
                f"n = {n}, alpha = {alpha:g}",
                *(f"{only(rows, order=n, alpha=alpha, sigma=s)['gap_bits']:.2g}" for s in sigmas),
            ]
            for n, alpha in cases
        ),
    )


def swissroll_told() -> str:
    """Table I of TOLD++: squared Frechet distance, with standard errors over seeds."""
    data = results("swissroll_told")
    scale = data["settings"]["scales"][0]
    columns = [("linear", "prior"), ("exact", "prior"), ("1,000", "prior"), ("5,000", "prior"), ("5,000", "true")]

    def cell(model: str, kind: str, start: str) -> str:
        values = np.array(only(data["rows"], scale=scale, model=model, kind=kind, start=start)["values"])
        if len(values) == 1:
            return f"{values[0]:.3f}"
        return error(values.mean(), values.std(ddof=1) / np.sqrt(len(values)), 4 if start == "true" else 3)

    def published(model: str) -> str:
        return ", ".join(f"{value:.3f}" for value in data["paper"].get(model, {}).values())

    head = ["", "linear score", "exact score", "1,000 steps", "5,000 steps", "5,000 steps, true start", "published"]
    return table(head, ([m, *(cell(m, *c) for c in columns), published(m)] for m in data["settings"]["models"]))


# --- numerics and speed ---------------------------------------------------------------------------


def kernels() -> str:
    """Largest error of the float32 kernels against 60-digit arithmetic."""
    rows = results("kernels")
    return table(
        ["", *rows], ([name, *(short(row[name]) if row[name] else "0" for row in rows.values())] for name in rows["VP"])
    )


def _over_torch(part: str, what: str) -> str:
    return f"{only(results('train_step_speed')['rows'], part=part, who='hold_jax')[what]:.2f}"


def step_over_torch() -> str:
    """Time of a training step over eager PyTorch's."""
    return _over_torch("step", "over_torch")


def step_over_torch_processor() -> str:
    """Processor time of a training step over eager PyTorch's."""
    return _over_torch("step", "cpu_over_torch")


def forward_over_torch() -> str:
    """Time of a forward pass over eager PyTorch's."""
    return _over_torch("forward", "over_torch")


def forward_over_torch_processor() -> str:
    """Processor time of a forward pass over eager PyTorch's."""
    return _over_torch("forward", "cpu_over_torch")


def cpu_step() -> str:
    """Time and processor time of a training step on a CPU, with the options of XLA and pages of each size."""
    rows = results("cpu_step")["rows"]

    def cell(name: str, own: bool, pages: str) -> str:
        same = [row for row in rows if (row["config"], row["own_options"], row["pages"]) == (name, own, pages)]
        return ", ".join(f"{1e3 * min(row[what] for row in same):.0f}" for what in ("seconds", "processor"))

    cases = [(False, "small"), (True, "small"), (False, "huge"), (True, "huge")]
    head = ["ms, ms of processor time", "JAX as it is", "no YNNPACK convolutions", "huge pages", "both"]
    names = dict.fromkeys(row["config"] for row in rows)
    return table(head, ([f"`{name}`", *(cell(name, *case) for case in cases)] for name in names))


def overhead_training() -> str:
    """The part of a training step that is around the loss."""
    return f"{100 * results('overhead_cifar10_small')['training_overhead']:.1f} %"


def overhead_sampling() -> str:
    """A Strang step over bare network calls."""
    return f"{100 * results('overhead_cifar10_small')['sampling_overhead']:.1f} %"


def metrics_seconds() -> str:
    """All metrics of 50,000 samples."""
    return f"{results('metrics_speed')['rows']['all']['seconds']:.0f}"


def metrics_memory() -> str:
    """Memory of the same."""
    return f"{results('metrics_speed')['rows']['all']['peak_gb']:.1f}"


def compiled_programs() -> str:
    """Programs of the full models, compiled for devices that were not there."""
    lines = []
    for row in results("aot"):
        if row["program"] == "update":
            continue
        sent = row["collectives"]
        summed = sum(entry["bytes"] for kind, entry in sent.items() if kind.startswith("all-reduce"))
        gathered = sum(entry["bytes"] for kind, entry in sent.items() if kind.startswith("all-gather"))
        name = Path(row["config"]).stem
        kernels = row["kernels"]
        changes = (f"`{change.removeprefix('--config.')}`" for change in row["changes"])
        lines.append(
            [
                ", ".join([row["program"], *[f"`{name}`"] * (name != "cifar10_hold"), *changes]),
                f"`{row['topology']}`",
                row["dtype"],
                row["batch_per_device"],
                f"{row['all_bytes'] / 2**30:.2f}",
                f"{sum(row['flops'].values()) / 1e12:.2f}",
                f"{1e3 * row['compute_seconds']:.0f}",
                f"{1e3 * row['roofline_seconds']:.0f}",
                f"{sum(kernels.values()):,}, {kernels.get('update', 0)}",
                f"{summed / 1e6:.0f}, {gathered / 1e6:.0f}" if sent else "",
            ]
        )
    head = ["", "topology", "type", "examples a device", "GiB a device", "TFLOP a device", "ms of products"]
    head += ["ms, roofline", "kernels, of the update", "MB summed, gathered"]
    return table(head, lines)


def fid_orders() -> str:
    """FID of one network at several orders."""
    rows = [r for r in results("fid_orders")["rows"] if r["order"]]
    lines = []
    for calls, sampler in sorted({(r["calls"], r["sampler"]) for r in rows}):
        found = {r["order"]: r for r in rows if (r["calls"], r["sampler"]) == (calls, sampler)}
        cells = [error(found[n]["fid"], found[n]["error"], 1) for n in ORDERS]
        lines.append([calls, f"`{sampler.partition(':')[0]}`", *cells])
    return table(["calls", "sampler", *(f"order {n}" for n in ORDERS)], lines)


def step_beside_torch_on_h200() -> str:
    """A training step on the H200 beside PyTorch's, of two runs."""
    lines = []
    for run in results("h200")["step_beside_torch"]["runs"]:
        ours, theirs = run["rows"]
        for row in (ours, theirs):
            lines.append(
                [
                    {"torch": "PyTorch, eager", "torch.compile": "PyTorch, compiled"}.get(row["who"], row["who"]),
                    f"{1e3 * row['seconds']:.1f}, {1e3 * row['least_seconds']:.1f}",
                    f"{row['images_per_second']:,.0f}",
                    f"{row['flops'] / row['seconds'] / 1e12:.0f}",
                    f"{1e3 * row['cpu_seconds']:.0f}",
                    f"{theirs['seconds'] / row['seconds']:.1f}" if row is ours else "",
                ]
            )
    head = ["", "ms, least", "pictures/s", "TFLOP/s", "ms of processor time", "times as fast"]
    return table(head, lines)


def training_rate() -> str:
    """Pictures a second in training on the H200."""
    return f"{max(results('h200')['train']['images_per_second']):,}"


def training_utilization() -> str:
    """FLOPs of training on the H200 over those of a measured matrix product."""
    found = results("h200")
    rate = max(found["train"]["images_per_second"]) * found["train"]["flops_per_image"]
    return f"{100 * rate / found['matrix_rate']['bfloat16']:.0f} %"


# --- the papers -----------------------------------------------------------------------------------


def paper_poisson_midpoint() -> str:
    """Worst KL of what is held, and of ancestral sampling, orders 1 and 3."""
    rows, calls, orders = results("paper_poisson_midpoint")["rows"], (25, 50, 80), (1, 3)

    def cells(**own: Any) -> list[str]:
        of = ([short(only(rows, data="gaussian", order=n, calls=c, **own)["kl"]) for c in calls] for n in orders)
        return [", ".join(line) for line in of]

    lines = [["ancestral", *cells(sampler="ancestral")]]
    for base, k in itertools.product(("denoiser", "score"), (4, 16, 40)):
        note = " (the default)" if (base, k) == ("denoiser", 16) else ""
        lines.append([f"{base} held, K = {k}{note}", *cells(base=base, spacing="uniform", K=k)])
    return table(["", *(f"n = {n}: {', '.join(map(str, calls))} calls" for n in orders)], lines)


def paper_poisson_mixtures() -> str:
    """Sliced Wasserstein distance over the floor, order 1."""
    rows = [row for row in results("paper_poisson_midpoint")["rows"] if "ratio" in row and row["order"] == 1]
    data = ("8 unequal modes", "25-mode grid")
    shown = {"poisson_midpoint": "Poisson midpoint, denoiser held, K = 16"}
    shown |= {"poisson_midpoint, score": "Poisson midpoint, score held, K = 16"}
    lines = []
    for name in dict.fromkeys(row["sampler"] for row in rows):
        own = [row for row in rows if row["sampler"] == name]
        for calls in ((50, 80), (1000,)):
            if only_calls := [c for c in calls if any(row["calls"] == c for row in own)]:
                label = shown.get(name, SHOWN.get(name, name)) + (", 1,000 calls" if calls == (1000,) else "")
                lines.append(
                    [
                        label,
                        *(", ".join(f"{only(own, data=d, calls=c)['ratio']:.2f}" for c in only_calls) for d in data),
                    ]
                )
    return table(["", *(f"{d}: 50, 80 calls" for d in data)], lines)


def paper_poisson_digits() -> str:
    """Squared Frechet distance of pixels, with jackknife errors."""
    floor, *rows = results("paper_poisson_digits")["rows"]
    lines = [[f"`{row['sampler']}`", row["calls"], error(row["distance"], row["error"], 2)] for row in rows]
    return table(["", "calls", "distance"], [*lines, ["training pictures", "", f"{floor['distance']:.2f}"]])


def paper_mixing() -> str:
    """Spectral gap, and the B at which the KL from the prior is 1e-4."""
    rows = [row for row in results("paper_mixing")["rows"] if "process" in row]
    shown = {"critical, n = 3": "critical, n = 3 (TOLD++)", "CLD": "CLD (its own time)"}
    lines = (
        [shown.get(r["process"], r["process"]), f"{r['gap']:.2f}", f"{r['mixed_1e-4']:.2f}", f"{r['relative']:.1f}"]
        for r in rows
    )
    return table(["", "spectral gap", "B at KL 1e-4", "over B(sigma_eff = 1)"], lines)


def paper_told_densities() -> str:
    """KL of the position from the prior, and total variation."""
    rows, times = results("paper_told_densities")["rows"], (1.0, 2.0, 3.0, 4.0)
    cells = (
        [m, *(f"{r['kl']:.3g} ({r['variation']:.3f})" for r in (only(rows, model=m, t=t) for t in times))]
        for m in dict.fromkeys(row["model"] for row in rows)
    )
    return table(["", *(f"t = {t:g}" for t in times)], cells)


def told_readings() -> str:
    """Table I of TOLD++ with the network as score: both readings of algorithm 1, paired by seed."""
    kinds, lines = ("1,000", "2,000"), []
    published = results("swissroll_told_literal")["paper"]
    lines.append(
        [
            "published, 1,000 and 5,000",
            *(", ".join(f"{v:.3f}" for v in published[m].values()) for m in ("TOLD", "TOLD++")),
        ]
    )
    theirs, ours = (list(published[m].values()) for m in ("TOLD", "TOLD++"))
    lines[0].append(", ".join(f"{b - a:+.2f}" for a, b in zip(theirs, ours, strict=True)))
    for reading in ("literal", "block"):
        data = results(f"swissroll_told_{reading}")
        of = {
            m: [np.array(only(data["rows"], model=m, kind=k, start="prior")["values"]) for k in kinds]
            for m in published
        }
        gaps = [b - a for a, b in zip(of["TOLD"], of["TOLD++"], strict=True)]
        cells = [", ".join(f"{v.mean():.3f}" for v in of[m]) for m in ("TOLD", "TOLD++")]
        spread = ", ".join(f"{g.mean():+.3f} ({g.std(ddof=1) / np.sqrt(len(g)):.3f})" for g in gaps)
        lines.append([f"{reading}, 1,000 and 2,000 ({len(gaps[0])} seeds)", *cells, spread])
    for kind in ("exact", "linear"):
        both = [only(data["rows"], model=m, kind=kind, start="prior")["values"][0] for m in ("TOLD", "TOLD++")]
        lines.append([f"{kind} score, no network", *(f"{v:.3f}" for v in both), f"{both[1] - both[0]:+.3f}"])
    return table(["", "TOLD", "TOLD++", "difference"], lines)


def paper_psld_samplers() -> str:
    """Over Euler-Maruyama's distance at 50 calls, beside the published FID over its own."""
    rows, calls = results("paper_psld_samplers")["rows"], (50, 100, 200)
    unit = only(rows, sampler="euler_maruyama", calls=50)
    shown = {
        "euler_maruyama": "Euler-Maruyama",
        "sscs": "SSCS",
        "gaussian_fitted, log": "`gaussian_fitted`, grid `log`",
    }
    lines = []
    for name in dict.fromkeys(row["sampler"] for row in rows):
        own = [only(rows, sampler=name, calls=c) for c in calls]
        values = ", ".join(f"{row['lam']:.2f}" for row in own if "lam" in row)
        label = shown.get(name, f"{name}, published lambda_s" if name in ("ROBA", "RBAO", "ROBAB") else name)
        line = [label + (f" ({values})" if values else "")]
        for row in own:
            line += [
                f"{row['distance'] / unit['distance']:.2g}",
                f"{row['fid'] / unit['fid']:.2f}" if row["fid"] else "",
            ]
        lines.append(line)
    return table(["", *(cell for c in calls for cell in (f"{c} calls", "FID"))], lines)


def paper_sub_flows() -> str:
    """Worst KL of every order of the sub-flows."""
    rows = results("paper_sub_flows")["rows"]
    shown = {"BOH": "BOH (`lie_trotter_split`)", "lie_trotter": "O and H as one exact flow (`lie_trotter`)"}
    lines = (
        [
            shown.get(s, s),
            *(", ".join(short(only(rows, sequence=s, order=n, calls=c)["kl"]) for c in (50, 100)) for n in (2, 3, 4)),
        ]
        for s in dict.fromkeys(row["sequence"] for row in rows)
    )
    return table(["", *(f"n = {n}: 50, 100 calls" for n in (2, 3, 4))], lines)


def paper_cld_toys() -> str:
    """Sliced Wasserstein distance over the floor."""
    rows, calls = results("paper_cld_toys")["rows"], (20, 50, 100, 200)
    shown = {"euler_maruyama": "Euler-Maruyama", "sscs": "SSCS", "strang": "`strang`, score at the midpoint"}
    shown |= {"gaussian_fitted, log": "`gaussian_fitted`, grid `log`"}
    data = {"diamond9": "diamond", "swissroll5": "five rolls"}
    lines = (
        [label, *(", ".join(f"{only(rows, data=d, sampler=name, calls=c)['ratio']:.2f}" for c in calls) for d in data)]
        for name, label in shown.items()
    )
    return table(["", *data.values()], lines)


def paper_choices() -> str:
    """Held-out error and samples for each choice, mean and standard error over the seeds."""
    rows = results("paper_choices")["rows"]
    columns = list(itertools.product(("digits", "rolls"), ("error", "samples")))

    def cell(data: str, change: str, column: str) -> str:
        values = np.array(only(rows, data=data, change=change)[column])
        return f"{values.mean():.3g} ({values.std(ddof=1) / np.sqrt(len(values)):.1g})"

    changes = dict.fromkeys(row["change"] for row in rows)
    return table(["", *(f"{d}: {c}" for d, c in columns)], ([k, *(cell(d, k, c) for d, c in columns)] for k in changes))


# --- docs/inverse.md ------------------------------------------------------------------------------

INVERSE = {
    "proximal": "`proximal`",
    "dps": "`dps`",
    "pigdm": "`pigdm`",
    "moment_matching, 1": "`moment_matching`, 1 solver step",
    "moment_matching, 3": "`moment_matching`, 3",
    "moment_matching, 8": "`moment_matching`, 8",
}


def worst_kl(method: str, order: int, steps: int) -> float:
    """KL of the samples from the exact posterior, the worst of the operators."""
    rows = [row for row in results("inverse")["rows"] if row["problem"] == "gaussian"]
    return max(r["kl"] for r in rows if (r["method"], r["order"], r["steps"]) == (method, order, steps))


def inverse_gaussian() -> str:
    """KL at order 3 against steps, and at every order for 20 steps."""
    rows, steps = results("inverse")["rows"], (10, 20, 40, 80)
    lines = []
    for key, name in INVERSE.items():
        passes = only(rows, problem="gaussian", operator="inpaint", method=key, order=3, steps=20)["passes"]
        cells = [*(worst_kl(key, 3, s) for s in steps), *(worst_kl(key, n, 20) for n in (1, 2, 4))]
        lines.append([name, passes, *map(short, cells)])
    head = ["method", "passes at 20 steps", *(f"n = 3, {s} steps" for s in steps), *(f"n = {n}, 20" for n in (1, 2, 4))]
    return table(head, lines)


def inverse_mixture() -> str:
    """Sliced Wasserstein distance over the floor."""
    rows, shown = results("inverse")["rows"], [(3, 10), (3, 20), (3, 40), (1, 20), (2, 20), (4, 20)]
    of = functools.partial(only, rows, problem="mixture")
    lines = []
    for key, name in INVERSE.items():
        found = [of(method=key, order=n, steps=s) for n, s in shown]
        lines.append([name, *(error(row["distance"], row["error"], 1) for row in found)])
    return table(["method", *(f"n = {n}, {s} steps" for n, s in shown)], lines)


def inverse_seconds() -> str:
    """Processor time of the benchmark."""
    return f"{results('inverse')['processor_seconds']:,}"


# --- the program ----------------------------------------------------------------------------------


def fill(text: str, makers: dict[str, Callable[[], str]]) -> str:
    """`text` with every marked table and value made again."""

    def one(match: re.Match[str]) -> str:
        kind, name = match.groups()
        made = makers[name]()
        made = f"\n\n{made}\n\n" if kind == "table" else made
        return f"<!-- {kind}: {name} -->{made}<!-- end -->"

    return MARK.sub(one, text)


def main(check: bool) -> list[Path]:
    """Fills every page (or with `check` only compares) and returns the pages that differed."""
    makers = {name: value for name, value in globals().items() if callable(value) and not name.startswith("_")}
    changed = []
    for page in PAGES:
        old = page.read_text()
        new = fill(old, makers)
        if new != old:
            changed.append(page)
            if not check:
                page.write_text(new)
    return changed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a page differs from its results")
    only_check = parser.parse_args().check
    differ = main(only_check)
    for path in differ:
        print(f"{path.relative_to(ROOT)}: {'differs from its results' if only_check else 'filled'}")
    sys.exit(1 if only_check and differ else 0)
