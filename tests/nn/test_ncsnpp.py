from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hold_jax.condition import Condition
from hold_jax.nn import NCSNpp, check_sides

SMALL = {"channels": 8, "channel_multipliers": (1, 1), "num_res_blocks": 1, "attention_resolutions": ()}
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(2, 4, 4, 3)), jnp.float32)
T = jnp.asarray([-0.5, 0.7], jnp.float32)
LABELS = jnp.asarray([0, 3])


def small(**options):
    return NCSNpp(2, **{**SMALL, **options})


@pytest.fixture(scope="module")
def plain():
    """One network and its parameters for the tests that need no special option."""
    model = small()
    rng = np.random.default_rng(7)
    specs = jax.eval_shape(model.init, jax.random.key(0), X, T)["params"]
    return model, jax.tree.map(lambda s: jnp.asarray(0.3 * rng.normal(size=s.shape), jnp.float32), specs)


def count(model, channels):
    args = jnp.zeros((1, 32, 32, channels)), jnp.zeros(1)
    return sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0), *args)))


@pytest.mark.slow
def test_parameter_counts_on_cifar10():
    # CLD (arXiv:2112.07068) says 108M: six channels in, three out.
    assert count(NCSNpp(3), channels=6) == 107_593_987
    # score_sde's deep NCSN++ has three in: its first convolution and the first of the input pyramid lack 3*9*128 each.
    assert count(NCSNpp(3), channels=3) == 107_593_987 - 2 * 3 * 9 * 128


@pytest.mark.parametrize(
    "options",
    [
        {"attention_resolutions": (2,)},
        pytest.param({"progressive": "output_skip", "progressive_input": "input_skip"}, marks=pytest.mark.slow),
        {
            "fir": False,
            "progressive": "residual",
            "progressive_input": "input_skip",
            "progressive_combine": "cat",
            "embedding": "positional",
            "num_classes": 3,
            "skip_rescale": False,
        },
        pytest.param(
            {"resblock_type": "ddpm", "progressive": "residual", "progressive_input": "none"}, marks=pytest.mark.slow
        ),
        pytest.param(
            {
                "scale_shift": True,
                "resample_shortcut": False,
                "fir": False,
                "attention_up": "every",
                "attention_head_dim": 4,
            },
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {
                "resblock_type": "ddpm",
                "fir": False,
                "resample_with_conv": False,
                "num_classes": 3,
                "conditional": False,
            },
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda options: "-".join(str(value) for value in options.values()),
)
def test_every_parameter_learns(random_params, options):
    model = small(**options)
    args = (X, T, Condition(LABELS) if "num_classes" in options else None)
    params = random_params(model, *args)
    target = jnp.asarray(RNG.normal(size=(2, 4, 4, 2)), jnp.float32)

    def loss(p):
        out = model.apply({"params": p}, *args)
        assert out.shape == target.shape and out.dtype == jnp.float32
        return ((out - target) ** 2).sum()

    grads = jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(params))
    largest = max(np.abs(grad).max() for _, grad in grads)
    for path, grad in grads:
        name = jax.tree_util.keystr(path)
        assert np.all(np.isfinite(grad)), name
        # Fourier frequencies are fixed; a bias of the keys shifts all logits of a query alike, which softmax ignores.
        fixed = "frequencies" in name or "['key']['bias']" in name
        assert (np.abs(grad).max() > 1e-6 * largest) != fixed, name


def test_rows_are_independent_and_conditions_matter(plain):
    model, params = plain
    run = jax.jit(lambda x, t: model.apply({"params": params}, x, t))
    out, other_x, other_t = run(X, T), run(X.at[1].multiply(2), T), run(X, T.at[0].add(0.1))
    np.testing.assert_array_equal(other_x[0], out[0])
    assert np.abs(other_x[1] - out[1]).max() > 1e-2
    np.testing.assert_array_equal(other_t[1], out[1])
    assert np.abs(other_t[0] - out[0]).max() > 1e-2


def test_labels_matter_and_unconditional_ignores_the_noise_level(random_params):
    model = small(num_classes=3, conditional=False)
    params = random_params(model, X, T, Condition(LABELS))
    run = jax.jit(lambda t, labels: model.apply({"params": params}, X, t, Condition(labels)))
    out, other = run(T, LABELS), run(T, LABELS.at[0].set(3))
    np.testing.assert_array_equal(run(T + 1, LABELS), out)
    assert np.abs(other[0] - out[0]).max() > 1e-3
    np.testing.assert_array_equal(other[1], out[1])


@pytest.mark.slow
def test_dropout_acts_in_training_only(plain):
    model, params = plain

    @partial(jax.jit, static_argnums=0)
    def run(train, seed):
        return model.apply({"params": params}, X, T, train=train, rngs={"dropout": jax.random.key(seed)})

    np.testing.assert_array_equal(run(False, 0), run(False, 1))
    np.testing.assert_array_equal(run(True, 0), run(True, 0))
    assert np.abs(run(True, 0) - run(True, 1)).max() > 1e-3
    assert np.abs(run(True, 0) - run(False, 0)).max() > 1e-3


@pytest.mark.slow
def test_remat_changes_neither_output_nor_gradient(random_params):
    model, again = (small(channel_multipliers=(1,), remat=remat) for remat in (False, True))
    params = random_params(model, X, T)

    def loss(model, p):
        rngs = {"dropout": jax.random.key(0)}
        return (model.apply({"params": p}, X, T, train=True, rngs=rngs) ** 2).sum()

    assert "remat" in str(jax.make_jaxpr(lambda p: loss(again, p))(params))
    value, grad = jax.jit(jax.value_and_grad(lambda p: loss(model, p)))(params)
    value_again, grad_again = jax.jit(jax.value_and_grad(lambda p: loss(again, p)))(params)
    np.testing.assert_allclose(value_again, value, rtol=1e-6)
    # A key's bias has gradient zero up to rounding, hence `atol`.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * value), grad_again, grad)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "error"), [(jnp.bfloat16, 0.03), (jnp.float16, 0.004)])
def test_half_precision_is_close_with_float32_parameters(random_params, dtype, error):
    full, half = small(progressive="output_skip"), small(progressive="output_skip", dtype=dtype)
    params = random_params(full, X, T)
    specs = jax.eval_shape(half.init, jax.random.key(0), X, T)["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(specs)} == {jnp.dtype("float32")}
    a, b = (jax.jit(model.apply)({"params": params}, X, T) for model in (full, half))
    assert b.dtype == jnp.float32
    assert 0 < np.linalg.norm(a - b) < error * np.linalg.norm(a)


def test_bfloat16_sees_noise_below_its_own_resolution(random_params):
    model = small(dtype=jnp.bfloat16, progressive_input="none", channel_multipliers=(1,))
    x = jnp.ones_like(X)
    nudged = x * (1 + RNG.choice([-1, 1], size=X.shape) * 2.0**-10)
    np.testing.assert_array_equal(nudged.astype(jnp.bfloat16), 1)
    params = random_params(model, X, T)
    run = jax.jit(lambda x: model.apply({"params": params}, x, T))
    assert np.abs(run(nudged) - run(x)).max() > 0


def test_starts_near_zero(plain):
    model, params = plain
    head = jax.jit(lambda key: model.init(key, X, T)["params"]["head"])(jax.random.key(0))
    assert 0 < np.abs(jax.jit(model.apply)({"params": {**params, "head": head}}, X, T)).max() < 1e-4


def test_attention_goes_by_the_longer_side():
    model = small(attention_resolutions=(2,))

    def attends(height, width):
        specs = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, height, width, 3)), jnp.zeros(1))
        return {name for name in specs["params"] if "attention" in name}

    assert attends(4, 2) == attends(2, 4) == {"down1_attention0", "mid_attention", "up1_attention"}
    assert attends(4, 8) == {"mid_attention"}


