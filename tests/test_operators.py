import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hold_jax import operators
from hold_jax.errors import UserError

SHAPE = (6, 4, 3)
SIZE = 72
RNG = np.random.default_rng(0)
MASK = RNG.uniform(size=SHAPE) < 0.4
KERNEL = RNG.normal(size=(3, 2))
MATRIX = RNG.normal(size=(9, SIZE))
MATRIX[-1] = MATRIX[0] - 2 * MATRIX[1]  # rank 8


def averages(factor):
    """Block means of (6, 4, 3), entry by entry."""
    matrix = np.zeros((6 // factor, 4 // factor, 3, *SHAPE))
    for i, j, c in np.ndindex(SHAPE):
        matrix[i // factor, j // factor, c, i, j, c] = 1 / factor**2
    return matrix.reshape(-1, SIZE)


def convolution(kernel):
    """The periodic convolution with a kernel whose middle is at size // 2, entry by entry."""
    matrix = np.zeros((*SHAPE, *SHAPE))
    for i, j, c in np.ndindex(SHAPE):
        for a, b in np.ndindex(kernel.shape):
            to = (i + a - kernel.shape[0] // 2) % SHAPE[0], (j + b - kernel.shape[1] // 2) % SHAPE[1], c
            matrix[(*to, i, j, c)] += kernel[a, b]
    return matrix.reshape(-1, SIZE)


def gaussian_kernel(std):
    rows, columns = (np.exp(-0.5 * (np.arange(-half, half + 1) / std) ** 2) for half in (2, 1))
    return np.outer(rows / rows.sum(), columns / columns.sum())


def cosines(share, seed):
    """Rows of the orthonormal cosine transform, by its definition, of permuted values with signs."""
    rng = np.random.default_rng(seed)
    order, signs = rng.permutation(SIZE), rng.choice([-1.0, 1.0], SIZE)
    rows = np.sort(rng.permutation(SIZE)[: round(share * SIZE)])
    k, n = np.arange(SIZE)[:, None], np.arange(SIZE)
    transform = np.sqrt((1 + (k > 0)) / SIZE) * np.cos(np.pi * k * (2 * n + 1) / (2 * SIZE))
    return (transform * signs)[rows] @ np.eye(SIZE)[order]


CASES = {
    "inpainting": (operators.inpainting(SHAPE, MASK), np.diag(MASK.ravel().astype(float))),
    "superresolution": (operators.superresolution(SHAPE, 2), averages(2)),
    "colorization": (operators.colorization(SHAPE), np.kron(np.eye(24), np.full((1, 3), 1 / 3))),
    "gaussian blur": (operators.deblurring(SHAPE, 0.8), convolution(gaussian_kernel(0.8))),
    "any blur": (operators.deblurring(SHAPE, KERNEL), convolution(KERNEL)),
    "compressed_sensing": (operators.compressed_sensing(SHAPE, 0.3, seed=4), cosines(0.3, 4)),
    "matrix": (operators.linear(SHAPE, MATRIX), MATRIX),
}
every_case = pytest.mark.parametrize(("operator", "matrix"), CASES.values(), ids=CASES)


@every_case
def test_the_maps_are_those_of_the_matrix(operator, matrix):
    x, y = RNG.normal(size=(3, *SHAPE)), RNG.normal(size=(3, *operator.measured_shape))
    forward, transposed = jax.jit(lambda x, y: (operator.forward(x), operator.transpose(y)))(
        jnp.float32(x), jnp.float32(y)
    )
    assert forward.shape == y.shape and transposed.shape == x.shape
    scale = 1e-6 * np.abs(matrix).sum(axis=1).max()
    np.testing.assert_allclose(forward.reshape(3, -1), x.reshape(3, -1) @ matrix.T, atol=4 * scale)
    scale = 1e-6 * max(np.abs(matrix).sum(axis=0).max(), 1)
    np.testing.assert_allclose(transposed.reshape(3, -1), y.reshape(3, -1) @ matrix, atol=4 * scale)
    assert operator.num_known[0] == (MASK.sum() if operator.known is not None else len(matrix))


@every_case
def test_solve_inverts_the_matrix_of_the_measurement(operator, matrix):
    y = RNG.normal(size=(3, *operator.measured_shape))
    y = np.asarray(operator.of_known(jnp.asarray(y, jnp.float32)), np.float64)
    signal = np.array([0.2, 3.0, 0.01])
    for noise in (0.3, np.array([0.1, 0.05, 0.02])):
        got = jax.jit(operator.solve)(jnp.float32(y), jnp.float32(signal), jnp.float32(noise)).reshape(3, -1)
        for i in range(3):
            whole = signal[i] * matrix @ matrix.T + np.broadcast_to(noise, 3)[i] * np.eye(len(matrix))
            want = np.linalg.solve(whole, y[i].ravel())
            np.testing.assert_allclose(got[i], want, atol=1e-5 * np.abs(want).max())


@pytest.mark.slow
@every_case
def test_solve_without_noise_gives_the_pseudo_inverse(operator, matrix):
    x = RNG.normal(size=(2, SIZE))
    y = jnp.asarray((x @ matrix.T).reshape(2, *operator.measured_shape), jnp.float32)
    got = operator.transpose(operator.solve(y, 1.0, 0.0)).reshape(2, -1)
    # The blur with a kernel of noise has small Fourier factors: float32 is divided by their squares.
    lost = 1e-6 / operator.eigenvalues[operator.eigenvalues > 0].min()
    np.testing.assert_allclose(got, (np.linalg.pinv(matrix) @ matrix @ x.T).T, atol=1e-5 + lost)


def test_a_blur_s_lost_frequencies_are_not_restored():
    # A Gaussian of 2 pixels keeps 3e-9 of the highest frequency: float64 rounds its Fourier factor to 1e-17 at random.
    operator = operators.deblurring((32, 32, 1), 2.0)
    x = jnp.asarray(RNG.normal(size=(2, 32, 32, 1)), jnp.float32)
    y = operator.forward(x)
    solution = operator.solve(y, 1.0, 0.0)
    restored = operator.transpose(solution)
    assert 1 < jnp.abs(restored).max() < jnp.abs(x).max()
    # The data over the smallest factor is a solution of 6e4, which float32 rounds.
    np.testing.assert_allclose(operator.forward(restored), y, atol=2**-24 * float(jnp.abs(solution).max()))


def test_measurements_have_the_noise_they_are_given():
    operator = operators.superresolution([64, 64, 1], 4)
    x = jnp.asarray(RNG.normal(size=(40, 64, 64, 1)), jnp.float32)
    clean = operator.measure(x)
    noisy = operator.measure(x, 0.25, jax.random.key(3))
    error = np.asarray(noisy - clean)
    # 10,240 values: four standard errors of the deviation.
    assert np.std(error) == pytest.approx(0.25, abs=4 * 0.25 / np.sqrt(2 * error.size))
    assert abs(error.mean()) < 4 * 0.25 / np.sqrt(error.size)
    hidden = operators.inpainting(SHAPE, MASK).measure(jnp.ones((2, *SHAPE)), 0.1, jax.random.key(0))
    assert not np.asarray(hidden)[:, ~MASK].any() and np.asarray(hidden)[:, MASK].all()


def test_signals_and_each_example_s_own_mask():
    means = operators.superresolution((8, 2), 4)
    x = jnp.arange(16.0).reshape(1, 8, 2)
    np.testing.assert_allclose(means.forward(x)[0], np.arange(16.0).reshape(2, 4, 2).mean(axis=1))
    masks = np.stack([MASK, ~MASK])
    operator = operators.inpainting(SHAPE, masks)
    x = jnp.ones((2, *SHAPE))
    np.testing.assert_array_equal(operator.forward(x), masks)
    np.testing.assert_array_equal(operator.num_known, [MASK.sum(), SIZE - MASK.sum()])
    np.testing.assert_array_equal(
        operators.inpainting((4,), [1, 0, 0, 1]).forward(jnp.ones((2, 4))), [[1, 0, 0, 1]] * 2
    )


WRONG = {
    "mask": (
        lambda: operators.inpainting(SHAPE, np.ones((5, 4, 3))),
        "`mask` is (5, 4, 3); it must be broadcastable to the data's shape, (6, 4, 3)",
    ),
    "deep mask": (
        lambda: operators.inpainting(SHAPE, np.ones((1, 2, 6, 4, 3))),
        "`mask` is (1, 2, 6, 4, 3); it must be broadcastable to the data's shape, (6, 4, 3)",
    ),
    "a text for a shape": (
        lambda: operators.colorization("44"),
        "`data_shape` is '44'; it must be (*S, C), such as (64, 64, 3)",
    ),
    "a number for a shape": (
        lambda: operators.linear(16, np.eye(16)),
        "`data_shape` is 16; it must be (*S, C), such as (64, 64, 3)",
    ),
    "complex kernel": (
        lambda: operators.deblurring(SHAPE, np.full((3, 3), 1j)),
        "`blur` is 'of type complex128'; it must be of real numbers",
    ),
    "complex matrix": (
        lambda: operators.linear((2,), [[1j, 1]]),
        "`matrix` is 'of type complex128'; it must be of real numbers",
    ),
    "zero kernel": (
        lambda: operators.deblurring(SHAPE, np.zeros((3, 3))),
        "`blur` is 'zero everywhere'; it must be of some value other than 0",
    ),
    "zero matrix": (
        lambda: operators.linear((2,), np.zeros((1, 2))),
        "`matrix` is 'zero everywhere'; it must be of some value other than 0",
    ),
    "empty mask": (
        lambda: operators.inpainting(SHAPE, 0),
        "`mask` is 'zero everywhere'; it must be 1 where the data are known",
    ),
    "soft mask": (
        lambda: operators.inpainting(SHAPE, np.full(SHAPE, 0.5)),
        "`mask` is 'of other values'; it must be 1, 255 or True where known, 0 where unknown",
    ),
    "factor": (
        lambda: operators.superresolution(SHAPE, 4),
        "`factor` is 4; it must be 2 or more and a divisor of 6, 4",
    ),
    "vectors": (
        lambda: operators.superresolution((8,), 4),
        "`data_shape` is (8,); it must be (*S, C) with axes S for superresolution, such as (H, W, C)",
    ),
    "gray": (
        lambda: operators.colorization((6, 4, 1)),
        "`channels` is 1; it must be 2 or more to colorize",
    ),
    "blur": (
        lambda: operators.deblurring(SHAPE, 0.0),
        "`blur` is 0.0; it must be positive",
    ),
    "kernel": (
        lambda: operators.deblurring(SHAPE, np.ones((3, 5))),
        "`blur` is (3, 5); it must be a number, or a kernel of at most 6, 4 values",
    ),
    "NaN kernel": (
        lambda: operators.deblurring(SHAPE, np.full((3, 3), np.nan)),
        "`blur` is 'not finite'; it must be finite",
    ),
    "share": (
        lambda: operators.compressed_sensing(SHAPE, 0.001),
        "`share` is 0.001; it must be at most 1 and at least 0.0139: one of the 72 values",
    ),
    "matrix": (
        lambda: operators.linear(SHAPE, np.ones((3, 71))),
        "`matrix` is (3, 71); it must be of shape (m, 72), m >= 1",
    ),
    "NaN matrix": (
        lambda: operators.linear((2,), [[np.nan, 1]]),
        "`matrix` is 'not finite'; it must be finite",
    ),
    "data": (
        lambda: CASES["matrix"][0].measure(np.zeros((2, 6, 4, 1))),
        "`x` is (2, 6, 4, 1); it must be of shape (B, 6, 4, 3)",
    ),
    "bytes": (
        lambda: CASES["matrix"][0].measure(np.zeros((2, 6, 4, 3), np.uint8)),
        "`x` is 'uint8'; it must be floating, in the model's range: `hold_jax.data.to_model_range(x)`",
    ),
    "noise": (
        lambda: CASES["matrix"][0].measure(np.zeros((2, 6, 4, 3)), 5.0),
        "`key` is None; it must be given with noise = 5.0: it draws the noise",
    ),
    "infinite noise": (
        lambda: CASES["matrix"][0].measure(np.zeros((2, 6, 4, 3)), np.inf, jax.random.key(0)),
        "`noise` is inf; it must be 0 or positive",
    ),
    "a seed": (
        lambda: CASES["matrix"][0].measure(np.zeros((2, 6, 4, 3)), 0.1, 0),
        "`key` is 0; it must be one key of JAX, such as jax.random.key(0)",
    ),
    "negative noise": (
        lambda: CASES["matrix"][0].measure(np.zeros((2, 6, 4, 3)), -1.0),
        "`noise` is -1.0; it must be 0 or positive",
    ),
}


@pytest.mark.parametrize(("act", "message"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_named(act, message):
    with pytest.raises(UserError) as caught:
        act()
    assert str(caught.value) == message


def test_a_factor_of_numpy_is_a_whole_number():
    assert operators.superresolution(SHAPE, np.int64(2)).measured_shape == (3, 2, 3)
