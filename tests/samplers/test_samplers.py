import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import oracle
from reference.propagate import Law, denoised, fitted_order, prior, propagate, truth

from hold_jax import samplers, sde
from hold_jax.samplers import EulerMaruyama, LieTrotter, Strang, grids, sample

MEAN, STD = 0.3, 0.5
ALL = {
    "euler_maruyama": EulerMaruyama(),
    "lie_trotter": LieTrotter(),
    "strang": Strang(),
    "sscs": Strang(score_time="start"),
}
every_sampler = pytest.mark.parametrize("sampler", ALL.values(), ids=ALL)


def law_error(m, law, t):
    """|W cov W' - I| with W the inverse factor of the true law of u(t)."""
    true = truth(m, t, mean=MEAN, std=STD)
    whiten = np.linalg.inv(np.linalg.cholesky(true.cov))
    return np.linalg.norm(whiten @ law.cov @ whiten.T - np.eye(m.order)), np.linalg.norm(
        whiten @ (law.mean - true.mean)
    )


def kl_at(m, law, t):
    """KL of the law of u(t) against the truth."""
    true = truth(m, t, mean=MEAN, std=STD)
    return oracle.kl(law.mean, law.cov, true.mean, true.cov)


# --- Exact propagation: order of convergence ---------------------------------------------------------


@every_sampler
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_weak_order(n, sampler):
    # From the exact law at t = 2, so that what is left is the error of the steps. All four have order 1, Strang
    # too: its score part is an explicit Euler step, whose error h/2 S'S no symmetry of the splitting removes.
    m = sde.hold(order=n)
    start = truth(m, 2.0, mean=MEAN, std=STD)
    counts = (256, 512)
    errors = []
    for num in counts:
        law = propagate(sampler, m, np.linspace(2.0, 0.5, num + 1), mean=MEAN, std=STD, start=start)
        errors.append(law_error(m, law, 0.5))
    assert fitted_order([e for e, _ in errors], counts) == pytest.approx(1, abs=0.05)
    assert fitted_order([e for _, e in errors], counts) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    ("name", "sampler"),
    [("psld", s) for s in ALL.values()] + [(k, Strang()) for k in ("vp", "ve", "cld", "told")] + [("ve", LieTrotter())],
)
def test_every_sde_converges(name, sampler):
    # PSLD drives both blocks, VE has no stationary law, VP and VE have rates that are not constant.
    m = {"psld": sde.psld(), "vp": sde.vp(), "ve": sde.ve(), "cld": sde.cld(), "told": sde.hold(damping="told")}[name]
    first, last = (float(m.schedule.time(b)) for b in (2.0, 0.5))
    start = truth(m, first, mean=MEAN, std=STD)
    errors = []
    for num in (256, 512):
        law = propagate(sampler, m, np.linspace(first, last, num + 1), mean=MEAN, std=STD, start=start)
        errors.append(law_error(m, law, last)[0])
    assert errors[1] < 0.03
    assert fitted_order(errors, (256, 512)) > 0.8


def test_splittings_are_exact_where_the_score_is_that_of_the_stationary_law():
    # Data N(0, 1/L) is stationary for q alone; at late times for all blocks: S vanishes and A is exact.
    m = sde.hold(order=3)
    std = float(np.sqrt(0.5))
    times = np.linspace(15.0, 14.0, 3)
    for sampler in (LieTrotter(), Strang()):
        law = propagate(sampler, m, times, mean=0.0, std=std, start=prior(m))
        np.testing.assert_allclose(law.cov, m.prior_cov, atol=1e-9)
    law = propagate(EulerMaruyama(), m, times, mean=0.0, std=std, start=prior(m))
    assert np.abs(law.cov - m.prior_cov).max() > 0.1


def test_an_affine_step_by_hand():
    # One Euler-Maruyama step of a VP from N(a, v), written out: x + (x/2 + score) h + sqrt(h) xi.
    m = sde.vp(beta_min=2.0, beta_max=2.0)
    a, v = 0.4, 1.3
    law = propagate(EulerMaruyama(), m, [0.8, 0.7], mean=MEAN, std=STD, start=Law(np.array([a]), np.array([[v]])))
    decay = np.exp(-0.8)
    total = STD**2 * decay**2 + 1 - decay**2
    h = 0.2
    slope = 1 + h / 2 - h / total
    assert law.cov.item() == pytest.approx(slope**2 * v + h, rel=1e-12)
    assert law.mean.item() == pytest.approx(slope * a + h * decay * MEAN / total, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "bound"), [("euler_maruyama", 4e-3), ("lie_trotter", 4e-4), ("strang", 4e-4), ("sscs", 4e-4)]
)
def test_the_whole_trajectory_reaches_the_data(name, bound):
    m = sde.hold(order=3)
    t_min = float(oracle.integral_of_noise(m, 0.02))
    times = grids.karras(m, t_min, 200)
    law = propagate(ALL[name], m, times, mean=MEAN, std=STD)
    q = oracle.kl(law.mean[:1], law.cov[:1, :1], *(v[..., :1] for v in _data_block(m, t_min)))
    assert q < bound, q


