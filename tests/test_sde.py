import dataclasses

import jax
import numpy as np
import pytest

from hold_jax import sde
from hold_jax.errors import UserError
from hold_jax.numerics import exact, schedules

Mutable = dataclasses.make_dataclass("Mutable", ["value"], bases=(schedules.Schedule,))  # not frozen: not hashable
STATIONARY = {
    **{f"hold{n}": sde.hold(order=n, L_inv=0.5, alpha=0.08) for n in range(1, 7)},
    "told": sde.hold(order=3, damping="told", L_inv=0.7),
    "own": sde.hold(order=4, gammas=(1.0, 0.3, 2.0), xi=1.7, L_inv=2.0),
    "vp": sde.vp(),
    "cld": sde.cld(mass=0.3),
    "psld": sde.psld(),
    "psld, no friction of the position": sde.psld(Gamma=0.0, nu=4.0),
}


@pytest.mark.parametrize("m", STATIONARY.values(), ids=STATIONARY)
def test_stationary_law_solves_the_lyapunov_equation(m):
    S = m.prior_cov
    size = np.abs(m.G @ m.G.T).max()
    np.testing.assert_allclose(m.F @ S + S @ m.F.T + m.G @ m.G.T, 0, atol=1e-14 * size)
    np.testing.assert_allclose(m.precision_inf @ S, np.eye(m.order), atol=1e-14)


@pytest.mark.parametrize("n", range(1, 7))
def test_critical_damping_has_one_eigenvalue(n):
    # det(x - F) = (x + omega)^n: compared by coefficients, since n-fold roots are ill-conditioned.
    m = sde.hold(order=n)
    omega = np.sqrt(2 * n - 3) if n > 1 else 1.0
    want = np.poly1d([1.0, omega]) ** n
    np.testing.assert_allclose(np.poly(m.F), want.coeffs, rtol=1e-12)


@pytest.mark.parametrize(
    ("n", "gammas", "xi"),
    [
        (1, (), 1.0),
        (2, (1.0,), 2.0),
        (3, (1.0, 2 * np.sqrt(2)), 3 * np.sqrt(3)),
        (4, (1.0, 2.0, 5.0), 4 * np.sqrt(5)),
        (6, (1.0, np.sqrt(20 / 7), np.sqrt(243 / 35), np.sqrt(9 * 32 / 15), np.sqrt(105)), 18.0),
    ],
)
def test_critical_damping_values(n, gammas, xi):
    got_gammas, got_xi = sde.critical_damping(n)
    np.testing.assert_allclose(got_gammas, gammas, rtol=1e-14)
    assert got_xi == pytest.approx(xi, rel=1e-14)


@pytest.mark.parametrize("n", range(1, 7))
def test_hold_matrices(n):
    gammas, xi = sde.critical_damping(n)
    m = sde.hold(order=n, L_inv=0.25, alpha=0.1)
    F, G, cov0 = np.zeros((n, n)), np.zeros((n, n)), np.zeros((n, n))
    for i in range(n - 1):
        F[i, i + 1], F[i + 1, i], cov0[i + 1, i + 1] = gammas[i], -gammas[i], 0.1 * 0.25
    F[-1, -1] -= xi
    G[-1, -1] = np.sqrt(2 * xi * 0.25)
    np.testing.assert_allclose(m.F, F, rtol=1e-14)
    np.testing.assert_allclose(m.G, G, rtol=1e-14)
    np.testing.assert_allclose(m.cov0, cov0, rtol=1e-14)
    np.testing.assert_allclose(m.prior_cov, 0.25 * np.eye(n), rtol=1e-14)


def test_told_matrices():
    # dq = p; dp = -q + gamma s; ds = -gamma p - xi s + sqrt(2 xi / L) dw (2404.12814; values from 2409.07697).
    m = sde.hold(order=3, damping="told", L_inv=0.5)
    root = np.sqrt(10)
    np.testing.assert_allclose(m.F, [[0, 1, 0], [-1, 0, root], [0, -root, -6]], rtol=1e-15)
    np.testing.assert_allclose(np.sort(np.linalg.eigvals(m.F).real), [-3, -2, -1], rtol=1e-12)
    np.testing.assert_allclose(m.G, np.diag([0, 0, np.sqrt(6.0)]), rtol=1e-15)


