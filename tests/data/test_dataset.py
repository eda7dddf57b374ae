import dataclasses
import pickle

import numpy as np
import pytest

from hold_jax import data
from hold_jax.data import dataset as module
from hold_jax.data.dataset import Dataset, array_dataset, deviation, measure
from hold_jax.errors import UserError

X = np.random.default_rng(0).normal(size=(400, 3)).astype(np.float32) * (2, 50, 0.1) + np.float32([0, 1000, -3])
X = X.astype(np.float32)
LABELS = np.repeat([1, 3], [300, 100])
VECTORS = array_dataset("v", "train", X, LABELS, 4)
PICTURES = array_dataset("p", "train", np.random.default_rng(1).integers(0, 256, (400, 3, 3, 1), np.uint8), LABELS, 4)


class Read:
    """The same examples, one at a time."""

    def __init__(self, dataset):
        self._dataset, self.read = dataset, 0

    def __len__(self):
        return len(self._dataset)

    def __getitem__(self, index):
        self.read += 1
        return {name: value[0] for name, value in self._dataset.gather(np.array([index])).items()}


def lazily(dataset):
    return Dataset(dataset.name, dataset.split, Read(dataset), None, dataset.shape, dataset.num_classes)


@pytest.mark.parametrize("of", [lambda d: d, lazily], ids=["in memory", "read"])
@pytest.mark.parametrize("dataset", [VECTORS, PICTURES], ids=["vectors", "pictures"])
def test_a_subset_has_the_rows_and_labels_of_the_set(dataset, of):
    whole, some = (of(dataset).subset(size).gather(np.arange(size)) for size in (400, 40))
    assert all(np.array_equal(some[name], whole[name][:40]) for name in some)
    rows = {row.tobytes(): label for row, label in zip(dataset.source, LABELS, strict=True)}
    assert all(rows[x.tobytes()] == label for x, label in zip(some["x"], some["label"], strict=True))
    assert 0.5 < np.mean(some["label"] == 1) < 0.95  # the set is sorted by class


def test_a_subset_of_a_lazy_set_can_be_sent_to_another_process():
    rows = Dataset("a", "train", range(400), None, (2,), 0).subset(40).source
    again = pickle.loads(pickle.dumps(rows))
    assert [again[i] for i in range(40)] == [rows[i] for i in range(40)] and len(again) == 40


def test_vectors_are_measured_coordinate_by_coordinate():
    for found in (measure(VECTORS), measure(lazily(VECTORS))):
        np.testing.assert_allclose(found.mean, X.astype(np.float64).mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(found.std, X.astype(np.float64).std(axis=0), rtol=1e-12)
        assert found.class_counts == (0, 300, 0, 100)


def test_classes_of_a_large_set_that_is_read_are_estimated(monkeypatch):
    """The counts are of the whole set, and a class that the examples lack is not taken for empty."""
    monkeypatch.setattr(module, "_MEASURED", 100)
    counts = np.array(measure(lazily(PICTURES)).class_counts)
    assert counts[0] == counts[2] == 1 and abs(counts[1] - 300) < 5 * np.sqrt(400 * 3 / 16 * 400 / 100)
    assert counts[1] % 4 == counts[3] % 4 == 0 and counts[1] + counts[3] == 400


def test_a_coordinate_that_stays_has_deviation_one():
    constant = np.full((50, 2), 1000.1, np.float32)
    constant[:, 1] = np.arange(50)
    assert measure(array_dataset("c", "train", constant, None, 0)).std == (1.0, pytest.approx(np.arange(50).std()))


def test_pictures_and_unlabeled_sets_have_no_more_than_they_have():
    assert measure(PICTURES) == data.Statistics(class_counts=(0, 300, 0, 100), kind="picture")
    assert measure(array_dataset("p", "train", PICTURES.source, None, 0)) == data.Statistics(kind="picture")


@pytest.mark.parametrize("of", [lambda d: d, lazily], ids=["in memory", "read"])
@pytest.mark.parametrize("dataset", [VECTORS, PICTURES], ids=["vectors", "pictures"])
def test_the_deviation_is_that_of_the_model_range(dataset, of):
    x = np.asarray(dataset.source, np.float64)
    want = np.std(x / 127.5 - 1 if dataset.is_image else x)
    assert deviation(of(dataset)) == pytest.approx(want, rel=5e-4)


def test_the_deviation_of_values_far_from_zero_and_of_constants():
    far = np.float32([[1e6 - 2], [1e6 + 2]] * 50)
    assert deviation(array_dataset("f", "train", far, None, 0)) == 2.0
    assert deviation(array_dataset("c", "train", np.full((9, 2), 1000.1, np.float32), None, 0)) == 1.0
    assert deviation(array_dataset("c", "train", np.full((9, 2, 2, 1), 7, np.uint8), None, 0)) == 1.0


def test_the_deviation_reads_fewer_large_pictures():
    class Large:
        """Pictures of 4 million values, black and white in turn."""

        read = 0

        def __len__(self):
            return 3000

        def __getitem__(self, index):
            self.read += 1
            return {"x": np.full((2, 2, 1), 255 * (index % 2), np.uint8), "label": 0}

    source = Large()
    data = dataclasses.replace(PICTURES, source=source, labels=None, shape=(2048, 2048, 1))
    assert deviation(data) == pytest.approx(1.0, rel=2e-3) and source.read == 1000


def test_the_digest_of_some_is_the_same_in_memory_and_on_disk():
    for dataset in (VECTORS, PICTURES):
        assert dataset.digest_of_some == lazily(dataset).digest_of_some
    other = [changed(x=X[::-1]), changed(labels=LABELS[::-1]), changed(num_classes=5), changed(x=X[:399])]
    assert len({dataset.digest_of_some for dataset in (VECTORS, *other)}) == 5


def changed(x=None, labels=LABELS, name="v", num_classes=4):
    return array_dataset(name, "train", X if x is None else x, labels, num_classes)


def test_the_digest_is_of_the_content_and_not_of_the_name():
    same = [VECTORS, changed(), changed(name="other"), changed(x=X.copy())]
    flipped = X.copy()
    flipped[399, 2] = np.nextafter(flipped[399, 2], np.float32(0))
    other = [changed(x=flipped), changed(x=X[:399], labels=LABELS[:399]), changed(labels=None), changed(x=X[::-1])]
    other += [changed(labels=LABELS[::-1]), changed(num_classes=5), lazily(changed(x=flipped))]
    assert len({d.digest for d in same}) == 1
    assert len({d.digest for d in [VECTORS, *other]}) == len(other) + 1


def test_the_digest_of_a_set_that_is_read_reads_a_part():
    read = lazily(VECTORS)
    assert read.digest == lazily(VECTORS).digest
    assert read.source.read == 256


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (X.astype(np.float64), "`source` is 'float64'; it must be float32, the type of a vector"),
        (np.zeros((2, 4, 4, 1), np.int32), "`source` is 'int32'; it must be uint8, the type of a picture"),
    ],
)
def test_another_type_is_named(x, message):
    with pytest.raises(UserError, match=message):
        Dataset("mine", "train", x, None, x.shape[1:], 0)
