"""`tfds:NAME`, without a network and without TensorFlow."""

import hashlib
import io
import pickle
import socket
import sys
import tarfile
import time
from unittest import mock

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import checksums, downloader

from hold_jax import data
from hold_jax.data import cifar10_builder, tfds_source
from hold_jax.runtime import fetch


@pytest.fixture
def reachable(monkeypatch):
    monkeypatch.setattr(tfds_source, "require_reachable", lambda name, urls: None)


@pytest.fixture
def fake_cifar(tmp_path, reachable):
    """Serves an archive of 4 pictures a file as the official one; yields (pictures by file, archive bytes)."""
    rng = np.random.default_rng(0)
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    rows = {n: rng.integers(0, 256, (4, 3073), dtype=np.uint8) for n in names}
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for n in names:
            rows[n][:, 0] %= 10
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{n}")
            info.size = rows[n].nbytes
            tar.addfile(info, io.BytesIO(rows[n].tobytes()))
    served = {"bytes": archive.getvalue()}

    def download(self, url, destination_path, verify=True):
        assert url == cifar10_builder.URL
        path = destination_path / "cifar-10-binary.tar.gz"
        path.write_bytes(served["bytes"])
        return downloader.DownloadResult(path=path, url_info=url_info(served["bytes"]))

    official = {cifar10_builder.URL: url_info(archive.getvalue())}
    with (
        mock.patch.object(downloader._Downloader, "_sync_download", download),
        mock.patch.dict(cifar10_builder.HoldCifar10.url_infos, official),
    ):
        yield rows, served


def url_info(content):
    digest = hashlib.sha256(content).hexdigest()
    return checksums.UrlInfo(
        size=tfds.core.utils.Size(len(content)), checksum=digest, filename="cifar-10-binary.tar.gz"
    )


def as_pictures(rows):
    """Returns the set {(pixels, label)} of CIFAR's binary rows: a label, then three planes."""
    return {(r[1:].reshape(3, 32, 32).transpose(1, 2, 0).tobytes(), int(r[0])) for r in rows}


def test_cifar10_is_prepared_without_tensorflow(tmp_path, fake_cifar):
    rows, served = fake_cifar
    train, test = (data.load("tfds:cifar10", split=s, data_dir=str(tmp_path / "d")) for s in ("train", "test"))
    assert (len(train), len(test), train.shape, train.num_classes, train.in_memory) == (20, 4, (32, 32, 3), 10, True)
    got = {(x.tobytes(), int(y)) for x, y in zip(train.source, train.labels, strict=True)}
    assert got == as_pictures(np.concatenate([rows[f"data_batch_{i}.bin"] for i in range(1, 6)]))
    assert {(x.tobytes(), int(y)) for x, y in zip(test.source, test.labels, strict=True)} == as_pictures(
        rows["test_batch.bin"]
    )
    assert "tensorflow" not in sys.modules
    # Prepared once: no second download.
    served["bytes"] = b"gone"
    again = data.load("tfds:cifar10", split="train", data_dir=str(tmp_path / "d"))
    np.testing.assert_array_equal(again.source, train.source)
    lazy = data.load("tfds:cifar10", split="train", data_dir=str(tmp_path / "d"), memory_limit_bytes=1)
    assert not lazy.in_memory
    both = [list(data.batches(d, batch_size=6, seed=3, flip=True, steps=5)) for d in (train, lazy)]
    for a, b in zip(*both, strict=True):
        np.testing.assert_array_equal(a["x"], b["x"])
        np.testing.assert_array_equal(a["label"], b["label"])


def test_a_download_is_announced_with_its_places(tmp_path, fake_cifar, capsys):
    data.load("tfds:cifar10", split="train", data_dir=str(tmp_path / "d"))
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fetching")]
    assert said == [f"fetching tfds:cifar10: {cifar10_builder.URL} -> {tmp_path}/d/hold_cifar10/1.0.0"]
    data.load("tfds:cifar10", split="train", data_dir=str(tmp_path / "d"))
    assert "fetching" not in capsys.readouterr().err


