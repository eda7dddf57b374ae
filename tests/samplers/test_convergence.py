"""Orders of convergence and KL against the truth, by exact propagation: no Monte Carlo anywhere."""

import functools

import numpy as np
import pytest
from reference import oracle
from reference.propagate import Law, gaussian_row, prior, propagate
from samplers.suite import MEAN, STD, errors, fitted_orders, hold, kl_of_x, log_times

from hold_jax import samplers, sde
from hold_jax.samplers import (
    Ancestral,
    EulerMaruyama,
    Heun,
    LieTrotter,
    PoissonMidpoint,
    PredictorCorrector,
    Strang,
    grids,
)
from hold_jax.samplers.whitened import GAUGES

every_order = pytest.mark.parametrize("n", [1, 2, 3, 4])

SPLITTINGS = {
    "euler_maruyama": EulerMaruyama(),
    "lie_trotter": LieTrotter(),
    "lie_trotter_split": samplers.lie_trotter_split(),
    "splitting": samplers.Splitting(),
    "strang": Strang(),
    "sscs": Strang(score_time="start"),
    "poisson_midpoint (score)": PoissonMidpoint(K=4, base="score"),
    **{scheme: samplers.ReducedSplitting(scheme=scheme) for scheme in ("ROBA", "RBAO", "ROBAB")},
}


@pytest.mark.parametrize("name", SPLITTINGS)
@every_order
def test_splittings_have_weak_order_one(n, name):
    if n == 1 and name.startswith("R"):
        pytest.skip("reduced splittings need a momentum: test_splitting")
    # Strang too: its score part is an explicit Euler step, whose error h/2 S'S no symmetry of the splitting removes.
    orders, _ = fitted_orders(SPLITTINGS[name], hold(n), lambda m, num: np.linspace(2.0, 0.5, num + 1), first=32)
    assert orders == pytest.approx([1, 1], abs=0.05)


# Sampler, order of the covariance, and how its steps begin. "refined" (`log_times`): a plain first step has local error
# h^2 and leaves an error of order 2 (dpmpp_3m) or, corrected, 3 (unipc), however high the order of the rest.
# Churn bounds the order by 2: the weights see the noise of a step only in the value at its end.
DATA_PREDICTION = {
    "ancestral": (Ancestral(), 1, "plain"),
    "conjugate": (samplers.Conjugate(), 1, "plain"),
    **{f"ddim_{g}": (samplers.ddim(gauge=g), 1, "plain") for g in GAUGES},
    **{f"ddim_{g}_churn": (samplers.ddim(gauge=g, churn=1.0), 1, "plain") for g in GAUGES},
    **{f"heun_{g}": (Heun(gauge=g), 2, "plain") for g in ("cholesky", "signal")},
    "heun_churn": (Heun(s_churn=2.0), 2, "plain"),
    "dpmpp_2m": (samplers.dpmpp_2m(gauge="cholesky"), 2, "plain"),
    "dpmpp_2m_churn": (samplers.dpmpp_2m(gauge="cholesky", churn=1.0), 2, "plain"),
    "dpmpp_3m_plain_start": (samplers.dpmpp_3m(gauge="cholesky"), 2, "plain"),
    "dpmpp_3m": (samplers.dpmpp_3m(gauge="cholesky"), 3, "refined"),
    "unipc_2": (samplers.unipc(order=2, gauge="cholesky"), 3, "plain"),
    "unipc_3_plain_start": (samplers.unipc(gauge="cholesky"), 3, "plain"),
    "unipc_3": (samplers.unipc(gauge="cholesky"), 4, "refined"),
    "unipc_3_churn": (samplers.unipc(gauge="cholesky", churn=1.0), 2, "plain"),
    "gaussian_fitted_2": (samplers.gaussian_fitted(order=2, churn=0.0, gauge="cholesky"), 3, "plain"),
    "gaussian_fitted_3_churn": (samplers.gaussian_fitted(gauge="cholesky"), 2, "plain"),
}
# Two orders near each other, or four, or an order that shows late: more steps tell.
SLOW = (
    "conjugate",
    "dpmpp_3m_plain_start",
    "unipc_3_plain_start",
    "unipc_3",
    "unipc_3_churn",
    "gaussian_fitted_3_churn",
)


@pytest.mark.parametrize("name", DATA_PREDICTION)
@every_order
def test_weak_order_of_data_prediction(n, name):
    # The signal gauge at n > 1 is n = 1, which `test_multistep` shows.
    sampler, order, start = DATA_PREDICTION[name]
    if n == 1 and "probability_flow" in name:
        pytest.skip("all gauges are one at n = 1: test_multistep")
    clock = lambda m, num: log_times(m, 3.0, 0.3, num, start == "refined")  # noqa: E731
    orders, mean_error = fitted_orders(sampler, hold(n), clock, first=32 if name in SLOW else 16)
    assert orders[0] == pytest.approx(order, abs=0.2)
    # On the mean path D is constant, and a constant is integrated exactly by all of them.
    assert mean_error < 1e-10


