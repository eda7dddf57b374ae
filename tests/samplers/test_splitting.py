import numpy as np
import pytest
import scipy.linalg
from reference import oracle
from samplers.suite import hold, network, stepped

from hold_jax import samplers, sde
from hold_jax.samplers import LieTrotter, ReducedSplitting, Splitting, Strang

SDES = {**{f"hold{n}": hold(n) for n in (1, 2, 3, 4)}, "psld": sde.psld(), "cld": sde.cld()}
RNG = np.random.default_rng(0)


def flow(drift, diffusion, h):
    """exp(drift h) and int exp(drift s) D D' exp(drift' s) ds by Van Loan's block exponential."""
    n = len(drift)
    block = np.block([[-drift, diffusion @ diffusion.T], [np.zeros((n, n)), drift.T]])
    block = scipy.linalg.expm(block * h)
    phi = block[n:, n:].T
    return phi, phi @ block[:n, n:]


class Moments:
    """A state known up to its own noise: the value and the noise's covariance, moved along together."""

    def __init__(self, u):
        self.u, self.cov = u, np.zeros((u.shape[1], u.shape[1]))

    def move(self, drift, diffusion, h):
        phi, q = flow(drift, diffusion, h)
        self.u, self.cov = phi @ self.u, phi @ self.cov @ phi.T + q

    def kick(self, m, h, state, eps):
        """u + h G G' (score + Sigma_inf^-1 u), all of it known from `state` and `eps`, its Jacobian the linear part."""
        weight = np.eye(m.order) + h * (m.G @ m.G.T @ m.precision_inf + state)
        self.u, self.cov = weight @ self.u + h * eps, weight @ self.cov @ weight.T


def score_parts(m, t, u):
    """G G' score = S u + e from eps_n = network(u), in 80 digits: S (n, n), e (B, n, C)."""
    phi, chol = oracle.marginal(m, float(oracle.integral(m, t)))
    inverse = oracle.inverse_lower(chol)
    w = inverse @ phi[:, 0]
    # score = -Sigma^-1 (u - A D), D = ([L^-1 u]_n - eps_n) / w_n.
    pull = -(m.G @ m.G.T) @ (inverse.T @ inverse)
    lift = np.outer(pull @ phi[:, 0], inverse[-1]) / w[-1]
    eps = network(u, t)
    return (pull - lift).astype(np.float64), (pull @ phi[:, :1] / w[-1]).astype(np.float64) * eps


def pieces(m):
    """Drift and diffusion of O, H and of the plane rotations of H (see `Splitting`)."""
    friction = np.diag(np.diagonal(m.F))
    couplings = friction - m.F
    planes = []
    for i in range(m.order - 1):
        plane = np.zeros_like(couplings)
        plane[i, i + 1], plane[i + 1, i] = couplings[i, i + 1], couplings[i + 1, i]
        planes.append(plane)
    still = np.zeros_like(m.G)
    return (-friction - m.G @ m.G.T @ m.precision_inf, m.G), [(couplings, still)], [(plane, still) for plane in planes]


def reference(m, sequence, times, u, *, planes=False, at="start"):
    """One step of a sequence of A (all that is exact), O, H and B, each sharing the step with its like."""
    b = oracle.integral(m, times)
    h = b[0] - b[1]
    o, whole, planar = pieces(m)
    a = (-m.F - m.G @ m.G.T @ m.precision_inf, m.G)
    t = times[0] if at == "start" else float(m.schedule.time(b[0] - h / 2))
    moments, parts = Moments(u), None
    for letter in sequence:
        share = h / sequence.count(letter)
        if letter == "B":
            # One call a step: the second kick of a step uses the noise of the first, with its own u.
            parts = parts or score_parts(m, t, moments.u)
            moments.kick(m, share, *parts)
        else:
            for piece in {"A": [a], "O": [o], "H": planar if planes else whole}[letter]:
                moments.move(*piece, share)
    return moments


SAMPLERS = {
    "lie_trotter": (LieTrotter(), "BA", {}),
    "strang": (Strang(), "ABA", {"at": "midpoint"}),
    "sscs": (Strang(score_time="start"), "ABA", {}),
    "lie_trotter_split": (samplers.lie_trotter_split(), "BOH", {"planes": True}),
    "OBH": (Splitting(sequence="OBH"), "OBH", {}),
    "HBHO": (Splitting(sequence="HBHO"), "HBHO", {}),
    "OBHBO": (Splitting(sequence="OBHBO"), "OBHBO", {}),
    "HOBOH_planes": (Splitting(sequence="HOBOH", pieces=True), "HOBOH", {"planes": True}),
}


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("m", SDES.values(), ids=SDES)
def test_a_step_is_its_pieces_one_after_the_other(m, name):
    # Value without noise, for any function as network; and the covariance of the noise, whatever its factor.
    sampler, sequence, options = SAMPLERS[name]
    times = m.schedule.time(np.array([1.3, 1.0]))
    u = RNG.standard_normal((3, m.order, 2))
    want = reference(m, sequence, times, u, **options)
    draws = np.zeros((1, 2, 3, 3 * m.order, 2))
    np.testing.assert_allclose(stepped(sampler, m, network, u, times, draws)[1], want.u, rtol=1e-8, atol=1e-9)
    (stage,) = sampler.coefficients(m, times)
    noises = [] if stage.after.noise is None else [stage.after.noise[0]]
    if stage.before is not None and stage.before.noise is not None:
        noises.append(stage.after.state[0] @ stage.before.noise[0])
    np.testing.assert_allclose(sum(n @ n.T for n in noises), want.cov, atol=1e-10)
    # Columns that carry no noise cost random numbers.
    assert all(np.abs(n).max(axis=0).min() > 0 for n in noises)