def test_published_matrices_of_first_and_second_order():
    vp, ve = sde.vp(), sde.ve(sigma_min=0.01, sigma_max=50.0)
    assert (vp.F, vp.G, vp.cov0, vp.prior_cov, vp.precision_inf) == (-0.5, 1, 0, 1, 1)
    assert (ve.F, ve.G, ve.cov0, ve.precision_inf) == (0, 1, 0, 0)
    assert ve.prior_cov.item() == pytest.approx(50.0**2 - 0.01**2, rel=1e-14)
    assert (vp.schedule.beta(0.0), vp.schedule.beta(1.0)) == pytest.approx((0.1, 20.0))

    cld = sde.cld()  # CIFAR-10 of 2112.07068: 1/M = 4, beta = 4, Gamma^2 = 4 M, v0 ~ N(0, 0.04 M)
    np.testing.assert_allclose(cld.F, [[0, 4], [-1, -4]])
    np.testing.assert_allclose(cld.G, [[0, 0], [0, np.sqrt(2)]])
    np.testing.assert_allclose(cld.cov0, np.diag([0, 0.01]))
    np.testing.assert_allclose(np.poly(cld.F), np.poly([-2, -2]))  # critical
    assert cld.schedule.beta(0.3) == 4.0

    psld = sde.psld()  # beta = 8, Gamma = 0.01, nu = 4.01, kappa = 0.04, 1/M = 4
    np.testing.assert_allclose(psld.F, [[-0.005, 2], [-0.5, -2.005]])
    np.testing.assert_allclose(psld.G, np.diag([0.1, np.sqrt(4.01 / 4)]))
    np.testing.assert_allclose(psld.cov0, np.diag([0, 0.01]))
    np.testing.assert_allclose(np.poly(psld.F), np.poly([-1.005, -1.005]), rtol=1e-12)  # critical


def test_rates_of_time():
    # CLD's CelebA-HQ runs (2112.07068, code): beta(t) = 0.1 + 6.9 t, B(t) = 0.1 t + 3.45 t^2; all else as for CIFAR-10.
    celeba, cifar = sde.cld(beta=(0.1, 6.9)), sde.cld()
    assert (celeba.schedule.beta(0.5), celeba.schedule.integral(0.0, 1.0)) == pytest.approx((3.55, 3.55), rel=1e-14)
    assert dataclasses.replace(celeba, schedule=cifar.schedule) == cifar
    # EDM's VE (2206.00364): sigma(t) = t, beta = 2 t; 80 data units at T = 80.
    edm = sde.ve(sigma_min=1e-9, sigma_max=80.0, beta=schedules.Linear(0.0, 2.0))
    assert edm.T == pytest.approx(80.0, rel=1e-14) and edm.t_min == pytest.approx(0.002, rel=1e-9)
    # The path in B does not depend on the rate: the end, an effective noise of 80, comes at the same B.
    fast, slow = sde.hold(2, beta=(0.5, 3.0)), sde.hold(2)
    assert fast.schedule.integral(0.0, fast.T) == pytest.approx(slow.T, rel=1e-12)
    assert sde.psld(beta=8) == sde.psld(beta=schedules.Constant(8)) == sde.psld()


@pytest.mark.parametrize("n", range(1, 7))
@pytest.mark.parametrize("beta", [1.0, 3.0])
def test_default_times_span_the_noise_from_0_002_to_80(n, beta):
    m = sde.hold(order=n, beta=beta)
    ends = exact.effective_noise(m.F, m.G, m.cov0, m.schedule.integral(0.0, np.array([m.t_min, m.T])))
    np.testing.assert_allclose(ends, [0.002, 80.0], rtol=1e-9)


@pytest.mark.parametrize("n", [1, 3])
def test_the_noise_at_the_end_can_be_chosen(n):
    m = sde.hold(n, sigma_max=320.0)
    end = exact.effective_noise(m.F, m.G, m.cov0, np.array([m.schedule.integral(0.0, m.T)]))
    assert float(end[0]) == pytest.approx(320, rel=1e-6)
    with pytest.raises(UserError, match=r"`sigma_max` is 320\.0; it must be None with T"):
        sde.hold(n, sigma_max=320.0, T=5.0)


