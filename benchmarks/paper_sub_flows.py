"""The order of HOLD's sub-flows, which no source that could be read states, by the exact oracle.

python -m benchmarks.paper_sub_flows --output=docs/results

Friction and noise (O), couplings one by one (H) and the score's kick (B), one call a step, in every order, and
palindromes; data N(0, std^2), grid `log`, 50 and 100 calls, orders 2 to 4: the worst KL of std 0.5, 0.1 and 0.02.
`lie_trotter`, which runs O and H as one exact flow, beside them. A minute.
"""

import itertools

from benchmarks import gaussian, report
from hold_jax import samplers, sde
from hold_jax.samplers import Splitting, grids

ORDERS, STDS, CALLS = (2, 3, 4), (0.5, 0.1, 0.02), (50, 100)
SEQUENCES = (*("".join(s) for s in itertools.permutations("OHB")), "HBHO", "OBHO", "HOBOH", "OHBHO")


def main() -> None:
    """Prints a table; writes JSON."""
    args = report.parser(__doc__).parse_args()
    suite = {s: Splitting(sequence=s, pieces=True) for s in SEQUENCES} | {"lie_trotter": samplers.LieTrotter()}
    rows: report.Rows = []
    print(f"{'worst KL':<14}" + "".join(f"{f'n={n}, {c}':>12}" for n in ORDERS for c in CALLS))
    for name, sampler in suite.items():
        for n, calls in itertools.product(ORDERS, CALLS):
            m = sde.hold(order=n)
            kl = max(gaussian.kl(m, sampler, grids.log(m, m.t_min, calls - 1), std) for std in STDS)
            rows.append({"sequence": name, "order": n, "calls": calls, "kl": kl})
        print(f"{name:<14}" + "".join(f"{row['kl']:>12.1e}" for row in rows[-len(ORDERS) * len(CALLS) :]), flush=True)
    at = {name: report.value(rows, "kl", sequence=name, order=3, calls=100) for name in suite}
    best = min(at, key=at.get)
    six = [at[s] for s in SEQUENCES[:6]]
    sentence = (
        f"At order 3 and 100 calls the six orders of the three have a KL of {min(six):.1e} to {max(six):.1e}, the "
        f"best of all is {best} with {at[best]:.1e}; one exact flow for O and H has {at['lie_trotter']:.1e}."
    )

    report.finish(args, "paper_sub_flows", rows, sentence)


if __name__ == "__main__":
    main()
