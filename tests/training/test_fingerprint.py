import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training import small

from hold_jax.training.fingerprint import fingerprints

marks = jax.jit(fingerprints)


def tree(seed=0):
    keys = jax.random.split(jax.random.key(seed), 4)
    return {
        "w": jax.random.normal(keys[0], (3, 5, 7)),
        "half": jax.random.normal(keys[1], (16,), jnp.bfloat16),
        "deep": [jnp.int32(-3), jnp.zeros((2, 3)), jnp.zeros((0, 4))],
        "key": jax.random.key(5),
    }


def in_numpy(array):
    """The docstring, element by element, in Python's integers."""
    array = np.asarray(array)
    bits = array.reshape(-1).view(f"uint{8 * array.dtype.itemsize}").tolist() if array.size else []
    total = 0
    for place, word in enumerate(bits):
        h = (word + place * 0x9E3779B9) % 2**32
        h = (h ^ (h >> 16)) * 0x85EBCA6B % 2**32
        h = (h ^ (h >> 13)) * 0xC2B2AE35 % 2**32
        total += h ^ (h >> 16)
    return total % 2**32


def test_marks_are_the_formula_by_path():
    arrays = small.to_host(tree())
    want = {"w": arrays["w"], "half": arrays["half"], "key": arrays["key"]} | {
        f"deep/{i}": a for i, a in enumerate(arrays["deep"])
    }
    assert {name: int(mark) for name, mark in marks(tree()).items()} == {n: in_numpy(a) for n, a in want.items()}


@pytest.mark.parametrize("name", ["w", "half"])
def test_every_single_bit_shows_and_only_there(name):
    whole = np.asarray(tree()[name])
    words = whole.reshape(-1).view(f"uint{8 * whole.dtype.itemsize}")
    before = marks(tree())
    seen = set()
    for place in range(words.size):
        for bit in (0, 7, 8 * whole.dtype.itemsize - 1):
            changed = words.copy()
            changed[place] ^= np.array(1, words.dtype) << np.array(bit, words.dtype)
            after = marks(tree() | {name: jnp.asarray(changed.view(whole.dtype).reshape(whole.shape))})
            assert {n for n in after if int(after[n]) != int(before[n])} == {name}
            seen.add(int(after[name]))
    assert len(seen) == 3 * words.size


def test_order_and_zeros_count():
    a = jnp.arange(6.0)
    found = [int(marks({"a": x})["a"]) for x in (a, a[::-1], a.at[0].set(-0.0), jnp.pad(a, (0, 1)))]
    assert len(set(found)) == 4


def test_spread_over_devices_or_copied_the_mark_is_one():
    devices = small.devices(8)
    a = np.random.default_rng(0).standard_normal((16, 5), np.float32)
    placed = (jax.device_put(a, devices.batch()), jax.device_put(a, devices.replicated), jnp.asarray(a))
    assert {int(marks({"a": x})["a"]) for x in placed} == {in_numpy(a)}
