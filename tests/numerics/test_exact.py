import numpy as np
import pytest
from reference import oracle

from hold_jax import kernels, sde
from hold_jax.numerics import exact


def correlated(order, rank):
    """A process whose auxiliary blocks start with a random covariance of this rank."""
    m = sde.hold(order=order)
    factor = np.round(4 * np.random.default_rng(order).standard_normal((order - 1, rank))) / 16  # squares are exact
    cov0 = np.pad(factor @ factor.T, ((1, 0), (1, 0)))
    return sde.LinearSDE(m.F, m.G, cov0, m.prior_cov, m.precision_inf, m.schedule, m.T)


MODELS = {
    **{f"hold{n}": sde.hold(order=n) for n in range(1, 7)},
    "told": sde.hold(damping="told"),
    "cld": sde.cld(),
    "psld": sde.psld(),
    "vp": sde.vp(),
    "ve": sde.ve(),
    **{f"correlated{n}": correlated(n, n - 1) for n in (3, 4, 5, 6)},
    "singular": correlated(5, 2),
}
BS = np.geomspace(1e-6, 10, 8)


@pytest.mark.parametrize("m", MODELS.values(), ids=MODELS)
def test_factors_to_float64_rounding(m):
    phi, noise = exact.transition(m.F, m.G, BS)
    _, marginal = exact.marginal(m.F, m.G, m.cov0, BS)
    for i, b in enumerate(BS):
        want_phi, want_noise = oracle.transition(m, b)
        _, want_marginal = oracle.marginal(m, b)
        # Phi(10) of a critical chain is 1e-7 of its largest value on the way: one ulp of F already moves it by 4e-12.
        assert oracle.row_error(phi[i], want_phi) < (1e-12 if b < 5 else 5e-11)
        assert oracle.row_error(noise[i], want_noise) < 1e-12
        assert oracle.row_error(marginal[i], want_marginal) < 1e-12


@pytest.mark.parametrize("m", MODELS.values(), ids=MODELS)
def test_one_b_equals_a_batch(m):
    # The batch is grown by the doublings its largest B needs; the smallest must not suffer.
    for i, b in enumerate(BS):
        for one, batch in zip(exact.transition(m.F, m.G, b), exact.transition(m.F, m.G, BS), strict=True):
            assert oracle.row_error(one, batch[i]) < 1e-12


@pytest.mark.parametrize("m", MODELS.values(), ids=MODELS)
def test_effective_noise_and_its_inverse(m):
    b = np.geomspace(1e-5, float(m.schedule.integral(0.0, m.T)), 7)
    got = exact.effective_noise(m.F, m.G, m.cov0, b)
    np.testing.assert_allclose(got, [oracle.effective_noise(m, x) for x in b], rtol=1e-11)
    np.testing.assert_allclose(exact.integral_of_noise(m.F, m.G, m.cov0, got), b, rtol=1e-11)


@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith(("correlated", "singular"))])
def test_a_correlated_start_is_tabulated(name):
    t = np.float32(MODELS[name].T) * np.array([1e-3, 0.1, 1], np.float32)
    got = kernels.marginal(MODELS[name], t).chol
    for chol, b in zip(np.asarray(got, np.float64), MODELS[name].schedule.integral(0.0, t), strict=True):
        assert oracle.row_error(chol, oracle.marginal(MODELS[name], float(b))[1]) < 1e-5


def test_zero_is_the_identity_and_no_noise():
    m = sde.hold(order=3)
    phi, chol = exact.transition(m.F, m.G, np.array(0.0))
    np.testing.assert_array_equal(phi, np.eye(3))
    np.testing.assert_array_equal(chol, 0)


def test_triangular_factor():
    rng = np.random.default_rng(0)
    for shape in ((4, 7, 3, 9), (3, 2), (2, 5, 5)):  # wide, fewer columns than rows, square
        m = rng.standard_normal(shape)
        factor = exact.triangular_factor(m)
        np.testing.assert_allclose(factor @ np.swapaxes(factor, -1, -2), m @ np.swapaxes(m, -1, -2), atol=1e-13)
        assert (np.triu(factor, 1) == 0).all() and (np.diagonal(factor, axis1=-2, axis2=-1) >= 0).all()


@pytest.mark.parametrize(
    "cov",
    [np.diag([0.0, 2.0, 3.0]), np.array([[2.0, 1.0], [1.0, 3.0]]), np.outer([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])],
    ids=["diagonal", "full", "rank one"],
)
def test_covariance_factor(cov):
    factor = exact.covariance_factor(cov)
    np.testing.assert_allclose(factor @ factor.T, cov, rtol=1e-13, atol=1e-13)
    assert factor.shape[1] == np.linalg.matrix_rank(cov)


def test_solve_lower_keeps_graded_entries():
    # Columns over 40 decades, as chol has at small B: each entry of the solution is right relatively.
    chol = np.array([[1e-20, 0, 0], [3e-10, 2e-10, 0], [1.0, 2.0, 3.0]])
    want = np.array([1e20, -1.5e20, 2e20 / 3])
    got = exact.solve_lower(chol, np.array([[1.0], [0.0], [0.0]]))[:, 0]
    np.testing.assert_allclose(got, want, rtol=1e-14)


def test_a_covariance_of_lower_rank_has_as_many_columns():
    rng = np.random.default_rng(0)
    for _ in range(1000):
        n = rng.integers(2, 7)
        factor = rng.standard_normal((n, rng.integers(1, n)))
        cov = factor @ factor.T
        got = exact.covariance_factor(cov)
        assert got.shape == factor.shape
        np.testing.assert_allclose(got @ got.T, cov, atol=1e-13 * np.abs(cov).max())