@pytest.mark.slow
def test_rectangular_image_equals_its_transpose_under_transposed_kernels(random_params):
    model = small()
    x = jnp.asarray(RNG.normal(size=(2, 4, 8, 3)), jnp.float32)
    params = random_params(model, x, T)
    transposed = jax.tree.map(lambda a: a.swapaxes(0, 1) if a.ndim == 4 else a, params)
    out = jax.jit(model.apply)({"params": params}, x, T)
    out_t = jax.jit(model.apply)({"params": transposed}, x.swapaxes(1, 2), T)
    np.testing.assert_allclose(out_t.swapaxes(1, 2), out, atol=1e-4)


def test_check_sides_names_the_side_and_the_nearest_sizes():
    check_sides((32, 24), num_levels=4)
    check_sides((31, 1), num_levels=1)
    with pytest.raises(ValueError, match=r"`height` is 30; .* multiple of 8 .* nearest: 24 or 32"):
        check_sides((30, 32), num_levels=4)
    with pytest.raises(ValueError, match=r"`width` is 3; .* nearest: 8$"):
        check_sides((32, 3), num_levels=4)
    with pytest.raises(ValueError, match=r"`height` is 0; .* nearest: 8$"):
        check_sides((0, 32), num_levels=4)
    with pytest.raises(ValueError, match=r"`width` is 5; .* nearest: 4 or 6"):
        small().init(jax.random.key(0), jnp.zeros((1, 4, 5, 3)), jnp.zeros(1))


def test_errors_name_argument_value_and_choices():
    with pytest.raises(ValueError, match=r"`resblock_type` is 'bigan' \(did you mean 'biggan'.*biggan, ddpm"):
        small(resblock_type="bigan")
    with pytest.raises(ValueError, match=r"`progressive_input` is 'output_skip'.*input_skip, none, residual"):
        small(progressive_input="output_skip")
    with pytest.raises(ValueError, match=r"`dropout` is 1.0; it must be in \[0, 1\)"):
        small(dropout=1.0)
    with pytest.raises(ValueError, match=r"`noise_cond` is \(\)"):
        small().init(jax.random.key(0), X, jnp.float32(0))
    with pytest.raises(ValueError, match=r"`x` is \(4, 3\)"):
        small().init(jax.random.key(0), X[0, 0], T)
