"""Linear SDEs on a state of n blocks: VP, VE, CLD, PSLD and high-order Langevin dynamics (HOLD).

    du = beta(t) F u dt + sqrt(beta(t)) G dw,    u in R^{n x d},  F, G in R^{n x n}

F and G act on the block index. Block 1 is the data q, blocks 2..n are auxiliary (velocity, acceleration, ...).
The rest of the package reads only the fields of `LinearSDE`, so a new SDE is one more constructor.
"""

import dataclasses
import functools
import math
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np

from hold_jax.errors import UserError, require, require_choice, require_given, require_number, require_whole
from hold_jax.numerics import exact
from hold_jax.numerics.schedules import Constant, Geometric, Linear, Schedule

__all__ = ["LinearSDE", "Rate", "cld", "critical_damping", "hold", "psld", "require_sde", "told_damping", "ve", "vp"]

# Effective noise at the default end and start times, in data units (EDM, 2206.00364, table 1).
SIGMA_MAX = 80.0
SIGMA_MIN = 0.002
# Above order 6, exp(F B) of critical damping at B = 10 is too ill-conditioned for float64.
MAX_ORDER = 6

Rate = float | Sequence[float] | Schedule
"""The rate of time beta(t): a number, a pair (beta_0, beta_1) for beta_0 + beta_1 t, or a `Schedule`."""


@dataclasses.dataclass(frozen=True, eq=False)
class LinearSDE:
    """The matrices, the rate of time and the end time of a linear SDE.

    Immutable and hashable by value: a static argument under `jax.jit`.

    Attributes:
      F: (n, n) float64 drift.
      G: (n, n) float64 diffusion.
      cov0: (n, n) covariance of u(0) given the data: zero in row and column 1, the covariance of the auxiliary
        blocks at the start in the others. It may be correlated or singular.
      prior_cov: (n, n) covariance of the Gaussian that sampling starts from at t = T, positive definite.
      precision_inf: (n, n) inverse of the stationary covariance; zero for an SDE without a stationary law (VE).
      schedule: beta(t) and its integral.
      T: end time, positive.

    Raises:
      UserError: for matrices of different shapes or of values that are not finite, a matrix that is not a covariance, a
        schedule that is none, cannot be hashed or does not go forward, a T that is not positive, or noise that does not
        reach the data until T.
    """

    F: np.ndarray
    G: np.ndarray
    cov0: np.ndarray
    prior_cov: np.ndarray
    precision_inf: np.ndarray
    schedule: Schedule
    T: float

    def __post_init__(self):
        n = len(np.atleast_1d(_array("F", self.F)))
        for name in ("F", "G", "cov0", "prior_cov", "precision_inf"):
            value = _array(name, getattr(self, name))
            require(n > 0 and value.shape == (n, n), name, value.shape, f"of shape {(max(n, 1),) * 2}")
            real = value.dtype.kind in "biuf" and bool(np.isfinite(value).all())
            require(real, name, value.tolist(), "of finite real numbers")
            value = value.astype(np.float64)
            value.setflags(write=False)
            object.__setattr__(self, name, value)
        require(not self.cov0[0].any(), "cov0", self.cov0.tolist(), "zero in row and column 1, the data")
        require(_is_covariance(self.cov0), "cov0", self.cov0.tolist(), "symmetric and positive semi-definite")
        positive = _is_covariance(self.prior_cov) and np.linalg.matrix_rank(self.prior_cov) == n
        require(positive, "prior_cov", self.prior_cov.tolist(), "symmetric and positive definite")
        allowed = "symmetric and positive semi-definite, or zero"
        require(_is_covariance(self.precision_inf), "precision_inf", self.precision_inf.tolist(), allowed)
        has = all(hasattr(self.schedule, name) for name in ("beta", "integral", "time"))
        allowed = "a hashable `numerics.schedules.Schedule`, such as Constant(1.0) or a frozen dataclass of your own"
        require(has and type(self.schedule).__hash__ is not None, "schedule", self.schedule, allowed)
        number = (
            isinstance(self.T, numbers.Real) and not isinstance(self.T, bool) and math.isfinite(self.T) and self.T > 0
        )
        require(number, "T", self.T, "a positive number")
        passed = float(self.schedule.integral(0.0, self.T))
        require(math.isfinite(passed) and passed > 0, "schedule", self.schedule, "of a positive integral over [0, T]")
        with np.errstate(all="ignore"):
            noise = float(exact.effective_noise(self.F, self.G, self.cov0, passed))
        require(noise > SIGMA_MIN, "G", self.G.tolist(), "a diffusion that reaches the data through the drift F")

    @property
    def order(self) -> int:
        """The number of blocks n."""
        return self.F.shape[0]

    @functools.cached_property
    def t_min(self) -> float:
        """The time at which the effective noise is 0.002 data units: where losses begin and samplers stop."""
        return float(self.schedule.time(exact.integral_of_noise(self.F, self.G, self.cov0, SIGMA_MIN)))

    @functools.cached_property
    def _key(self) -> tuple:
        matrices = (self.F, self.G, self.cov0, self.prior_cov, self.precision_inf)
        return (*(m.tobytes() for m in matrices), self.schedule, self.T)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LinearSDE) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


