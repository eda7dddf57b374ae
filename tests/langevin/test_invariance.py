"""The dynamics in continuous time: the target is invariant, and damping is critical."""

import numpy as np
import pytest

from hold_jax.langevin import Dynamics

ORDERS = (1, 2, 3, 4)
CURVATURES = np.array([0.3, 1.0, 4.0])


@pytest.mark.parametrize("order", range(1, 7))
def test_the_joint_density_is_invariant(order):
    """The continuous dynamics keeps exp(-U(z) - |v|^2 / 2): for U = c z^2 / 2, diag(1/c, 1, ..., 1) solves Lyapunov's
    equation; for any U, div J grad H = 0, which the antisymmetry of the couplings gives."""
    dynamics = Dynamics(order)
    for curvature in CURVATURES:
        drift = dynamics.linear - np.outer(dynamics.kick, curvature * np.eye(order)[0])
        law = np.diag([1 / curvature, *np.ones(order - 1)])
        change = drift @ law + law @ drift.T + dynamics.noise @ dynamics.noise.T
        np.testing.assert_allclose(change, 0, atol=1e-12)


@pytest.mark.parametrize("order", range(1, 7))
def test_fokker_planck_of_a_quartic(order):
    """The stationary Fokker-Planck equation for U = z^4 / 4 - z^2, nothing Gaussian, written out at random points:
    div(b p - D grad p) = p (div b + b . l - tr D (l l' + grad l)), l = grad log p = -(U', v)."""
    dynamics, rng = Dynamics(order), np.random.default_rng(order)
    diffusion = dynamics.noise @ dynamics.noise.T / 2
    for u in rng.normal(size=(5, order)):
        pull, slope = u[0] ** 3 - 2 * u[0], 3 * u[0] ** 2 - 2
        drift = dynamics.linear @ u - dynamics.kick * pull
        divergence = np.trace(dynamics.linear) - dynamics.kick[0] * slope
        score, hessian = -np.array([pull, *u[1:]]), -np.diag([slope, *np.ones(order - 1)])
        left = divergence + drift @ score - np.trace(diffusion @ (np.outer(score, score) + hessian))
        assert abs(left) < 1e-11 * (1 + abs(divergence) + score @ score)


def test_critical_damping_has_one_eigenvalue():
    """At unit curvature the whole dynamics is HOLD++'s: one eigenvalue, n times."""
    for order in ORDERS:
        dynamics = Dynamics(order)
        drift = dynamics.linear - np.outer(dynamics.kick, np.eye(order)[0])
        omega = np.sqrt(2 * order - 3) if order > 1 else 1.0
        np.testing.assert_allclose(np.poly(drift), np.poly(-omega * np.ones(order)), rtol=1e-10, atol=1e-10)
