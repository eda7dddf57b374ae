"""Power-function averages against the sums that they are."""

import math
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from hold_jax.errors import UserError
from hold_jax.training import power_average
from hold_jax.training.power_average import SIGMAS, Average, combination, exponent, reconstruct, update

STEPS, EVERY = 320, 10
# A walk with a drift: parameters after steps 1 to STEPS.
WALK = np.cumsum(0.1 + np.random.default_rng(0).standard_normal((STEPS, 3)), axis=0) / 20


def averaged(gamma, steps=STEPS):
    """The average of the walk: step k has the integral of the profile from k - 1 to k."""
    edges = (np.arange(steps + 1) / steps) ** (gamma + 1)
    return np.diff(edges) @ WALK[:steps]


def profile(gamma, last, tau):
    """p(tau), tau a part of all steps, of an average over `last`."""
    return np.where(tau <= last, (gamma + 1) * (np.minimum(tau, last) / last) ** gamma / last, 0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A work directory with snapshots of the walk."""
    folder = tmp_path_factory.mktemp("run")
    trees = [{"a": {"w": jnp.zeros(3)}} for _ in SIGMAS]
    for step, new in enumerate(WALK):
        params = {"a": {"w": jnp.float32(new)}}
        trees = [update(tree, params, np.int32(step), sigma) for tree, sigma in zip(trees, SIGMAS, strict=True)]
        if (step + 1) % EVERY == 0:
            power_average.write(folder, trees, step + 1, "a1")
    return folder, trees


def test_a_length_is_the_standard_deviation_of_the_profile():
    tau = (np.arange(200_000) + 0.5) / 200_000
    for sigma in (0.01, 0.05, 0.1, 0.2, 0.28):
        p = profile(exponent(sigma), 1.0, tau)
        mean = (p * tau).mean()
        assert math.sqrt((p * (tau - mean) ** 2).mean()) == pytest.approx(sigma, rel=1e-4)
    # EDM2, section 3.1.
    assert (exponent(0.05), exponent(0.10)) == (pytest.approx(16.97, abs=0.005), pytest.approx(6.94, abs=0.005))


def test_an_update_adds_the_step_s_part_of_the_profile(run):
    for tree, sigma in zip(run[1], SIGMAS, strict=True):
        np.testing.assert_allclose(tree["a"]["w"], averaged(exponent(sigma)), rtol=1e-5)


@pytest.mark.parametrize("sigma", [0.03, 0.075, 0.15, 0.25])
def test_the_combination_is_the_nearest_with_sum_one(sigma):
    kept = [Average(s, step) for step in (25, 50, 75, 100) for s in SIGMAS]
    x, error = combination(kept, Average(sigma, 100))
    assert x.sum() == pytest.approx(1, abs=1e-9)
    # By quadrature, and no feasible change of the weights makes it smaller.
    tau = (np.arange(100_000) + 0.5) / 100_000
    known = np.array([profile(exponent(s), step / 100, tau) for s, step in kept])
    want = profile(exponent(sigma), 1.0, tau)

    def distance(weights):
        return math.sqrt(((weights @ known - want) ** 2).mean() / (want**2).mean())

    assert distance(x) == pytest.approx(error, rel=1e-3)
    for i in range(len(kept)):
        step = np.full(len(kept), -1e-2 / (len(kept) - 1))
        step[i] = 1e-2
        assert distance(x + step) > error < distance(x - step)


def test_a_kept_average_is_itself():
    kept = [Average(s, step) for step in (50, 100) for s in SIGMAS]
    x, error = combination(kept, Average(SIGMAS[0], 100))
    np.testing.assert_allclose(x, [0, 0, 1, 0], atol=1e-6)
    assert error < 1e-6


@pytest.mark.parametrize("sigma", [0.03, 0.075, 0.15, 0.25])
def test_any_average_comes_from_the_snapshots(run, sigma):
    found = reconstruct(run[0], "a1", sigma, STEPS)
    assert (found.step, found.num_snapshots) == (STEPS, STEPS // EVERY)
    # By Cauchy and Schwarz: the error of the profile times its norm and the deviation of the walk; and of float32.
    want, gamma = averaged(exponent(sigma)), exponent(sigma)
    norm = math.sqrt((gamma + 1) ** 2 / (2 * gamma + 1))
    bound = found.error * norm * np.sqrt(((WALK - want) ** 2).mean(0)) + 1e-5 * np.abs(WALK).max(0)
    assert (np.abs(found.params["a"]["w"] - want) < bound).all()
    assert np.abs(found.params["a"]["w"] - want).max() < 0.05 * np.abs(WALK[-1] - want).max()


def test_only_snapshots_of_the_run_up_to_the_step_count(run, tmp_path):
    found = reconstruct(run[0], "a1", 0.1, 104)
    assert (found.step, found.num_snapshots) == (100, 10)
    np.testing.assert_allclose(found.params["a"]["w"], averaged(exponent(0.1), 100), rtol=1e-4)
    for where, name, step in ((run[0], "b2", STEPS), (run[0], "a1", 9), (tmp_path, "a1", STEPS)):
        with pytest.raises(
            UserError, match=r"there is no snapshot of the run's averages up to step .*ema_snapshot_every"
        ):
            reconstruct(where, name, 0.1, step)
    (tmp_path / power_average.FOLDER).mkdir()
    (tmp_path / power_average.FOLDER / "step_00000010.npz").write_bytes(b"no archive")
    with pytest.raises(UserError, match=r"step_00000010.npz is damaged .*: delete it, and go on without it"):
        reconstruct(tmp_path, "a1", 0.1, STEPS)


@pytest.mark.parametrize(
    ("at", "step", "every", "newest"),
    [
        ([5, 10, 15, 20], 24, 5, None),
        ([5, 10, 15, 20], 25, 5, None),  # its own is damaged and deleted
        ([5, 10, 15, 20], 25, 0, None),  # ended since
        ([5, 10, 15, 20], 40, 0, (20, 5)),
        ([5, 10, 15, 20], 40, 100, None),  # a longer interval from 20 on
        ([5, 10, 15, 20], 12, 0, None),
        ([100, 160, 170], 155, 10, None),  # a shorter one from 150 on
        ([10], 19, 0, None),
        ([10], 4000, 0, (10, 10)),
        ([10], 5, 10, None),  # before the first: `reconstruct` names it
    ],
)
def test_a_step_long_after_the_newest_snapshot_is_known(at, step, every, newest):
    said = power_average.lateness(at, step, every)
    assert bool(said) == (newest is not None)
    if newest:
        assert said.endswith(" is of step {}; they were made every {} steps".format(*newest))


def test_lengths_have_a_range():
    for sigma in (0.0, 0.29):
        with pytest.raises(UserError, match=r"`sigma_rel` is .*; it must be in \(0, 0.28\]"):
            exponent(sigma)


def test_files_of_steps_that_are_taken_again_are_deleted(run, tmp_path):
    shutil.copytree(run[0] / power_average.FOLDER, tmp_path / power_average.FOLDER)
    power_average.drop_after(tmp_path, "b2", 0)
    assert max(power_average.snapshots(tmp_path, "a1")) == STEPS
    power_average.drop_after(tmp_path, "a1", 100)
    assert max(power_average.snapshots(tmp_path, "a1")) == 100