def vp(*, beta: Rate = (0.1, 19.9), T: float = 1.0) -> LinearSDE:
    """The variance-preserving SDE, n = 1: dq = -1/2 beta q dt + sqrt(beta) dw (2011.13456, eq. 11).

    Args:
      beta: rate of time; by default beta(t) = 0.1 + 19.9 t, from beta_min = 0.1 to beta_max = 20 (eq. 32).
      T: end time.

    Raises:
      UserError: for an argument outside its range.
    """
    one = np.eye(1)
    return LinearSDE(-one / 2, one, 0 * one, one, one, _schedule(beta), T)


def ve(*, sigma_min: float = 0.01, sigma_max: float = 50.0, beta: Rate | None = None) -> LinearSDE:
    """The variance-exploding SDE, n = 1: dq = sqrt(beta) dw, beta = d sigma^2 / dt (2011.13456, eq. 9).

    Args:
      sigma_min: noise of the data at t = 0, in data units.
      sigma_max: noise at the end time, in data units.
      beta: rate of time; the SDE ends where sigma is sigma_max. None: the geometric
        sigma(t) = sigma_min (sigma_max / sigma_min)^t of the paper's eq. 30, which ends at T = 1.

    Raises:
      UserError: for an argument outside its range.
    """
    sigma_min, sigma_max = _positive(sigma_min=sigma_min, sigma_max=sigma_max)
    require(sigma_max > sigma_min, "sigma_max", sigma_max, f"above sigma_min = {sigma_min}")
    one = np.eye(1)
    total = sigma_max**2 - sigma_min**2
    schedule = Geometric(sigma_min, sigma_max) if beta is None else _schedule(beta)
    T = 1.0 if beta is None else float(schedule.time(total))
    return LinearSDE(0 * one, one, 0 * one, total * one, 0 * one, schedule, T)


def cld(*, mass: float = 0.25, beta: Rate = 4.0, gamma: float = 0.04, T: float = 1.0) -> LinearSDE:
    """Critically damped Langevin diffusion, n = 2 (2112.07068, eq. 5); the defaults are those of its CIFAR-10 runs.

        dq = v/M beta dt,    dv = (-q - Gamma v/M) beta dt + sqrt(2 Gamma beta) dw,    Gamma^2 = 4 M

    Args:
      mass: M; the stationary law of the velocity is N(0, M).
      beta: rate of time; CLD's CelebA-HQ runs have (0.1, 6.9).
      gamma: the velocity starts at N(0, gamma M).
      T: end time.

    Raises:
      UserError: for an argument outside its range.
    """
    mass, gamma = _positive(mass=mass, gamma=gamma)
    friction = 2 * math.sqrt(mass)
    return LinearSDE(
        F=np.array([[0, 1 / mass], [-1, -friction / mass]]),
        G=np.diag([0, math.sqrt(2 * friction)]),
        cov0=np.diag([0, gamma * mass]),
        prior_cov=np.diag([1, mass]),
        precision_inf=np.diag([1, 1 / mass]),
        schedule=_schedule(beta),
        T=T,
    )


