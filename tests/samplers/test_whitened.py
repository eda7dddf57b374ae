import numpy as np
import pytest
from reference import oracle
from samplers.suite import errors, hold

from hold_jax import sde
from hold_jax.samplers import Heun, whitened
from hold_jax.samplers.whitened import GAUGES

SDES = {
    **{f"hold{n}": hold(n) for n in (1, 2, 3, 4)},
    "told": sde.hold(damping="told"),
    "psld": sde.psld(),
}
# With complex eigenvalues the last entry of w changes sign, at B = 1.8, 2.6, 4.0, ...
UNDERDAMPED = sde.hold(order=3, gammas=(2.0, 2.0), xi=1.0)
every_sde = pytest.mark.parametrize("m", SDES.values(), ids=SDES)
with_underdamped = pytest.mark.parametrize("m", [*SDES.values(), UNDERDAMPED], ids=[*SDES, "underdamped"])
every_gauge = pytest.mark.parametrize("gauge", GAUGES)
B = np.array([5.0, 2.0, 1.0, 0.3, 0.05, 0.01])


@with_underdamped
@every_gauge
def test_every_gauge_is_a_factor_of_the_covariance(gauge, m):
    at = whitened.whitening(m, B, gauge)
    for i, b in enumerate(B):
        phi, chol = oracle.marginal(m, b)
        # Whitened by the 80-digit factor, where an error of 1e-13 in a graded entry may be one of 1e-10.
        turn = at.factor[i].astype(object) @ np.eye(m.order)
        turn = (oracle.inverse_lower(chol) @ turn).astype(np.float64)
        np.testing.assert_allclose(turn @ turn.T, np.eye(m.order), atol=1e-9)
        np.testing.assert_allclose((at.inverse[i] @ chol).astype(np.float64), turn.T, atol=1e-9)
        w = (oracle.inverse_lower(chol) @ phi[:, 0]).astype(np.float64)
        np.testing.assert_allclose(at.mean[i], turn.T @ w, atol=1e-9 * np.linalg.norm(w))
        assert at.log_noise[i] == pytest.approx(np.log(oracle.effective_noise(m, b)), abs=1e-10)
        if gauge == "cholesky":
            np.testing.assert_allclose(turn, np.eye(m.order), atol=1e-9)


@with_underdamped
def test_in_the_signal_gauge_one_coordinate_moves(m):
    # Always the last axis, and always the same side of it: a jump of w would be taken for a step of the data.
    at = whitened.whitening(m, np.geomspace(1e-3, 6.0, 200), "signal")
    direction = at.mean * np.exp(at.log_noise)[:, None]
    want = np.eye(m.order)[-1] * direction[0, -1]
    np.testing.assert_allclose(direction, np.broadcast_to(want, direction.shape), atol=1e-9)


@with_underdamped
def test_the_probability_flow_gauge_flows_with_the_process(m):
    # dR = (F R + 1/2 G G' R^-T) dB (gDDIM, 2206.05564, eq. 17), by central differences.
    b = np.array([2.0, 1.0, 0.3, 0.05])
    step = 1e-4 * b
    at = whitened.whitening(m, np.concatenate([b - step, b, b + step]), "probability_flow")
    before, here, after = at.factor.reshape(3, len(b), m.order, m.order)
    slope = (after - before) / (2 * step)[:, None, None]
    inverse = at.inverse.reshape(3, len(b), m.order, m.order)[1]
    want = m.F @ here + m.G @ m.G.T @ np.swapaxes(inverse, -1, -2) / 2
    # dR/dB and R are compared where they are of order one: whitened, and times B.
    whiten = inverse * b[:, None, None]
    np.testing.assert_allclose(whiten @ slope, whiten @ want, atol=1e-5)


@every_sde
@every_gauge
@pytest.mark.parametrize("churn", [0.0, 0.5, 100.0])
def test_a_constant_is_integrated_exactly(churn, gauge, m):
    # The measure's total over a step is what omega moves by, w_t - e^{-churn h} w_s: in the gauge of the ends.
    at = whitened.whitening(m, B, gauge)
    total = whitened.quadrature(m, at, B, gauge, churn).measure.sum(axis=1)
    want = at.mean[1:] - np.exp(churn * np.diff(at.log_noise))[:, None] * at.mean[:-1]
    scale = np.linalg.norm(at.mean[1:], axis=-1, keepdims=True)
    np.testing.assert_allclose(total / scale, want / scale, atol=1e-10)


@pytest.mark.parametrize("m", [SDES["hold2"], SDES["hold4"], SDES["psld"]], ids=["hold2", "hold4", "psld"])
@every_gauge
def test_the_measure_moves_along_the_path_of_w(gauge, m):
    # The first moment too, int l dw = [l w] - int w dl, by the trapezium rule on a fine path of the gauge itself.
    ends = B[2:5]
    at = whitened.whitening(m, ends, gauge)
    rule = whitened.quadrature(m, at, ends, gauge, 0.0)
    got = np.einsum("ng,ngi->ni", rule.log_noise, rule.measure)
    for i in range(len(ends) - 1):
        # The path starts where the grid's does, at the smallest B, to be in the same gauge.
        path = np.append(np.geomspace(ends[i], ends[i + 1], 4001), ends[-1])
        fine = whitened.whitening(m, path, gauge)
        l, w = fine.log_noise[:-1, None], fine.mean[:-1]
        want = (((l[1:] + l[:-1]) / 2) * np.diff(w, axis=0)).sum(axis=0)
        np.testing.assert_allclose(got[i], want, atol=1e-5 * np.abs(want).max())


@every_gauge
def test_heun_converges_where_the_last_entry_of_w_changes_sign(gauge):
    # By exact propagation over two of the sign changes.
    gaps = []
    for num_steps in (64, 128):
        gaps.append(errors(Heun(gauge=gauge), UNDERDAMPED, np.linspace(4.3, 1.2, num_steps + 1)))
    assert gaps[1][0] < gaps[0][0] / 3 and gaps[1][1] < 1e-9


def test_an_unknown_gauge_is_named():
    with pytest.raises(ValueError, match=r"`gauge` is 'cholesk' .did you mean 'cholesky'"):
        whitened.check_gauge("cholesk")