@pytest.mark.parametrize("sequence", ["OB", "", "OBHX", "obh"])
def test_a_bad_sequence_is_named(sequence):
    with pytest.raises(
        ValueError, match=f"`sequence` is '{sequence}'; it must be a sequence of the letters O, H and B"
    ):
        Splitting(sequence=sequence)


def test_a_bad_score_time_is_named():
    with pytest.raises(
        ValueError, match=r"`score_time` is 'midpiont' \(did you mean 'midpoint'\?\).*: midpoint, start"
    ):
        Strang(score_time="midpiont")


# --- PSLD's own, written out for its two blocks (2402.07211, eqs. 27 to 39) ----------------------------------------

BETA, GAMMA, NU, MASS = 8.0, 0.01, 4.01, 0.25


def psld_step(scheme, scale, s, h, x, m, e_x, e_m):
    """One update at sampling time s = T - t of the paper's symbols; with e_x, e_m its noise."""
    t_bar = ((1 - s) + (1 - s - h)) / 2
    level = h if scale is None else t_bar * scale

    def score(x, m, t):
        # G G' score is (beta Gamma s_x, beta M nu s_m), in units of beta dt.
        parts = score_parts(sde.psld(), t, np.stack([x, m], axis=1))
        push = np.stack([x, m], axis=1)
        push = parts[0] @ push + parts[1]
        return push[:, 0] / GAMMA, push[:, 1] / (MASS * NU)

    def noise(x, m):
        x = np.exp(-h * BETA * GAMMA / 2) * x + np.sqrt(1 - np.exp(-level * BETA * GAMMA)) * e_x
        return x, np.exp(-h * BETA * NU / 2) * m + np.sqrt(MASS) * np.sqrt(1 - np.exp(-h * BETA * NU)) * e_m

    def momentum(x, m, s_m, h):
        return m + h * BETA / 2 * (x + 2 * NU * m + 2 * MASS * NU * s_m)

    def position(x, m, s_x):
        return x + h * BETA / 2 * (2 * GAMMA * x - m / MASS + 2 * GAMMA * s_x)

    if scheme != "RBAO":
        x, m = noise(x, m)
    s_x, s_m = score(x, m, 1 - s)
    m = momentum(x, m, s_m, h / 2 if scheme == "ROBAB" else h)
    x = position(x, m, s_x)
    if scheme == "ROBAB":
        m = momentum(x, m, score(x, m, 1 - (s + h))[1], h / 2)
    return noise(x, m) if scheme == "RBAO" else (x, m)


@pytest.mark.parametrize("scale", [None, 1.16])
@pytest.mark.parametrize("scheme", ["ROBA", "RBAO", "ROBAB"])
def test_reduced_splittings_are_the_papers_updates(scheme, scale):
    process = sde.psld(beta=BETA, Gamma=GAMMA, nu=NU, mass=MASS)
    s, h = 0.8, 0.03
    times = np.array([1 - s, 1 - s - h])
    u, draws = RNG.standard_normal((3, 2, 2)), RNG.standard_normal((3, 2, 2))
    x, m = psld_step(scheme, scale, s, h, u[:, 0], u[:, 1], draws[:, 0], draws[:, 1])
    sampler = ReducedSplitting(scheme=scheme, noise_scale=scale)
    # All draws of a step are the same numbers; O is the one sub-flow that takes them.
    got = stepped(sampler, process, network, u, times, np.stack([draws] * 4)[None])[1]
    np.testing.assert_allclose(got[:, 0], x, rtol=1e-9)
    np.testing.assert_allclose(got[:, 1], m, rtol=1e-9)


def test_a_noise_scale_needs_noise_in_the_position():
    sampler = ReducedSplitting(noise_scale=0.4)
    for process in (hold(2), sde.cld(), hold(3)):
        with pytest.raises(ValueError, match=r"`noise_scale` is 0\.4; it must be None for a process without noise"):
            sampler.coefficients(process, np.array([0.5, 0.4]))


def test_reduced_splittings_need_a_momentum():
    with pytest.raises(ValueError, match="`scheme` is 'ROBA'; it must be used with a process of at least two blocks"):
        ReducedSplitting().coefficients(hold(1), np.array([0.5, 0.4]))


@pytest.mark.parametrize(("option", "value"), [("scheme", "OBA"), ("noise_scale", -1.0), ("noise_scale", float("nan"))])
def test_a_bad_option_of_a_reduced_splitting_is_named(option, value):
    with pytest.raises(ValueError, match=f"`{option}` is "):
        ReducedSplitting(**{option: value})
