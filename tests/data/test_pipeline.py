"""Order, seeking, sharding, flipping and padding of batches; in memory and read ahead."""

import threading
import time
from itertools import islice

import numpy as np
import pytest

from hold_jax import data
from hold_jax.data.dataset import Dataset, array_dataset
from hold_jax.errors import UserError

NUM = 23


class OnDisk:
    """The random-access form of an in-memory set; slow on even items, so that threads finish out of order."""

    def __init__(self, dataset):
        self.dataset = dataset
        self.reads = 0

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, i):
        self.reads += 1
        if i % 2 == 0:
            time.sleep(1e-3)
        example = self.dataset.gather(np.array([i]))
        return {"x": example["x"][0], "label": int(example["label"][0])}


def in_memory(num=NUM):
    """Pictures whose every pixel is distinct, so that order and mirroring show."""
    x = np.arange(num * 2 * 4 * 1).reshape(num, 2, 4, 1).astype(np.uint8)
    return array_dataset("memory", "train", x, np.arange(num), num)


def on_disk():
    dataset = in_memory()
    return Dataset("disk", "train", OnDisk(dataset), None, dataset.shape, dataset.num_classes)


def collect(dataset, steps, **kwargs):
    options = {"batch_size": 8, "seed": 5, "flip": True, **kwargs}
    return list(data.batches(dataset, steps=steps, **options))


def assert_equal(a, b):
    assert len(a) == len(b)
    for left, right in zip(a, b, strict=True):
        assert left.keys() == right.keys()
        for key in left:
            assert left[key].dtype == right[key].dtype
            np.testing.assert_array_equal(left[key], right[key])


@pytest.mark.parametrize("make", [in_memory, on_disk])
def test_same_seed_same_batches_and_other_seed_other_order(make):
    assert_equal(collect(make(), 7), collect(make(), 7))
    labels = [np.concatenate([b["label"] for b in collect(make(), 7, seed=s)]) for s in (5, 6)]
    assert (labels[0] != labels[1]).any()


@pytest.mark.parametrize("make", [in_memory, on_disk])
@pytest.mark.parametrize("start", [1, 3, 11, 700])
def test_start_step_continues_bitwise(make, start):
    straight = list(islice(data.batches(in_memory(), batch_size=8, seed=5, start_step=0, flip=True), start, start + 4))
    assert_equal(collect(make(), 4, start_step=start), straight)


def test_memory_and_disk_agree_bitwise():
    assert_equal(collect(in_memory(), 12), collect(on_disk(), 12))


