import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
from reference import oracle
from samplers.suite import hold, network, stepped

from hold_jax import sde
from hold_jax.samplers import Conjugate, ddim

RNG = np.random.default_rng(0)
SDES = {"vp": sde.vp(), "hold1": hold(1), "hold3": hold(3), "psld": sde.psld(), "cld": sde.cld()}


def marginal(m, t):
    """A (n, 1) and L (n, n), from 80 digits."""
    phi, chol = (v.astype(np.float64) for v in oracle.marginal(m, float(oracle.integral(m, t))))
    return phi[:, :1], chol


def written_out(m, lam, form, times, u):
    """z = A u with A = exp(int lambda M - F beta): one Euler step of z' = lambda A M A^-1 z + Phi' eps, eps held."""
    t, end = times
    a, chol = marginal(m, t)
    inverse = oracle.inverse_lower(chol).astype(np.float64)
    d = (inverse[-1:] @ u - network(u, t)) / (inverse @ a)[-1]
    eps = inverse @ (u - a * d)

    n = m.order
    matrix = lam * (np.ones((n, n)) if form == "ones" else np.eye(n))

    def conjugate(t):
        return scipy.linalg.expm(matrix * t - m.F * float(oracle.integral(m, t)))

    def rate(t, _):
        _, chol = marginal(m, t)
        driven = m.G @ m.G.T @ np.linalg.inv(chol).T
        return (0.5 * float(m.schedule.beta(t)) * conjugate(t) @ driven).ravel()

    phi = scipy.integrate.solve_ivp(rate, (t, end), np.zeros(n * n), rtol=1e-9, atol=1e-12).y[:, -1].reshape(n, n)
    # A B A^-1 z = A B u.
    z = conjugate(t) @ u + (end - t) * conjugate(t) @ matrix @ u + phi @ eps
    return np.linalg.solve(conjugate(end), z)


@pytest.mark.parametrize(
    ("name", "lam", "form"),
    [(name, lam, "identity") for name in SDES for lam in (0.0, 0.7)]
    + [(name, 0.7, "ones") for name in ("hold1", "hold3", "psld", "cld")],
)
def test_a_step_is_the_method_written_out(name, lam, form):
    m = SDES[name]
    times = m.schedule.time(np.array([1.3, 0.9]))
    u = RNG.standard_normal((3, m.order, 2))
    got = stepped(Conjugate(lam=lam, form=form), m, network, u, times)[1]
    np.testing.assert_allclose(got, written_out(m, lam, form, times, u), rtol=1e-6, atol=1e-7)
    # The other way it is the same formula.
    got = stepped(Conjugate(lam=lam, form=form), m, network, u, times[::-1])[1]
    np.testing.assert_allclose(got, written_out(m, lam, form, times[::-1], u), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["vp", "hold1"])
def test_at_n_1_and_lambda_0_it_is_ddim(name):
    m = SDES[name]
    times = m.schedule.time(np.array([2.0, 1.0, 0.3, 0.01]))
    u = RNG.standard_normal((3, 1, 2))
    both = [stepped(sampler, m, network, u, times) for sampler in (Conjugate(), ddim())]
    np.testing.assert_allclose(*both, rtol=1e-8)


def test_bad_options_are_named():
    with pytest.raises(ValueError, match="`lam` is inf; it must be finite"):
        Conjugate(lam=float("inf"))
    with pytest.raises(ValueError, match="`form` is 'II'; it must be one of"):
        Conjugate(form="II")
    with pytest.raises(ValueError, match="`form` is 'ones'; it must be 'identity' for an SDE whose rate"):
        Conjugate(lam=0.1, form="ones").coefficients(sde.cld(beta=(0.1, 6.9)), np.array([0.5, 0.4]))