def test_a_wrong_archive_is_refused(tmp_path, fake_cifar):
    _, served = fake_cifar
    served["bytes"] += b"x"
    with pytest.raises(ValueError, match=r"download or preparation failed.*folder:PATH or npz:PATH"):
        data.load("tfds:cifar10", split="train", data_dir=str(tmp_path / "d"))


def test_the_official_checksum_is_the_published_one():
    (info,) = cifar10_builder.HoldCifar10.url_infos.values()
    assert info.checksum == "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"


@pytest.mark.parametrize("limit", [1 << 30, 1])
def test_any_picture_set_through_mock_data(tmp_path, limit):
    with tfds.testing.mock_data(num_examples=7):
        kwargs = {"split": "train", "data_dir": str(tmp_path), "memory_limit_bytes": limit}
        dataset = data.load("tfds:mnist", **kwargs)
        assert (len(dataset), dataset.shape, dataset.num_classes) == (7, (28, 28, 1), 10)
        assert dataset.in_memory == (limit > 1)
        (batch,) = data.eval_batches(dataset, batch_size=7)
        raw = tfds.data_source("mnist", split="train")
        np.testing.assert_array_equal(batch["x"], np.stack([e["image"] for e in raw]))
        np.testing.assert_array_equal(batch["label"], [e["label"] for e in raw])
        assert data.load("tfds:cifar10", **kwargs).shape == (32, 32, 3)
        fitted = data.load("tfds:mnist", image_size=16, channels=3, **kwargs)
        (batch,) = data.eval_batches(fitted, batch_size=7)
        assert batch["x"].shape == (7, 16, 16, 3) and fitted.shape == (16, 16, 3)


@pytest.mark.slow
def test_unlabeled_set(tmp_path):
    with tfds.testing.mock_data(num_examples=3):
        dataset = data.load("tfds:celeb_a", split="test", image_size=32, data_dir=str(tmp_path))
    assert (dataset.num_classes, dataset.labels, dataset.shape) == (0, None, (32, 32, 3))


def test_bad_sets(tmp_path, reachable):
    kwargs = {"split": "train", "data_dir": str(tmp_path)}
    for name, match in {
        "tfds:no_such_set": "TFDS has no data set 'no_such_set'",
        "tfds:mnist/no_config": "TFDS does not accept it",
        "tfds:mnist:9.9.9": "TFDS does not accept it",
        "tfds:ag_news_subset": "needs a feature `image` of uint8 pictures; its features: description, label, title",
        "tfds:imagenet_v2": "`image_size` is None; the pictures of 'tfds:imagenet_v2' differ in size",
    }.items():
        with pytest.raises(ValueError, match=match) as error:
            data.load(name, **kwargs)
        assert "\n" not in str(error.value)


def test_preparing_what_needs_tensorflow_says_so(tmp_path, reachable):
    error = ModuleNotFoundError("No module named 'tensorflow'")
    with (
        mock.patch.object(tfds.core.DatasetBuilder, "download_and_prepare", side_effect=error),
        pytest.raises(
            ValueError, match=r"missing package \(No module named 'tensorflow'\): prepare it where TensorFlow"
        ),
    ):
        data.load("tfds:mnist", split="train", data_dir=str(tmp_path))


def test_no_network_fails_in_seconds(tmp_path, monkeypatch):
    def refuse(address, timeout):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", refuse)
    start = time.monotonic()
    for name in ("tfds:cifar10", "tfds:mnist"):
        with pytest.raises(ValueError, match=r"cannot be reached.*Network is unreachable.*folder:PATH or npz:PATH"):
            data.load(name, split="train", data_dir=str(tmp_path))
    assert time.monotonic() - start < 10


def test_name_lookup_that_hangs_is_cut_off(monkeypatch):
    monkeypatch.setattr(fetch, "CONNECT_SECONDS", 0.2)

    def hang(address, timeout):
        time.sleep(3)
        raise OSError("too late")

    monkeypatch.setattr(socket, "create_connection", hang)
    start = time.monotonic()
    with pytest.raises(ValueError, match="no answer"):
        tfds_source.require_reachable("tfds:x", ["https://example.invalid/x"])
    assert time.monotonic() - start < 2


