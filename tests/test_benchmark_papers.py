"""What the papers' benchmarks compute, against the tests' own oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import oracle
from reference.propagate import denoised, gaussian_row, propagate, propagate_poisson
from samplers.suite import hold

from benchmarks import gaussian, paper_choices, report, swissroll_told
from hold_jax import kernels, samplers, sde

SAMPLERS = {
    "poisson_midpoint": samplers.PoissonMidpoint(K=4),
    "ROBAB": samplers.ReducedSplitting(scheme="ROBAB"),
    "sscs": samplers.Strang(score_time="start"),
    "unipc": samplers.unipc(),
}


@pytest.mark.parametrize("m", [hold(3), sde.psld()], ids=["hold3", "psld"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_the_exact_law_is_the_oracles(name, m):
    sampler, std = SAMPLERS[name], 0.1
    times = samplers.GRIDS["log"](m, m.t_min, 12)
    run = propagate_poisson if name == "poisson_midpoint" else propagate
    _, variance = denoised(
        m, run(sampler, m, times, mean=0.0, std=std, factors=gaussian_row), times[-1], mean=0.0, std=std
    )
    sigma = float(oracle.effective_noise(m, float(oracle.integral(m, times[-1]))))
    want = oracle.kl([0.0], np.array([[variance]]), np.array([0.0]), np.array([[std**4 / (std**2 + sigma**2)]]))
    assert gaussian.kl(m, sampler, times, std) == pytest.approx(float(want), rel=1e-5, abs=1e-12)


@pytest.mark.slow
def test_the_literal_reading_of_algorithm_1_is_its_law():
    # Data N(0, 1): Cov u = Phi diag(1, a, a) Phi' + Q + a Phi Phi' with a = alpha/L, and E[target u'] = (0, 0, L_nn).
    m, t, num = sde.hold(T=1.0, **swissroll_told.CHAIN), 0.4, 400_000
    x = jax.random.normal(jax.random.key(0), (num, 1))
    u, target = swissroll_told.literal_pair(m, x, jnp.full(num, t, jnp.float32), jax.random.key(1))
    u, target = np.asarray(u, np.float64)[..., 0], np.asarray(target, np.float64)[..., 0, 0]
    phi, q = (a.astype(np.float64) for a in oracle.transition(m, t))
    a = 0.1 * 0.25
    want = phi @ np.diag([1 + a, 2 * a, 2 * a]) @ phi.T + q @ q.T
    np.testing.assert_allclose(u.T @ u / num, want, atol=4e-3 * want[0, 0])
    last = float(kernels.marginal(m, jnp.float32(t)).chol[-1, -1])
    np.testing.assert_allclose(target @ u / num, [0, 0, last], atol=0.01)


@pytest.mark.parametrize("data", paper_choices.DATA)
def test_a_choice_changes_its_own_keys_and_no_others(data, tmp_path):
    base = paper_choices.configured(data, "base", tmp_path).flat()
    for change, keys in paper_choices.CHANGES.items():
        flat = paper_choices.configured(data, change, tmp_path).flat()
        of_the_law = {"loss.time_mean", "loss.time_std"} if "loss.time_law" in keys else set()
        assert {key for key in flat if flat[key] != base[key]} == set(keys) | of_the_law, change


def test_a_part_is_kept_while_its_settings_are_the_same(tmp_path):
    made = []

    def part(num, most=None):
        args = report.parser("", parts=True).parse_args([f"--workdir={tmp_path}"])
        args.most = most
        return report.kept(args, "part", {"num": num, "stds": (0.5, 0.1)}, lambda: made.append(num) or [num])

    assert part(1) == part(1) == part(1, most=0) == [1] and made == [1]
    assert part(2) == [2] and made == [1, 2]
    with pytest.raises(SystemExit, match="the same command goes on"):
        part(3, most=0)
