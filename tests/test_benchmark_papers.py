"""What the papers' benchmarks compute, against the tests' own oracle."""

import numpy as np
import pytest
from reference import oracle
from reference.propagate import denoised, gaussian_row, propagate, propagate_poisson
from samplers.suite import hold

from benchmarks import gaussian
from hold_jax import samplers, sde

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
