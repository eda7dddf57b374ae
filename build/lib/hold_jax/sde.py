"""Linear SDEs on a state of n blocks: VP, VE, CLD, PSLD and high-order Langevin dynamics (HOLD).

    du = beta(t) F u dt + sqrt(beta(t)) G dw,    u in R^{n x d},  F, G in R^{n x n}

F and G act on the block index. Block 1 is the data q, blocks 2..n are auxiliary. A new SDE is
one more constructor: everything else in the package reads only the fields of `LinearSDE`.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np

from hold_jax.errors import require, require_choice
from hold_jax.numerics import exact
from hold_jax.numerics.schedules import Constant, Geometric, Linear, Schedule

# Effective noise at the default end and start times, in data units (EDM, 2206.00364, table 1).
SIGMA_MAX = 80.0
SIGMA_MIN = 0.002
# Beyond it the propagator of a critically damped chain outruns the host's float64 at B = 10.
MAX_ORDER = 6


@dataclasses.dataclass(frozen=True, eq=False)
class LinearSDE:
    """The matrices and times of one linear SDE. Immutable, hashable by value, static under `jax.jit`.

    Attributes:
      F: (n, n) float64 drift.
      G: (n, n) float64 diffusion.
      cov0: (n, n) covariance of u(0) given the data: zero in block 1, the auxiliaries' start law.
      prior_cov: (n, n) covariance of the law that sampling starts from at t = T.
      precision_inf: (n, n) inverse of the stationary covariance, zero where there is none (VE).
      schedule: beta(t) and its integral.
      T: end time.
    """

    F: np.ndarray
    G: np.ndarray
    cov0: np.ndarray
    prior_cov: np.ndarray
    precision_inf: np.ndarray
    schedule: Schedule
    T: float

    def __post_init__(self):
        for name in ("F", "G", "cov0", "prior_cov", "precision_inf"):
            value = np.array(getattr(self, name), np.float64)
            value.setflags(write=False)
            object.__setattr__(self, name, value)
        require(math.isfinite(self.T) and self.T > 0, "T", self.T, "a positive number")

    @property
    def order(self) -> int:
        """The number of blocks n."""
        return self.F.shape[0]

    @functools.cached_property
    def t_min(self) -> float:
        """Default start time of losses, end time of samplers: the effective noise is `SIGMA_MIN` data units."""
        return float(self.schedule.time(exact.integral_of_noise(self.F, self.G, self.cov0, SIGMA_MIN)))

    @functools.cached_property
    def _key(self) -> tuple:
        matrices = (self.F, self.G, self.cov0, self.prior_cov, self.precision_inf)
        return (*(m.tobytes() for m in matrices), self.schedule, self.T)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LinearSDE) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


def _positive(**values: float) -> None:
    for name, value in values.items():
        require(isinstance(value, (int, float)) and math.isfinite(value) and value > 0, name, value, "positive")


def vp(*, beta_min: float = 0.1, beta_max: float = 20.0, T: float = 1.0) -> LinearSDE:
    """Variance preserving, n = 1: F = -1/2, G = 1, beta linear from beta_min to beta_max (2011.13456, eq. 32)."""
    _positive(beta_min=beta_min, beta_max=beta_max, T=T)
    one = np.eye(1)
    return LinearSDE(-one / 2, one, 0 * one, one, one, Linear(beta_min, (beta_max - beta_min) / T), T)


def ve(*, sigma_min: float = 0.01, sigma_max: float = 50.0) -> LinearSDE:
    """Variance exploding, n = 1: F = 0, G = 1, B(t) = sigma(t)^2 - sigma_min^2, T = 1 (2011.13456, eq. 30)."""
    _positive(sigma_min=sigma_min, sigma_max=sigma_max)
    require(sigma_max > sigma_min, "sigma_max", sigma_max, f"above sigma_min = {sigma_min}")
    one = np.eye(1)
    schedule = Geometric(sigma_min, sigma_max)
    return LinearSDE(0 * one, one, 0 * one, schedule.integral(0.0, 1.0) * one, 0 * one, schedule, 1.0)


def cld(*, mass: float = 0.25, beta: float = 4.0, gamma: float = 0.04, T: float = 1.0) -> LinearSDE:
    """Critically damped Langevin diffusion, n = 2 (2112.07068, eq. 5; defaults of its CIFAR-10 runs).

    dq = v/M beta dt, dv = (-q - Gamma v/M) beta dt + sqrt(2 Gamma beta) dw, Gamma^2 = 4 M.

    Args:
      mass: M; the velocity is stationary at N(0, M).
      beta: constant rate of time.
      gamma: the velocity starts at N(0, gamma M).
      T: end time.
    """
    _positive(mass=mass, beta=beta, gamma=gamma, T=T)
    friction = 2 * math.sqrt(mass)
    return LinearSDE(
        F=np.array([[0, 1 / mass], [-1, -friction / mass]]),
        G=np.diag([0, math.sqrt(2 * friction)]),
        cov0=np.diag([0, gamma * mass]),
        prior_cov=np.diag([1, mass]),
        precision_inf=np.diag([1, 1 / mass]),
        schedule=Constant(beta),
        T=T,
    )


def psld(
    *, mass: float = 0.25, beta: float = 8.0, Gamma: float = 0.01, nu: float = 4.01, kappa: float = 0.04, T: float = 1.0
) -> LinearSDE:
    """Phase space Langevin diffusion, n = 2, noise in both blocks (Pandey and Mandt, ICCV 2023, eq. 9).

    F = 1/2 [[-Gamma, 1/M], [-1, -nu]], G = diag(sqrt Gamma, sqrt(M nu)); critical where (nu - Gamma)^2 = 4/M.

    Args:
      mass: M; the momentum is stationary at N(0, M).
      beta: constant rate of time.
      Gamma: friction of the position, >= 0.
      nu: friction of the momentum.
      kappa: the momentum starts at N(0, kappa M).
      T: end time.
    """
    _positive(mass=mass, beta=beta, nu=nu, kappa=kappa, T=T)
    require(math.isfinite(Gamma) and Gamma >= 0, "Gamma", Gamma, "a finite number >= 0")
    return LinearSDE(
        F=np.array([[-Gamma, 1 / mass], [-1, -nu]]) / 2,
        G=np.diag([math.sqrt(Gamma), math.sqrt(mass * nu)]),
        cov0=np.diag([0, kappa * mass]),
        prior_cov=np.diag([1, mass]),
        precision_inf=np.diag([1, 1 / mass]),
        schedule=Constant(beta),
        T=T,
    )


def critical_damping(order: int) -> tuple[np.ndarray, float]:
    """gammas (n-1,) and xi for which F has the one eigenvalue -omega, n times (HOLD++, 2506.21741).

    omega = sqrt(2n - 3) (1 for n = 1), xi = n omega, gamma_{n-i} = omega sqrt((n^2 - i^2) / (4 i^2 - 1)).
    """
    n = order
    omega = math.sqrt(2 * n - 3) if n > 1 else 1.0
    i = np.arange(n - 1, 0, -1)
    return omega * np.sqrt((n * n - i * i) / (4 * i * i - 1)), n * omega


def told_damping(order: int) -> tuple[np.ndarray, float]:
    """HOLD's own third order: gammas (1, sqrt 10), xi = 6, eigenvalues -1, -2, -3 (2404.12814)."""
    require(order == 3, "order", order, '3 with damping="told"; use damping="critical" for any order')
    return np.array([1.0, math.sqrt(10.0)]), 6.0


