"""Value ranges and the prefetching thread."""

import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hold_jax import data


def workers():
    return [t for t in threading.enumerate() if t.name == "prefetch"]


def test_model_range_of_every_byte_and_back():
    bytes_ = np.arange(256, dtype=np.uint8)
    x = jax.jit(data.to_model_range)(bytes_)
    assert x.dtype == jnp.float32
    np.testing.assert_allclose(x, np.arange(256) / 127.5 - 1, atol=1e-7)
    back = data.from_model_range(x)
    assert back.dtype == jnp.uint8
    np.testing.assert_array_equal(back, bytes_)


def test_from_model_range_rounds_and_clips():
    x = np.array([-7.0, -1.0, -0.0001, 0.0001, 1.0, 1.01, 1e9], np.float32)
    np.testing.assert_array_equal(data.from_model_range(x), [0, 0, 127, 128, 255, 255, 255])


def test_vectors_keep_their_values():
    x = np.array([[-3.0, 2.5]], np.float32)
    y = data.to_model_range(x)
    np.testing.assert_array_equal(y, x)
    assert isinstance(y, jax.Array)


def test_other_dtypes_are_refused():
    with pytest.raises(ValueError, match="'int32'; it must be uint8 or float32"):
        data.to_model_range(np.zeros(3, np.int32))


def test_prefetch_keeps_order_and_applies_put_in_a_thread():
    threads = set()

    def put(batch):
        threads.add(threading.current_thread())
        return {"x": batch["x"] * 2}

    got = [b["x"] for b in data.prefetch(iter({"x": i} for i in range(50)), put)]
    assert got == [2 * i for i in range(50)]
    assert threading.current_thread() not in threads and len(threads) == 1


@pytest.mark.parametrize("where", ["iterator", "put"])
def test_prefetch_raises_after_the_batches_before(where):
    def source():
        for i in range(10):
            if where == "iterator" and i == 3:
                raise OSError("disk gone")
            yield {"x": i}

    def put(batch):
        if where == "put" and batch["x"] == 3:
            raise OSError("disk gone")
        return batch

    got = []
    with pytest.raises(OSError, match="disk gone"):
        for batch in data.prefetch(source(), put, depth=3):
            got.append(batch["x"])
    assert got == [0, 1, 2]
    assert not workers()


def test_prefetch_works_ahead_but_no_further_than_depth():
    made = []

    def source():
        for i in range(100):
            made.append(i)
            yield {"x": i}

    iterator = data.prefetch(source(), lambda b: b, depth=2)
    next(iterator)
    deadline = time.monotonic() + 5
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    # One consumed, two ready, one in hand.
    assert len(made) == 4
    iterator.close()


def test_closing_stops_the_thread_and_closes_the_source():
    closed = threading.Event()

    def source():
        try:
            while True:
                yield {"x": 0}
        finally:
            closed.set()

    iterator = data.prefetch(source(), lambda b: b)
    next(iterator)
    assert len(workers()) == 1
    iterator.close()
    assert closed.is_set() and not workers()


def test_prefetch_to_devices():
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    dataset = data.load("digits", split="train")
    plain = list(data.batches(dataset, batch_size=16, seed=0, steps=3))
    on_device = data.prefetch(iter(plain), lambda b: jax.device_put(b, sharding))
    for expected, got in zip(plain, on_device, strict=True):
        assert got["x"].sharding == sharding and got["x"].dtype == jnp.uint8
        np.testing.assert_array_equal(got["x"], expected["x"])


def test_depth_must_be_positive():
    with pytest.raises(ValueError, match="`depth` is 0"):
        data.prefetch(iter([]), lambda b: b, depth=0)
