"""EDM's augmentation against closed forms and against numbers of EDM's own code, at shared random numbers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hold_jax.data import augment
from hold_jax.data.augment import Transforms, draw_transforms, labels, transform
from hold_jax.errors import UserError

HEIGHT, WIDTH = 8, 12
WAVELET = augment._WAVELET
# Rows: flip_x, flip_y, scale, angle, stretch, axis, shift x, shift y.
CHANGES = np.array([
    [1, 0, 0.7, 0.0, 0.0, 0.0, 0.0, 0.0],
    [0, 1, 0.0, 0.6, -1.2, 0.9, 0.0, 0.0],
    [1, 1, -0.9, -2.5, 1.1, -0.4, 1.3, -0.6],
], np.float32)  # fmt: skip
# EDM's AugmentPipe (008a4e5) for `picture()` and these changes: rows 1, 5 and columns 1, 5, 9 of both channels.
RECORDED = np.array([
    [-1.045744, 0.566164, 0.757779, 0.857083, 0.991745, 1.124552, -0.855545, -0.278240, -0.497393, 0.220048, -0.524933,
     0.186051],
    [-0.863012, 0.530765, -1.244625, 0.078606, 0.813143, 0.500980, -0.029223, 1.284201, -0.413925, 0.795938, -0.487308,
     -1.110048],
    [-0.495224, 0.020065, -0.223742, 0.702136, -0.717865, 0.740881, -0.480446, -0.685126, 0.914397, -0.172289,
     -0.059821, -0.797599],
])  # fmt: skip


def changes(rows):
    """`Transforms` of an array (B, 8)."""
    rows = jnp.asarray(rows, jnp.float32)
    return Transforms(*(rows[:, i] for i in range(6)), rows[:, 6:])


def change(**values):
    """`Transforms` of one picture."""
    zero = {name: jnp.zeros((1, 2) if name == "shift" else (1,)) for name in Transforms._fields}
    return Transforms(**zero | {name: jnp.asarray([value], jnp.float32) for name, value in values.items()})


def picture(num=1):
    shape = (num, HEIGHT, WIDTH, 2)
    return np.random.RandomState(0).standard_normal(shape).astype(np.float32)


apply = jax.jit(transform)


def test_the_wavelet_is_orthogonal_with_six_vanishing_moments():
    product = np.correlate(WAVELET, WAVELET, "full")[len(WAVELET) - 1 :: 2]  # with itself, moved by 0, 2, 4, ...
    np.testing.assert_allclose(product, np.eye(6)[0], atol=1e-12)
    assert WAVELET.sum() == pytest.approx(math.sqrt(2), abs=1e-12)
    k = np.arange(len(WAVELET)) / len(WAVELET)
    for power in range(6):
        assert abs(((-1.0) ** np.arange(len(WAVELET)) * WAVELET * k**power).sum()) < 1e-9


@pytest.mark.parametrize(("right", "down"), [(0, 0), (3, 0), (0, -2), (-4, 4), (8, 3)])
def test_whole_pixels_are_moved_exactly_and_mirrored_at_the_border(right, down):
    x = picture()
    shift = [right / (0.125 * WIDTH), down / (0.125 * HEIGHT)]

    def mirrored(index, side):
        return (side - 1) - np.abs((side - 1) - index % (2 * side - 2))

    want = x[:, mirrored(np.arange(HEIGHT) - down, HEIGHT)][:, :, mirrored(np.arange(WIDTH) - right, WIDTH)]
    np.testing.assert_allclose(apply(x, change(shift=shift)), want, atol=1e-5)
    # Flips come first.
    both = change(shift=shift, flip_x=1.0, flip_y=1.0)
    np.testing.assert_allclose(apply(x[:, ::-1, ::-1], both), want, atol=1e-5)


@pytest.mark.parametrize(
    ("values", "matrix"),
    [
        ({"scale": 1.5}, np.eye(2) * 2**-0.3),  # larger
        ({"angle": math.pi / 2}, [[0, -1], [1, 0]]),  # what is right of the center was below it
        ({"angle": 0.4}, [[math.cos(0.4), -math.sin(0.4)], [math.sin(0.4), math.cos(0.4)]]),
        ({"stretch": -1.0}, np.diag([2**0.2, 2**-0.2])),  # narrower, taller
        ({"stretch": 2.0, "axis": math.pi / 2}, np.diag([2**0.4, 2**-0.4])),
        ({"scale": -0.5, "angle": math.pi, "stretch": 1.0}, -(2**0.1) * np.diag([2**-0.2, 2**0.2])),
    ],
)
def test_a_ramp_of_gray_is_a_ramp_again(values, matrix):
    # The filters keep affine functions, at twice the resolution moved by a constant: so the result is known exactly.
    side = 33
    offset = (len(WAVELET) // 2 - 1 - (np.arange(len(WAVELET)) * WAVELET).sum() / math.sqrt(2)) / 2
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    ramp = np.stack([x, y], axis=-1).astype(np.float32)
    got = np.asarray(apply(ramp[None], change(**values)))[0]
    # Pixel q shows matrix (q - offset) + offset.
    want = np.einsum("ij,yxj->yxi", matrix, ramp - offset) + offset
    inner = slice(side // 2 - 4, side // 2 + 5)  # the mirrored border is no ramp
    np.testing.assert_allclose(got[inner, inner], want[inner, inner], atol=2e-5)


def test_edm_s_own_pictures_and_labels():
    x = np.repeat(picture(), len(CHANGES), axis=0)
    got = np.asarray(apply(x, changes(CHANGES)))[:, 1::4, 1::4].reshape(len(CHANGES), -1)
    np.testing.assert_allclose(got, RECORDED, atol=2e-5)
    want = [
        [1, 0, 0.7, 0, 0, 0, 0, 0, 0],
        [0, 1, 0, math.cos(0.6) - 1, math.sin(0.6), -1.2 * math.cos(0.9), -1.2 * math.sin(0.9), 0, 0],
        [1, 1, -0.9, math.cos(2.5) - 1, -math.sin(2.5), 1.1 * math.cos(0.4), -1.1 * math.sin(0.4), 1.3, -0.6],
    ]
    np.testing.assert_allclose(labels(changes(CHANGES)), want, atol=1e-6)


def test_each_transform_is_drawn_with_its_probability():
    num, probability = 40_000, 0.12
    t = draw_transforms(jax.random.key(0), num, probability)
    share = {
        "flip_x": 0.5, "flip_y": probability / 2, "scale": probability, "angle": probability, "stretch": probability,
        "axis": 0.5, "shift": probability,
    }  # fmt: skip
    for name, value in t._asdict().items():
        found = np.asarray(value).reshape(num, -1)
        drawn = (found != 0).all(axis=1)
        p = share[name]
        assert abs(drawn.mean() - p) < 5 * math.sqrt(p * (1 - p) / num), name
        assert (drawn == (found != 0).any(axis=1)).all()  # both shifts or none
        deviation = {"flip_x": 0.0, "flip_y": 0.0, "angle": math.pi / math.sqrt(3), "axis": math.pi / math.sqrt(3)}
        of_drawn = found[drawn]
        assert of_drawn.std() == pytest.approx(deviation.get(name, 1.0), rel=0.05), name
        assert abs(of_drawn.mean() - (1.0 if "flip" in name else 0.0)) < 0.08, name
    # Independent of each other.
    table = np.asarray(labels(t))
    correlation = np.corrcoef(table.T) - np.eye(augment.NUM_LABELS)
    correlation[3, 4] = correlation[4, 3] = 0  # cosine and sine of one angle
    assert np.abs(correlation).max() < 5 / math.sqrt(num * probability)


def test_only_pictures_have_this_shape():
    for shape in ((2, 8), (2, 16, 1), (2, 1, 8, 3)):
        with pytest.raises(UserError, match=r"`x` is \(2, .*; it must be the shape \(B, H, W, C\) of pictures"):
            transform(jnp.zeros(shape), draw_transforms(jax.random.key(0), 2, 0.1))