def _data_block(m, t):
    true = truth(m, t, mean=MEAN, std=STD)
    return true.mean[:1], true.cov[:1, :1]


# --- sample(): scan, keys, noise, denoising -----------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sampler"),
    [("hold3", s) for s in ALL.values()] + [("psld", Strang()), ("ve", LieTrotter())],
)
def test_samples_follow_the_exactly_propagated_law(name, sampler):
    # A few coarse steps, far from converged: the law is the sampler's own. A draw of noise used twice, a row of
    # coefficients out of place or a wrong prior would each show as many standard errors.
    m = {"hold3": sde.hold(order=3), "psld": sde.psld(), "ve": sde.ve(sigma_max=5.0)}[name]
    t_min = float(m.schedule.time(oracle.integral_of_noise(m, 0.2)))
    times = grids.karras(m, t_min, 6)
    law = propagate(sampler, m, times, mean=MEAN, std=STD)
    batch, channels = 4096, 4
    eps_fn = oracle.gaussian_eps(m, MEAN, STD)
    options = {"shape": (batch, channels), "num_steps": 6, "t_min": t_min}
    out = jax.jit(lambda key: sample(sampler, m, eps_fn, key=key, **options))(jax.random.key(1))
    assert out.x.shape == (batch, channels) and out.u.shape == (batch, m.order, channels) and out.frames is None
    num = batch * channels
    u = np.asarray(out.u, np.float64).transpose(0, 2, 1).reshape(num, m.order)
    std = np.sqrt(np.diagonal(law.cov))
    assert (np.abs(u.mean(axis=0) - law.mean) < 4 * std / np.sqrt(num)).all()
    spread = np.sqrt((np.outer(std, std) ** 2 + law.cov**2) / num)
    assert (np.abs(np.cov(u, rowvar=False).reshape(law.cov.shape) - law.cov) < 4 * spread).all()
    mean, variance = denoised(m, law, t_min, mean=MEAN, std=STD)
    x = np.asarray(out.x, np.float64).ravel()
    assert abs(x.mean() - mean) < 4 * np.sqrt(variance / num)
    assert abs(x.var() - variance) < 4 * variance * np.sqrt(2 / num)


def network(u, t):
    """Any function of state and time: what follows is about the loop, not the noise."""
    return 0.6 * u[..., -1:, :] + 0.1 * jnp.sin(u[..., :1, :] + t)


def drawn(sampler, m, eps_fn=network, *, key, **options):
    """`sample`, jitted, with its static parts as they are."""
    static = []

    @jax.jit
    def draw(key):
        out = sample(sampler, m, eps_fn, key=key, **options)
        static.append(out.nfe)
        return out._replace(nfe=None)

    return draw(key)._replace(nfe=static[0])


SHORT = {"key": jax.random.key(3), "shape": (8, 2), "num_steps": 4}


def test_denoise_false_returns_the_data_block_of_the_last_state():
    m = sde.hold(order=2)
    raw = drawn(LieTrotter(), m, denoise=False, **SHORT)
    done = drawn(LieTrotter(), m, **SHORT)
    np.testing.assert_array_equal(raw.x, raw.u[..., 0, :])
    np.testing.assert_array_equal(raw.u, done.u)
    assert (raw.nfe, done.nfe) == (4, 5)


@pytest.mark.parametrize(("sampler", "denoise"), [(s, s != LieTrotter()) for s in ALL.values()])
def test_nfe_counts_the_calls_really_made(sampler, denoise):
    m, calls = sde.hold(order=2), []

    def counted(u, t):
        jax.debug.callback(lambda t: calls.append(float(t)), t)
        return network(u, t)

    out = drawn(sampler, m, counted, denoise=denoise, **SHORT)
    out.x.block_until_ready()
    jax.effects_barrier()
    assert out.nfe == len(calls) == 4 * sampler.calls_per_step + denoise
    assert m.t_min <= min(calls) * (1 + 1e-6) and max(calls) <= np.float32(m.T)