@pytest.mark.parametrize(
    ("name", "sampler"),
    [
        ("psld", s)
        for s in (
            EulerMaruyama(),
            LieTrotter(),
            Strang(),
            samplers.Splitting(),
            samplers.ReducedSplitting(),
            Ancestral(),
        )
    ]
    + [("psld", samplers.unipc()), ("psld", PoissonMidpoint(K=4)), ("psld", PredictorCorrector(snr=0.01))]
    + [("psld", samplers.Conjugate(lam=0.2)), ("psld", samplers.Conjugate(lam=0.2, form="ones"))]
    + [(k, s) for k in ("vp", "ve", "cld", "told") for s in (Strang(), samplers.unipc())],
)
def test_every_sde_converges(name, sampler):
    # PSLD drives both blocks, VE has no stationary law, VP and VE have rates that are not constant.
    m = {"psld": sde.psld(), "vp": sde.vp(), "ve": sde.ve(), "cld": sde.cld(), "told": sde.hold(damping="told")}[name]
    first, last = (float(m.schedule.time(b)) for b in (2.0, 0.5))
    coarse, fine = (errors(sampler, m, np.linspace(first, last, num + 1))[0] for num in (128, 256))
    assert fine < 0.06
    assert coarse / fine > 2**0.8


def test_splittings_are_exact_where_the_score_is_that_of_the_stationary_law():
    # Data N(0, 1/L) is stationary for q alone; at late times for all blocks: S vanishes and A is exact.
    m = hold(3)
    std = float(np.sqrt(0.5))
    times = np.linspace(15.0, 14.0, 3)
    for sampler in (LieTrotter(), Strang()):
        law = propagate(sampler, m, times, mean=0.0, std=std, start=prior(m))
        np.testing.assert_allclose(law.cov, m.prior_cov, atol=1e-9)
    law = propagate(EulerMaruyama(), m, times, mean=0.0, std=std, start=prior(m))
    assert np.abs(law.cov - m.prior_cov).max() > 0.1


def test_an_affine_step_by_hand():
    # One Euler-Maruyama step of a VP from N(a, v), written out: x + (x/2 + score) h + sqrt(h) xi.
    m = sde.vp(beta=2.0)
    a, v = 0.4, 1.3
    law = propagate(EulerMaruyama(), m, [0.8, 0.7], mean=MEAN, std=STD, start=Law(np.array([a]), np.array([[v]])))
    decay = np.exp(-0.8)
    total = STD**2 * decay**2 + 1 - decay**2
    h = 0.2
    slope = 1 + h / 2 - h / total
    assert law.cov.item() == pytest.approx(slope**2 * v + h, rel=1e-12)
    assert law.mean.item() == pytest.approx(slope * a + h * decay * MEAN / total, rel=1e-12)


# --- Whole trajectories, from the prior at T to t_min, with the final denoising -------------------------


@every_order
def test_the_eps_fn_of_small_noises_is_exact(n):
    # Whole trajectories take the exact eps_fn from the package's float64 factors; here against 80 digits.
    m = hold(n)
    times = grids.times_of(m, "log", m.t_min, 6)
    for std in (0.5, 0.02):
        got = gaussian_row(m, times, std)
        want = [np.stack(v) for v in zip(*(oracle.gaussian_row(m, t, std, True) for t in times), strict=True)]
        for g, w in zip(got, want, strict=True):
            assert oracle.row_error(g, w) < 1e-11


@functools.cache
def kl(sampler, n, grid, num_steps, std):
    m = hold(n)
    return kl_of_x(sampler, m, _times(n, grid, num_steps), std)


@functools.cache
def _times(n, grid, num_steps):
    return grids.times_of(hold(n), grid, hold(n).t_min, num_steps)


@pytest.mark.parametrize(
    "sampler",
    [samplers.gaussian_fitted(), samplers.gaussian_fitted(churn=0.0), samplers.unipc()],
    ids=["gaussian_fitted", "gaussian_fitted_churnless", "unipc"],
)
@pytest.mark.parametrize("std", [0.5, 0.1, 0.02])
@every_order
def test_the_bar(n, std, sampler):
    # 20 calls, 19 steps and the denoising, reach 1e-3 nats; at every budget 1/10 of Euler-Maruyama's on its best grid.
    assert kl(sampler, n, "log", 19, std) <= 1e-3
    for calls in (10, 20, 50):
        best = min(kl(EulerMaruyama(), n, grid, calls - 1, std) for grid in samplers.GRIDS)
        assert kl(sampler, n, "log", calls - 1, std) <= best / 10
