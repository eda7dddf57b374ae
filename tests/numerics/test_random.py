import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hold_jax.errors import UserError
from hold_jax.numerics.random import class_of, per_example, require_key, subset


@pytest.mark.parametrize("index", [None, (5, 0, 7)])
def test_draws_for_a_batch_are_those_of_the_whole_shape(index):
    key, shape = jax.random.key(3), (3, 2, 5, 3, 1)
    found = per_example(jax.random.normal, key, shape, None if index is None else jnp.array(index))
    want = (
        jax.random.normal(key, shape)
        if index is None
        else jnp.stack([jax.random.normal(jax.random.fold_in(key, i), shape[1:]) for i in index])
    )
    np.testing.assert_array_equal(found, want)


def test_a_subset_is_part_of_every_larger_one_and_all_is_a_permutation():
    whole = subset(1000, 1000)
    assert sorted(whole) == list(range(1000))
    for size in (0, 1, 20, 999):
        np.testing.assert_array_equal(subset(1000, size), whole[:size])
    np.testing.assert_array_equal(subset(1000, 5000), whole)
    assert list(subset(1000, 20, seed=1)) != list(whole[:20])


def test_a_subset_of_an_ordered_set_has_its_proportions():
    """The first 200 of 1,000 rows sorted by class would be of one class."""
    classes = np.repeat(np.arange(2), 500)
    ones = classes[subset(1000, 200)].sum()
    assert abs(ones - 100) < 4 * np.sqrt(200 / 4)


@pytest.mark.parametrize("counts", [(1,), (1, 1), (3, 0, 1), (0, 5, 0, 0), (1, 10**6), tuple(range(1, 1001))])
def test_classes_keep_to_their_shares_among_any_numbers_in_a_row(counts):
    share = np.array(counts) / sum(counts)
    for start, num in ((0, 50), (17, 1000), (10**6, 30_000), (2**31 - 1000, 1000)):
        index = np.arange(start, start + num, dtype=np.int64).astype(np.int32)
        found = np.bincount(class_of(jnp.asarray(index), counts), minlength=len(counts))
        np.testing.assert_allclose(found, num * share, atol=5)
        assert not found[share == 0].any()


def test_raw_keys_of_every_implementation_are_keys():
    for name in ("threefry2x32", "rbg", "threefry2x32"):
        with jax.default_prng_impl(name):
            require_key(jax.random.PRNGKey(0))
            require_key(jax.random.key(0))
    with pytest.raises(UserError, match=r"`key` is .* one key of JAX"):
        require_key(jnp.zeros(7, jnp.uint32))