def psld(
    *, mass: float = 0.25, beta: Rate = 8.0, Gamma: float = 0.01, nu: float = 4.01, kappa: float = 0.04, T: float = 1.0
) -> LinearSDE:
    """Phase space Langevin diffusion, n = 2, with noise in both blocks (Pandey and Mandt, ICCV 2023, eq. 9).

        F = 1/2 [[-Gamma, 1/M], [-1, -nu]],    G = diag(sqrt(Gamma), sqrt(M nu))

    Damping is critical for (nu - Gamma)^2 = 4/M.

    Args:
      mass: M; the stationary law of the momentum is N(0, M).
      beta: rate of time.
      Gamma: friction of the position, >= 0.
      nu: friction of the momentum.
      kappa: the momentum starts at N(0, kappa M).
      T: end time.

    Raises:
      UserError: for an argument outside its range.
    """
    mass, nu, kappa = _positive(mass=mass, nu=nu, kappa=kappa)
    Gamma = require_number("Gamma", Gamma, lambda g: 0 <= g < math.inf, "finite and >= 0")
    return LinearSDE(
        F=np.array([[-Gamma, 1 / mass], [-1, -nu]]) / 2,
        G=np.diag([math.sqrt(Gamma), math.sqrt(mass * nu)]),
        cov0=np.diag([0, kappa * mass]),
        prior_cov=np.diag([1, mass]),
        precision_inf=np.diag([1, 1 / mass]),
        schedule=_schedule(beta),
        T=T,
    )


def critical_damping(order: int) -> tuple[np.ndarray, float]:
    """Couplings gamma (n - 1,) and friction xi for which F has one eigenvalue -omega, n times (HOLD++, 2506.21741).

    omega = sqrt(2n - 3) (1 for n = 1), xi = n omega, gamma_{n-i} = omega sqrt((n^2 - i^2) / (4 i^2 - 1)).
    """
    n = require_whole("order", order, 1)
    omega = math.sqrt(2 * n - 3) if n > 1 else 1.0
    i = np.arange(n - 1, 0, -1)
    return omega * np.sqrt((n * n - i * i) / (4 * i * i - 1)), n * omega


def told_damping(order: int) -> tuple[np.ndarray, float]:
    """HOLD's third order: gamma = (1, sqrt 10), xi = 6, eigenvalues -1, -2, -3 (2404.12814).

    Raises:
      UserError: for another order than 3.
    """
    require(order == 3, "order", order, '3 with damping="told"; use damping="critical" for any order')
    return np.array([1.0, math.sqrt(10.0)]), 6.0


_DAMPINGS = {"critical": critical_damping, "told": told_damping}


def hold(
    order: int = 3,
    *,
    damping: str | None = None,
    L_inv: float = 0.5,
    alpha: float = 0.08,
    beta: Rate = 1.0,
    T: float | None = None,
    sigma_max: float | None = None,
    gammas: Sequence[float] | None = None,
    xi: float | None = None,
) -> LinearSDE:
    """High-order Langevin dynamics of order n (HOLD 2404.12814; TOLD++ 2409.07697; HOLD++ 2506.21741).

        F = sum_i gamma_i (E_{i,i+1} - E_{i+1,i}) - xi E_{nn},    G = sqrt(2 xi / L) E_{nn}

    The stationary law is N(0, 1/L) in every block; the auxiliary blocks start at N(0, alpha/L).

    Args:
      order: n, 1 to 6. n = 1 is a VP process, n = 2 a CLD, n = 3 TOLD or TOLD++.
      damping: "critical" (any order, one eigenvalue) or "told" (order 3, HOLD's values); None: critical, unless
        `gammas` and `xi` are given.
      L_inv: 1/L, the stationary variance.
      alpha: variance of the auxiliary blocks at the start as a fraction of 1/L.
      beta: rate of time.
      T: end time; None: the time at which the effective noise is `sigma_max`.
      sigma_max: effective noise at the end, in data units; None: 80, EDM's for pictures of 64 x 64. What all pixels
        have in common, such as the brightness, is the clearer against it the more pixels there are: 320 for 256 x 256.
      gammas: own couplings, n - 1 positive numbers; needs `xi`, excludes `damping`.
      xi: own friction of the last block, positive.

    Raises:
      UserError: for an argument outside its range, or arguments that exclude each other.
    """
    whole = isinstance(order, numbers.Integral) and not isinstance(order, bool)
    require(whole and 1 <= order <= MAX_ORDER, "order", order, f"a whole number from 1 to {MAX_ORDER}")
    L_inv, alpha = _positive(L_inv=L_inv, alpha=alpha)
    couplings, friction = _damping(order, damping, gammas, xi)
    upper = np.diag(couplings, k=1)
    last = np.zeros((order, order))
    last[-1, -1] = 1.0
    auxiliary = np.eye(order)
    auxiliary[0, 0] = 0.0
    F = upper - upper.T - friction * last
    G = math.sqrt(2 * friction * L_inv) * last
    cov0 = alpha * L_inv * auxiliary
    schedule = _schedule(beta)
    require(T is None or sigma_max is None, "sigma_max", sigma_max, "None with T")
    if T is None:
        (end,) = _positive(sigma_max=SIGMA_MAX if sigma_max is None else sigma_max)
        T = float(schedule.time(exact.integral_of_noise(F, G, cov0, end)))
    return LinearSDE(F, G, cov0, L_inv * np.eye(order), np.eye(order) / L_inv, schedule, T)