@pytest.mark.parametrize("make", [in_memory, on_disk])
@pytest.mark.parametrize("count", [2, 4])
def test_processes_together_see_the_same_global_batch(make, count):
    whole = collect(make(), 6)
    parts = [collect(make(), 6, process_index=p, process_count=count) for p in range(count)]
    joined = [{k: np.concatenate([p[i][k] for p in parts]) for k in whole[i]} for i in range(6)]
    assert parts[0][0]["x"].shape == (8 // count, 2, 4, 1)
    assert_equal(joined, whole)


@pytest.mark.parametrize("batch_size", [8, 23, 50])
def test_each_epoch_is_a_permutation_and_epochs_differ(batch_size):
    epochs = 6
    steps = -(-epochs * NUM // batch_size)
    got = collect(in_memory(), steps, batch_size=batch_size, flip=False)
    labels = np.concatenate([b["label"] for b in got])[: epochs * NUM].reshape(epochs, NUM)
    np.testing.assert_array_equal(np.sort(labels, axis=1), np.tile(np.arange(NUM), (epochs, 1)))
    assert len({tuple(row) for row in labels}) == epochs


def test_flip_mirrors_columns_of_about_half_the_pictures():
    dataset = in_memory()
    got = collect(dataset, 500)
    x, label = (np.concatenate([b[k] for b in got]) for k in ("x", "label"))
    original = dataset.source[label]
    flipped = (x != original).any(axis=(1, 2, 3))
    np.testing.assert_array_equal(x[flipped], original[flipped][:, :, ::-1])
    # 4,000 fair coins: five standard deviations.
    assert abs(flipped.mean() - 0.5) < 5 * 0.5 / np.sqrt(len(x))


def test_batches_do_not_alias_the_dataset():
    dataset = in_memory()
    before = dataset.source.copy()
    for batch in collect(dataset, 5):
        batch["x"][:] = 255
    np.testing.assert_array_equal(dataset.source, before)


@pytest.mark.parametrize("make", [in_memory, on_disk])
@pytest.mark.parametrize(("batch_size", "count"), [(8, 1), (8, 4), (1, 1), (NUM, 1), (100, 2)])
def test_eval_covers_each_example_once(make, batch_size, count):
    parts = [
        list(data.eval_batches(make(), batch_size=batch_size, process_index=p, process_count=count))
        for p in range(count)
    ]
    assert {len(p) for p in parts} == {-(-NUM // batch_size)}
    rows = {k: np.concatenate([np.concatenate([p[i][k] for p in parts]) for i in range(len(parts[0]))])
            for k in ("x", "label", "index", "mask")}  # fmt: skip
    assert rows["mask"].dtype == bool and len(rows["mask"]) % batch_size == 0
    np.testing.assert_array_equal(rows["label"][rows["mask"]], np.arange(NUM))
    np.testing.assert_array_equal(rows["index"][rows["mask"]], np.arange(NUM))
    np.testing.assert_array_equal(rows["x"][rows["mask"]], in_memory().source)
    np.testing.assert_array_equal(rows["mask"], np.arange(len(rows["mask"])) < NUM)


@pytest.mark.parametrize("make", [in_memory, on_disk])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(("start", "stop"), [(0, None), (5, None), (8, 16), (5, 18), (22, 23), (0, 1), (0, NUM)])
def test_eval_covers_a_part_once(make, count, start, stop):
    end = NUM if stop is None else stop
    parts = [
        list(data.eval_batches(make(), batch_size=8, start=start, stop=stop, process_index=p, process_count=count))
        for p in range(count)
    ]
    assert {len(p) for p in parts} == {-(-(end - start) // 8)}
    batches = [part[i] for i in range(len(parts[0])) for part in parts]
    rows = {k: np.concatenate([batch[k] for batch in batches]) for k in ("x", "index", "mask")}
    np.testing.assert_array_equal(rows["index"][rows["mask"]], np.arange(start, end))
    np.testing.assert_array_equal(rows["x"][rows["mask"]], in_memory().source[start:end])
    # What fills up the last batch is the last example of the part, not the next one of the set.
    assert (rows["index"][~rows["mask"]] == end - 1).all() and rows["index"].dtype == np.int32
    np.testing.assert_array_equal(rows["x"], in_memory().source[rows["index"]])


@pytest.mark.parametrize("place", [0, 7, NUM])
def test_an_empty_part_has_no_batches(place):
    assert not list(data.eval_batches(in_memory(), batch_size=8, start=place, stop=place))


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (5, 4), (0, NUM + 1), (NUM + 1, None)])
def test_a_part_that_is_none_fails_at_the_call(start, stop):
    with pytest.raises(UserError, match=r"`start, stop` is .*; it must be a part of 23 examples"):
        data.eval_batches(in_memory(), batch_size=8, start=start, stop=stop)


def test_unlabeled_sets_give_label_zero():
    dataset = array_dataset("plain", "train", np.zeros((4, 2, 2, 3), np.uint8), None, 0)
    (batch,) = data.batches(dataset, batch_size=6, seed=0, steps=1)
    np.testing.assert_array_equal(batch["label"], np.zeros(6, np.int32))
    assert batch["label"].dtype == np.int32


def test_error_in_a_reading_thread_reaches_the_consumer():
    class Broken(OnDisk):
        def __getitem__(self, i):
            raise UserError("broken item")

    dataset = Dataset("broken", "train", Broken(in_memory()), None, (2, 4, 1), NUM)
    with pytest.raises(UserError, match="broken item"):
        next(data.batches(dataset, batch_size=2, seed=0))


def test_read_ahead_is_bounded():
    dataset = on_disk()
    iterator = data.batches(dataset, batch_size=4, seed=0)
    next(iterator)
    time.sleep(0.3)
    reads = dataset.source.reads
    time.sleep(0.3)
    assert dataset.source.reads == reads < 4 * 40
    iterator.close()


def test_closing_ends_the_reading_threads():
    before = set(threading.enumerate())
    iterator = data.batches(on_disk(), batch_size=4, seed=0)
    next(iterator)
    started = set(threading.enumerate()) - before
    assert started
    iterator.close()
    for thread in started:
        thread.join(5)
    assert not any(thread.is_alive() for thread in started)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"batch_size": 0}, "`batch_size` is 0"),
        ({"batch_size": 4.0}, "`batch_size` is 4.0"),
        ({"batch_size": 6, "process_count": 4}, "`batch_size` is 6; it must be a multiple of the 4"),
        ({"process_index": 1}, "`process_index` is 1"),
        ({"process_index": -1}, "`process_index` is -1"),
        ({"process_count": 0}, "`process_count` is 0"),
        ({"seed": -1}, "`seed` is -1"),
        ({"seed": 2**32}, "`seed` is 4294967296"),
        ({"start_step": -1}, "`start_step` is -1"),
        ({"steps": 0}, "`steps` is 0"),
    ],
)
def test_bad_arguments_fail_at_the_call(kwargs, match):
    with pytest.raises(ValueError, match=match):
        data.batches(in_memory(), **{"batch_size": 4, "seed": 0, **kwargs})


def test_vectors_cannot_be_flipped():
    dataset = data.load("gaussians8", split="test", size=10)
    with pytest.raises(ValueError, match="`flip` is True; it must be False for 'gaussians8', which holds no pictures"):
        data.batches(dataset, batch_size=4, seed=0, flip=True)


def test_eval_checks_its_arguments_at_the_call():
    with pytest.raises(ValueError, match="a multiple of the 3 processes"):
        data.eval_batches(in_memory(), batch_size=8, process_count=3)


def test_empty_set_is_refused():
    with pytest.raises(ValueError, match="at least one example"):
        data.batches(array_dataset("none", "train", np.zeros((0, 2, 2, 1), np.uint8), None, 0), batch_size=1, seed=0)


def test_throughput_in_memory():
    """The benchmark asks for 50,000 pictures/s; here a fifth of it, as machines running tests are busy."""
    dataset = array_dataset("noise", "train", np.zeros((10_000, 32, 32, 3), np.uint8), None, 0)
    steps, batch_size = 100, 128
    iterator = data.batches(dataset, batch_size=batch_size, seed=0, flip=True, steps=steps + 1)
    next(iterator)
    start = time.perf_counter()
    assert sum(len(b["x"]) for b in iterator) == steps * batch_size
    assert steps * batch_size / (time.perf_counter() - start) > 10_000