def test_equal_by_value():
    a, b = sde.hold(order=3, L_inv=0.5), sde.hold(order=3, L_inv=0.5)
    assert a is not b and a == b and hash(a) == hash(b)
    others = [
        sde.hold(order=3, L_inv=0.6),
        sde.hold(order=3, alpha=0.04),
        sde.hold(order=3, beta=2.0, T=a.T),
        sde.hold(order=3, T=2.0),
        sde.hold(order=2),
        sde.hold(damping="told", T=a.T),
    ]
    assert len({a, b, *others}) == 1 + len(others)
    assert a != "hold"


def test_static_under_jit_without_retracing():
    traces = []

    def shifted(m, x):
        traces.append(m)
        return x + m.T

    jitted = jax.jit(shifted, static_argnums=0)
    assert jitted(sde.cld(T=2.0), 1.0) == jitted(sde.cld(T=2.0), 1.0) == 3.0
    assert len(traces) == 1


def test_immutable():
    m = sde.vp()
    with pytest.raises(ValueError, match=r"read-only"):
        m.F[0, 0] = 1.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        m.T = 2.0


def test_numbers_of_numpy_are_numbers():
    for number in (np.float32, np.float64):
        want = sde.hold(2, alpha=float(number(0.08)), beta=float(number(0.3)))
        assert sde.hold(np.int64(2), alpha=number(0.08), beta=number(0.3)) == want
        assert sde.cld(mass=number(0.3)) == sde.cld(mass=float(number(0.3)))
        assert sde.vp(beta=(number(0.1), number(19.9))) == sde.vp(beta=(float(number(0.1)), float(number(19.9))))
        own = {"gammas": (1.0,), "xi": float(number(2.1))}
        assert sde.hold(2, gammas=np.ones(1, number), xi=number(2.1)) == sde.hold(2, **own)
    assert sde.vp(beta=np.int64(4)) == sde.vp(beta=4)


BAD = [
    (sde.hold, {"order": 0}, "`order` is 0; .* whole number from 1 to 6"),
    (sde.hold, {"order": 2.5}, "`order` is 2.5"),
    (sde.hold, {"order": 12}, "`order` is 12; .* 1 to 6"),
    (sde.hold, {"order": True}, "`order` is True"),
    (sde.hold, {"order": "3"}, "`order` is '3'"),
    (sde.hold, {"L_inv": 0.0}, "`L_inv` is 0.0; it must be positive"),
    (sde.hold, {"L_inv": float("nan")}, "`L_inv` is nan"),
    (sde.hold, {"alpha": -0.1}, "`alpha` is -0.1"),
    (sde.hold, {"alpha": 0.0}, "`alpha` is 0.0"),
    (sde.hold, {"alpha": True}, "`alpha` is True"),
    (sde.hold, {"beta": float("inf")}, "`beta` is inf"),
    (sde.hold, {"T": 0.0}, "`T` is 0.0; it must be a positive number"),
    (sde.hold, {"T": -1.0}, "`T` is -1.0"),
    (sde.hold, {"T": float("nan")}, "`T` is nan"),
    (sde.hold, {"damping": "critcal"}, "`damping` is 'critcal' .did you mean 'critical'.*: critical, told"),
    (sde.hold, {"damping": "told", "order": 4}, "`order` is 4; .* 3 with damping"),
    (sde.hold, {"gammas": (1.0,), "xi": 2.0}, "`gammas` is .* 2 numbers for order 3"),
    (sde.hold, {"gammas": (1.0, -2.0), "xi": 2.0}, r"`gammas\[1\]` is -2.0"),
    (sde.hold, {"gammas": (1.0, 2.0)}, "`xi` is None; it must be given together with gammas"),
    (sde.hold, {"xi": 2.0}, "`gammas` is None; it must be given together with xi"),
    (sde.hold, {"damping": "told", "gammas": (1.0, 2.0), "xi": 2.0}, "`damping` is 'told'; it must be None with"),
    (sde.hold, {"beta": (1.0,)}, r"`beta` is \(1.0,\); it must be a pair"),
    (sde.hold, {"beta": (0.0, 1.0)}, "`beta` is .*a pair .beta_0 > 0"),
    (sde.hold, {"beta": (1.0, -1.0)}, "`beta` is .*beta_1 >= 0"),
    (sde.hold, {"beta": "ab"}, "`beta` is 'ab'; it must be a pair"),
    (sde.cld, {"beta": None}, "`beta` is None; it must be a number, a pair of numbers, or a Schedule"),
    (sde.hold, {"gammas": (1.0, 2.0), "xi": 0.0}, "`xi` is 0.0"),
    (sde.hold, {"gammas": 1.0, "xi": 1.0, "order": 2}, "`gammas` is 1.0; it must be 1 numbers for order 2"),
    (sde.hold, {"gammas": ("a", "b"), "xi": 1.0}, r"`gammas\[0\]` is 'a'; it must be positive"),
    (sde.hold, {"gammas": "12", "xi": 1.0}, "`gammas` is '12'; it must be 2 numbers for order 3"),
    (sde.hold, {"beta": True}, "`beta` is True; it must be positive"),
    (schedules.Constant, {"value": -1.0}, "`value` is -1.0; it must be positive"),
    (schedules.Constant, {"value": "1"}, "`value` is '1'; it must be a number, positive"),
    (
        jax.jit(schedules.Constant),
        {"value": 1.0},
        "`value` is JitTracer.*; it must be a number, not traced by JAX",
    ),
    (sde.vp, {"beta": 0.0}, "`beta` is 0.0"),
    (sde.vp, {"T": 0.0}, "`T` is 0.0"),
    (sde.ve, {"sigma_min": 1.0, "sigma_max": 1.0}, "`sigma_max` is 1.0; it must be above sigma_min = 1.0"),
    (sde.cld, {"mass": 0.0}, "`mass` is 0.0"),
    (sde.cld, {"gamma": -1.0}, "`gamma` is -1.0"),
    (sde.psld, {"Gamma": -0.1}, "`Gamma` is -0.1"),
    (sde.psld, {"Gamma": float("nan")}, "`Gamma` is nan"),
    (sde.psld, {"kappa": 0.0}, "`kappa` is 0.0"),
]