@pytest.fixture
def no_proxy(monkeypatch):
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)


def test_reachability_of_open_and_closed_ports(no_proxy, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        url = f"http://127.0.0.1:{port}/file"
        tfds_source.require_reachable("tfds:x", [url])
        # Through a proxy only the proxy need be reachable.
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
        tfds_source.require_reachable("tfds:x", ["https://nowhere.invalid/file"])
        monkeypatch.delenv("https_proxy")
    start = time.monotonic()
    with pytest.raises(ValueError, match=rf"127\.0\.0\.1:{port} cannot be reached .*refused"):
        tfds_source.require_reachable("tfds:x", [url])
    assert time.monotonic() - start < 2


def test_a_split_the_set_lacks(tmp_path, fake_cifar):
    builder = cifar10_builder.HoldCifar10(data_dir=str(tmp_path / "d"), file_format="array_record")
    builder.download_and_prepare()
    with pytest.raises(
        ValueError, match=r"`split` is 'extra'; 'tfds:cifar10' has the splits: (train, test|test, train)"
    ):
        tfds_source.load("tfds:cifar10", split="extra", data_dir=str(tmp_path / "d"), memory_limit_bytes=1 << 30)


class Source:
    """Stands for a builder of TFDS and its data source: gray pictures with these labels of 3 classes."""

    def __init__(self, **labels):
        self.labels, self.data_path = labels, ""
        image, label = tfds.features.Tensor(shape=(4, 4, 1), dtype=np.uint8), tfds.features.ClassLabel(num_classes=3)
        self.info = mock.Mock(features={"image": image, "label": label}, splits=list(labels))

    def as_data_source(self, split):
        return [
            {"image": np.full((4, 4, 1), i % 256, np.uint8), "label": np.int64(label)}
            for i, label in enumerate(self.labels[split])
        ]


@pytest.mark.parametrize("limit", [1 << 30, 1])
def test_a_split_with_labels_that_are_no_classes_has_none(limit, monkeypatch, caplog):
    source = Source(train=[0, 1, 2, 1], test=[-1, -1], validation=[0, 3, 1])
    monkeypatch.setattr(tfds_source, "_builder", lambda name, data_dir: source)
    train, test, other = (
        tfds_source.load("tfds:x", split=s, memory_limit_bytes=limit) for s in ("train", "test", "validation")
    )
    assert (train.num_classes, list(train.gather(np.arange(4))["label"])) == (3, [0, 1, 2, 1])
    assert data.measure(train).class_counts == (1, 2, 1)
    for part, num, bad, split in ((test, 2, -1, "test"), (other, 1, 3, "validation")):
        assert part.num_classes == 0 and part.labels is None and not part.gather(np.arange(2))["label"].any()
        assert data.measure(part).class_counts == ()
        said = f"{num} of {len(part)} labels of the {split} split are none of the classes 0 to 2, such as {bad} (TFDS"
        assert said in caplog.text and "the split is used without labels" in caplog.text
    assert "train split" not in caplog.text


def test_a_label_that_is_no_class_is_said_once_when_it_is_read(monkeypatch, caplog):
    labels = [0] * 1000
    labels[2] = -1  # not among those that are looked at first
    monkeypatch.setattr(tfds_source, "_builder", lambda name, data_dir: Source(train=labels))
    found = tfds_source.load("tfds:x", split="train", memory_limit_bytes=1)
    assert found.num_classes == 3
    tfds_source._warn_of.cache_clear()
    for _ in range(2):
        assert found.gather(np.array([1, 2]))["label"].tolist() == [0, -1]  # a model without classes goes on
    assert caplog.text.count("an example has the label -1, which is none of the classes") == 1
    assert pickle.loads(pickle.dumps(found.source.read.args[0].func)) is tfds_source._read  # no closure