def require_sde(sde: Any, eps_fn: Any) -> None:
    """Checks what losses, samplers and likelihoods begin with.

    Raises:
      UserError: if `sde` is no `LinearSDE` or `eps_fn` no function, as where they are swapped.
    """
    require(isinstance(sde, LinearSDE), "sde", sde, "a `LinearSDE`, such as `hold_jax.sde.hold(3)`")
    require(callable(eps_fn), "eps_fn", eps_fn, "a function (u, t), such as that of `parameterization.eps_function`")


def _damping(
    order: int, damping: str | None, gammas: Sequence[float] | None, xi: float | None
) -> tuple[np.ndarray, float]:
    """Couplings (n - 1,) and friction by name or, checked, as given."""
    if gammas is None and xi is None:
        damping = "critical" if damping is None else damping
        require_choice("damping", damping, _DAMPINGS)
        return _DAMPINGS[damping](order)
    require(damping is None, "damping", damping, "None with gammas and xi")
    gammas = require_given("gammas", gammas, "given together with xi")
    xi = require_given("xi", xi, "given together with gammas")
    given: Any = np.asarray(gammas).tolist()
    fits = isinstance(given, list) and len(given) == order - 1
    require(fits, "gammas", given, f"{order - 1} numbers for order {order}")
    friction, *couplings = _positive(xi=xi, **{f"gammas[{i}]": gamma for i, gamma in enumerate(given)})
    return np.array(couplings), friction


def _schedule(beta: Rate) -> Schedule:
    """The schedule that a rate of time stands for."""
    if isinstance(beta, (int, float, np.integer, np.floating)):
        return Constant(*_positive(beta=beta))
    if isinstance(beta, Sequence):
        finite = len(beta) == 2 and all(isinstance(b, numbers.Real) and math.isfinite(b) for b in beta)
        linear = finite and beta[0] > 0 and beta[1] >= 0
        require(linear, "beta", beta, "a pair (beta_0 > 0, beta_1 >= 0), for beta(t) = beta_0 + beta_1 t")
        return Linear(float(beta[0]), float(beta[1]))
    require(hasattr(beta, "integral"), "beta", beta, "a number, a pair of numbers, or a Schedule")
    return beta


def _positive(**values: float) -> list[float]:
    """The values, checked, as Python numbers: those of NumPy's float32 would compute in float32."""
    for name, value in values.items():
        real = isinstance(value, numbers.Real) and not isinstance(value, bool)
        require(real and math.isfinite(value) and value > 0, name, value, "positive")
    return [float(value) for value in values.values()]


def _array(name: str, value: Any) -> np.ndarray:
    try:
        return np.array(value)
    except ValueError:
        raise UserError(f"`{name}` is no matrix: its rows differ in length") from None


def _is_covariance(matrix: np.ndarray) -> bool:
    """Whether a matrix is symmetric and positive semi-definite, up to rounding."""
    if not (np.isfinite(matrix).all() and np.allclose(matrix, matrix.T)):
        return False
    values = np.linalg.eigvalsh(matrix)
    return bool(values[0] >= -1e-12 * abs(values[-1]))


def __dir__() -> list[str]:
    return __all__