@pytest.mark.parametrize(("constructor", "arguments", "message"), BAD)
def test_bad_input_is_named(constructor, arguments, message):
    with pytest.raises(ValueError, match=message):
        constructor(**arguments)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("G", np.eye(3), r"`G` is \(3, 3\); it must be of shape \(2, 2\)"),
        ("cov0", np.eye(2), "`cov0` is .* zero in row and column 1"),
        ("cov0", np.diag([0.0, -1.0]), "`cov0` is .* positive semi-definite"),
        ("prior_cov", [[1.0, 0.5], [0.0, 1.0]], "`prior_cov` is .* symmetric and positive definite"),
        ("prior_cov", np.diag([1.0, 0.0]), "`prior_cov` is .* symmetric and positive definite"),
        ("prior_cov", np.diag([1.0, np.nan]), "`prior_cov` is .* of finite real numbers"),
        ("F", [[np.inf, 1.0], [-1.0, -2.0]], "`F` is .* of finite real numbers"),
        ("F", [[1j, 1.0], [-1.0, -2.0]], "`F` is .* of finite real numbers"),
        ("F", -np.eye(2), "`G` is .* a diffusion that reaches the data through the drift F"),
        ("F", 1.0, r"`F` is \(\); it must be of shape \(1, 1\)"),
        ("G", np.zeros((2, 2)), "`G` is .* a diffusion that reaches the data"),
        ("schedule", schedules.Linear(-1.0, 0.0), "`schedule` is .* a positive integral over"),
        ("F", [[1.0, 2.0], [3.0]], "`F` is no matrix: its rows differ in length"),
        (
            "precision_inf",
            [[1.0, 2.0], [0.0, 4.0]],
            "`precision_inf` is .* symmetric and positive semi-d",
        ),
        ("T", True, "`T` is True; it must be a positive number"),
        ("T", "1", "`T` is '1'; it must be a positive number"),
        ("schedule", 1.0, "`schedule` is 1.0; it must be a hashable `numerics.schedules.Schedule`, such as Constant"),
        ("schedule", Mutable(1.0), "`schedule` is Mutable.*; it must be a hashable"),
    ],
)
def test_matrices_of_your_own_are_checked(field, value, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(sde.cld(), **{field: value})


def test_order_by_position():
    assert sde.hold(4) == sde.hold(order=4)