def test_frames_are_the_data_block_from_the_prior_to_the_end_and_change_nothing():
    m = sde.hold(order=2)
    options = {**SHORT, "num_steps": 6}
    plain = drawn(Strang(), m, **options)
    six = drawn(Strang(), m, frames=6, **options)
    three = drawn(Strang(), m, frames=3, **options)
    assert plain.frames is None and six.frames.shape == (7, 8, 2) and three.frames.shape == (4, 8, 2)
    for out in (six, three):
        np.testing.assert_allclose(out.u, plain.u, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(out.x, plain.x, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(out.frames[-1], out.u[..., 0, :])
    np.testing.assert_allclose(three.frames, six.frames[::2], rtol=1e-5, atol=1e-6)
    # The first is a draw of the prior: from one more sampler that does nothing at all.
    identity = dataclasses.make_dataclass("Identity", [], frozen=True)()
    object.__setattr__(identity, "calls_per_step", 0)
    object.__setattr__(identity, "coefficients", lambda m, times: np.zeros(len(times) - 1))
    object.__setattr__(identity, "step", lambda c, u, eps_fn, normal: u)
    start = drawn(identity, m, denoise=False, **options)
    assert start.nfe == 0
    np.testing.assert_array_equal(six.frames[0], start.x)
    many = drawn(identity, m, denoise=False, **{**options, "shape": (8192, 2)}).u
    cov = np.cov(np.asarray(many).transpose(0, 2, 1).reshape(-1, 2), rowvar=False)
    np.testing.assert_allclose(cov, m.prior_cov, atol=4 * 0.5 * np.sqrt(2 / 16384))


def test_jit_vmap_and_pmap_equal_plain_calls():
    m = sde.hold(order=2)
    keys = jax.random.split(jax.random.key(4), 8)

    def draw(key):
        return sample(LieTrotter(), m, network, **{**SHORT, "key": key, "num_steps": 1}).x

    jitted = jax.jit(draw)
    plain = np.stack([jitted(key) for key in keys])
    assert plain.std(axis=0).min() > 0  # eight different draws
    np.testing.assert_allclose(jax.jit(jax.vmap(draw))(keys), plain, rtol=1e-4, atol=1e-5)
    assert len(jax.devices()) == 8
    np.testing.assert_allclose(jax.pmap(draw)(keys), plain, rtol=1e-4, atol=1e-5)


def test_a_sharding_spreads_the_batch_and_changes_nothing():
    m = sde.hold(order=2)
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    spread = jax.jit(lambda: sample(LieTrotter(), m, network, sharding=sharding, **SHORT).u)()
    assert len(spread.sharding.device_set) == 8
    np.testing.assert_allclose(spread, drawn(LieTrotter(), m, **SHORT).u, rtol=1e-4, atol=1e-5)


# --- Grids ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["hold1", "hold3", "psld", "vp", "ve"])
def test_karras_takes_equal_steps_in_the_seventh_root_of_the_noise(name):
    m = {"hold1": sde.hold(order=1), "hold3": sde.hold(), "psld": sde.psld(), "vp": sde.vp(), "ve": sde.ve()}[name]
    times = grids.times_of(m, "karras", m.t_min, 9)
    assert (times[0], times[-1]) == (m.T, m.t_min)
    steps = np.diff([oracle.effective_noise(m, float(oracle.integral(m, t))) ** (1 / 7) for t in times])
    np.testing.assert_allclose(steps, steps[0], rtol=1e-8)


def test_the_other_grids():
    m = sde.vp()
    np.testing.assert_allclose(np.diff(grids.times_of(m, "uniform", 0.01, 5)), -0.99 / 5, rtol=1e-12)
    quadratic = grids.times_of(m, "quadratic", 0.01, 5)
    np.testing.assert_allclose(np.diff(np.sqrt(quadratic)), -0.9 / 5, rtol=1e-12)
    own = [0.9, 0.5, 0.1]
    np.testing.assert_array_equal(grids.times_of(m, own, 0.05, 2), own)
    rho = grids.times_of(m, lambda m, t, n: grids.karras(m, t, n, rho=1.0), 0.01, 4)
    steps = np.diff([oracle.effective_noise(m, float(oracle.integral(m, t))) for t in rho])
    np.testing.assert_allclose(steps, steps[0], rtol=1e-8)


BAD = [
    ({"num_steps": 0}, "`num_steps` is 0; .* whole number >= 1"),
    ({"num_steps": 2.5}, "`num_steps` is 2.5"),
    ({"grid": "karas"}, "`grid` is 'karas' .did you mean 'karras'.*: karras, quadratic, uniform"),
    ({"t_min": 0.0}, "`t_min` is 0.0; .* between 0 and T"),
    ({"t_min": 100.0}, "`t_min` is 100.0"),
    ({"frames": 3}, "`frames` is 3; .* divisor of num_steps = 4"),
    ({"frames": -1}, "`frames` is -1"),
    ({"grid": [2.0, 1.0, 1.0, 0.5, 0.1]}, "`grid` is .* strictly falling"),
    ({"grid": [0.1, 0.5, 1.0, 2.0, 3.0]}, "`grid` is .* strictly falling"),
    ({"grid": [100.0, 1.0, 0.5, 0.2, 0.1]}, "`grid` is .* strictly falling within .0, T = "),
    ({"grid": [1.0, 0.8, 0.6, 0.4, 0.0]}, "`grid` is .* strictly falling"),
    ({"grid": [1.0, float("nan"), 0.6, 0.4, 0.1]}, "`grid` is .* strictly falling"),
    ({"grid": [1.0, 0.5]}, r"`grid` is \(2,\); it must be of shape \(5,\)"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_input_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        sample(LieTrotter(), sde.hold(order=2), network, **{**SHORT, **change})


def test_a_bad_score_time_and_rho_are_named():
    with pytest.raises(ValueError, match=r"`score_time` is 'midpiont' .did you mean 'midpoint'"):
        Strang(score_time="midpiont")
    with pytest.raises(ValueError, match=r"`rho` is 0; it must be positive"):
        grids.karras(sde.vp(), 0.01, 4, rho=0)


def test_the_table_of_samplers_holds_constructors():
    for name, constructor in samplers.SAMPLERS.items():
        assert constructor() == ALL[name]