_DAMPINGS = {"critical": critical_damping, "told": told_damping}


def hold(
    *,
    order: int = 3,
    damping: str = "critical",
    L_inv: float = 0.5,
    alpha: float = 0.08,
    beta: float = 1.0,
    T: float | None = None,
    gammas: Sequence[float] | None = None,
    xi: float | None = None,
) -> LinearSDE:
    """High-order Langevin dynamics of order n (HOLD 2404.12814; TOLD++ 2409.07697; HOLD++ 2506.21741).

    F = sum_i gamma_i (E_{i,i+1} - E_{i+1,i}) - xi E_{nn}, G = sqrt(2 xi / L) E_{nn}. Stationary law
    N(0, 1/L); the auxiliary blocks start at N(0, alpha/L).

    Args:
      order: n, 1 to 6. n = 1 is a VP process, n = 2 a CLD, n = 3 TOLD(++).
      damping: "critical" (any order, one eigenvalue) or "told" (order 3, HOLD's own values).
      L_inv: 1/L, the stationary variance of every block.
      alpha: the auxiliaries' start variance as a fraction of 1/L.
      beta: constant rate of time.
      T: end time; None ends where the effective noise reaches 80 data units.
      gammas: n - 1 positive couplings of your own; needs `xi`, replaces `damping`.
      xi: friction of the last block, positive.

    Raises:
      UserError: on an argument outside its range.
    """
    whole = isinstance(order, (int, np.integer)) and not isinstance(order, bool)
    require(whole and 1 <= order <= MAX_ORDER, "order", order, f"a whole number from 1 to {MAX_ORDER}")
    _positive(L_inv=L_inv, alpha=alpha, beta=beta)
    require_choice("damping", damping, _DAMPINGS)
    if gammas is None and xi is None:
        gammas, xi = _DAMPINGS[damping](order)
    require(gammas is not None and xi is not None, "gammas, xi", (gammas, xi), "given together, or neither")
    require(len(gammas) == order - 1, "gammas", tuple(gammas), f"{order - 1} numbers for order {order}")
    _positive(xi=xi, **{f"gammas[{i}]": float(g) for i, g in enumerate(gammas)})

    upper = np.diag(np.asarray(gammas, np.float64), k=1)
    last = np.zeros((order, order))
    last[-1, -1] = 1.0
    auxiliary = np.eye(order)
    auxiliary[0, 0] = 0.0
    F = upper - upper.T - xi * last
    G = math.sqrt(2 * xi * L_inv) * last
    cov0 = alpha * L_inv * auxiliary
    if T is None:
        T = float(exact.integral_of_noise(F, G, cov0, SIGMA_MAX)) / beta
    return LinearSDE(F, G, cov0, L_inv * np.eye(order), np.eye(order) / L_inv, Constant(beta), T)
