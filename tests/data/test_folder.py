"""`folder:PATH`, and the decoding of single pictures."""

import errno
import io
import json
import logging
import os
import struct
import subprocess
import zipfile
import zlib
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from hold_jax import data
from hold_jax.data import folder, images
from hold_jax.errors import UserError
from hold_jax.evaluation import picture_files

RNG = np.random.default_rng(0)


def picture(height=8, width=8, channels=3):
    x = RNG.integers(0, 256, (height, width, channels), dtype=np.uint8)
    return x[..., 0] if channels == 1 else x


def save(path, x=None, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = x if isinstance(x, Image.Image) else Image.fromarray(picture() if x is None else x)
    image.save(path, **kwargs)
    return path


@pytest.fixture
def labeled(tmp_path):
    """Two classes; bird has a nested folder; test has one picture of each."""
    pixels = {}
    for file in ("train/bird/1.png", "train/bird/deep/er/2.png", "train/ant/1.png", "train/ant/0.png",
                 "test/ant/9.png", "test/bird/9.png"):  # fmt: skip
        pixels[file] = picture()
        save(tmp_path / file, pixels[file])
    (tmp_path / "train" / "README.txt").write_text("not a picture")
    (tmp_path / "train" / "bird" / ".hidden.png").write_text("not a picture")
    return tmp_path, pixels


@pytest.mark.parametrize("limit", [1 << 30, 1])
def test_classes_order_and_pixels(labeled, limit):
    root, pixels = labeled
    dataset = data.load(f"folder:{root}", split="train", memory_limit_bytes=limit)
    assert dataset.in_memory == (limit > 1)
    assert (len(dataset), dataset.shape, dataset.num_classes) == (4, (8, 8, 3), 2)
    (batch,) = data.eval_batches(dataset, batch_size=4)
    order = ["train/ant/0.png", "train/ant/1.png", "train/bird/1.png", "train/bird/deep/er/2.png"]
    np.testing.assert_array_equal(batch["x"], np.stack([pixels[f] for f in order]))
    np.testing.assert_array_equal(batch["label"], [0, 0, 1, 1])


def test_lazy_training_batches_equal_those_in_memory(labeled):
    root, _ = labeled
    both = [
        list(data.batches(data.load(f"folder:{root}", split="train", **kw), batch_size=3, seed=1, flip=True, steps=5))
        for kw in ({}, {"memory_limit_bytes": 1})
    ]
    for a, b in zip(*both, strict=True):
        np.testing.assert_array_equal(a["x"], b["x"])
        np.testing.assert_array_equal(a["label"], b["label"])


def test_test_split_is_numbered_as_train(tmp_path):
    for file in ("train/a/1.png", "train/b/1.png", "train/c/1.png", "test/c/1.png"):
        save(tmp_path / file)
    dataset = data.load(f"folder:{tmp_path}", split="test")
    np.testing.assert_array_equal(dataset.labels, [2])
    assert dataset.num_classes == 3


def test_flat_folder_is_unlabeled_and_links_are_followed(tmp_path):
    save(tmp_path / "elsewhere" / "1.png")
    (tmp_path / "set" / "train").mkdir(parents=True)
    save(tmp_path / "set" / "train" / "0.png")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "train").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "elsewhere")
    flat = data.load("folder:set", split="train", data_dir=str(tmp_path))
    assert (len(flat), flat.num_classes, flat.labels) == (1, 0, None)
    assert len(data.load(f"folder:{tmp_path}/linked", split="train")) == 1


def test_every_format_becomes_rgb_or_gray(tmp_path):
    top = tmp_path / "train"
    color, gray = np.full((8, 8, 3), (200, 30, 60), np.uint8), np.full((8, 8), 90, np.uint8)
    save(top / "0.png", color)
    save(top / "1.jpg", color, quality=95)
    save(top / "2.JPEG", gray, quality=95)
    save(top / "3.gif", Image.fromarray(color).quantize(8))
    save(top / "4.webp", color, lossless=True)
    save(top / "5.bmp", gray)
    save(top / "6.png", (gray.astype(np.uint16) << 8) + 17)
    save(top / "7.tif", Image.fromarray(color).convert("CMYK"))
    clear = np.dstack([color, np.zeros((8, 8), np.uint8)])
    save(top / "8.png", clear)
    palette = Image.fromarray(color).quantize(8)
    save(top / "9.png", palette, transparency=palette.getpixel((0, 0)))
    expected = np.array([[200, 30, 60]] * 2 + [[90] * 3] + [[200, 30, 60]] * 2 + [[90] * 3] * 2 + [[200, 30, 60]]
                        + [[255] * 3] * 2)  # fmt: skip
    rgb = data.load(f"folder:{tmp_path}", split="train", bits=16).source
    assert rgb.shape == (10, 8, 8, 3)
    assert np.abs(rgb.astype(int) - expected[:, None, None]).max() <= 3
    luma = np.rint(expected @ [0.299, 0.587, 0.114])
    gray = data.load(f"folder:{tmp_path}", split="train", channels=1, bits=16).source
    assert np.abs(gray.astype(int) - luma[:, None, None, None]).max() <= 3


def test_grays_of_twelve_bits_keep_their_contrast(tmp_path):
    """In 16-bit files; their low byte alone, or their high one, would be noise or near black."""
    x = np.arange(64, dtype=np.uint16).reshape(8, 8) * 65
    for i in range(3):
        save(tmp_path / "train" / f"{i}.png", x)
    for limit in (1 << 30, 1):
        found = data.load(f"folder:{tmp_path}", split="train", channels=1, bits=12, memory_limit_bytes=limit)
        np.testing.assert_array_equal(found.gather(np.arange(3))["x"][..., 0], np.stack([x // 16] * 3))
    for bits in (None, 11):
        with pytest.raises(UserError, match=rf"`bits` is {bits}; .*0\.png has 16-bit grays up to 4095: .* such as 12"):
            data.load(f"folder:{tmp_path}", split="train", channels=1, bits=bits)
    for i in range(2):
        save(tmp_path / "eight" / f"{i}.png", x // 65)
    with pytest.raises(UserError, match=r"\.png has values up to 63 as uint16: save it as uint8 if they are 8-bit"):
        data.load(f"folder:{tmp_path}/eight", split="train", channels=1)
    with pytest.raises(UserError, match="`bits` is 8; it must be from 9 to 16, or None"):
        data.load(f"folder:{tmp_path}", split="train", bits=8)


@pytest.mark.parametrize("ending", ["tiff", "gif"])
def test_a_file_of_several_pictures_is_not_taken_for_its_first(tmp_path, ending):
    pages = [Image.fromarray(picture(channels=1)) for _ in range(5)]
    save(tmp_path / "train" / f"stack.{ending}", pages[0], save_all=True, append_images=pages[1:])
    with pytest.raises(UserError, match=rf"stack\.{ending} \(it holds 5 pictures; a file must hold one\)"):
        data.load(f"folder:{tmp_path}", split="train")


def test_a_file_that_pillow_fails_on_in_any_way_is_unreadable(tmp_path):
    path = tmp_path / "a.tif"
    Image.new("RGB", (6, 6)).save(path)
    content = bytearray(path.read_bytes())
    content[130:134] = (2).to_bytes(4, "little")  # the place of a second picture, where there is none
    path.write_bytes(content)
    with pytest.raises(images.UNREADABLE, match="TypeError: Missing dimensions"):
        images.read_picture(path, None, 3)


def test_pictures_without_an_ending_are_known_by_their_content(tmp_path):
    x = [picture(), picture()]
    save(tmp_path / "train" / "0", x[0], format="PNG")
    save(tmp_path / "train" / "1.png", x[1])
    (tmp_path / "train" / "LICENSE").write_text("not a picture")
    np.testing.assert_array_equal(data.load(f"folder:{tmp_path}", split="train").source, np.stack(x))


def test_pipes_devices_and_broken_links_are_not_waited_for(tmp_path):
    train = tmp_path / "train"
    save(train / "a.png")
    os.mkfifo(train / "pipe.png")
    os.mkfifo(train / "pipe")
    (train / "zero.png").symlink_to("/dev/zero")
    (train / "nowhere.png").symlink_to(tmp_path / "nowhere")
    (train / "itself.png").symlink_to("itself.png")
    with pytest.raises(UserError, match=r"4 of 5 pictures cannot be read: .*it is not a regular file"):
        data.load(f"folder:{tmp_path}", split="train", image_size=8)


def test_no_other_program_is_run_to_decode(tmp_path, monkeypatch):
    """Pillow would hand this to Ghostscript."""
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n")
    (tmp_path / "train" / "b.png").write_text((tmp_path / "train" / "a.eps").read_text())
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **options: pytest.fail("a program was run"))
    with pytest.raises(UserError, match=r"1 of 1 pictures cannot be read: .*b\.png"):
        data.load(f"folder:{tmp_path}", split="train", image_size=8)


def test_classes_have_their_folders_names(labeled):
    root, _ = labeled
    for limit in (1 << 30, 1):
        found = data.load(f"folder:{root}", split="train", memory_limit_bytes=limit)
        assert data.measure(found) == data.Statistics((2, 2), ("ant", "bird"), kind="picture")


def test_sideways_camera_pictures_are_turned_upright(tmp_path):
    x = picture(4, 6)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / "a.png", x, exif=exif)
    np.testing.assert_array_equal(images.read_picture(path, None, 3), np.rot90(x, -1))
    assert images.picture_size(path) == (6, 4)


@pytest.mark.parametrize("shape", [(12, 30), (30, 12)])
def test_shorter_side_is_scaled_and_the_middle_cut(tmp_path, shape):
    # Three equal bands along the longer side would be 10 long; the middle 12 are kept and halved to 6.
    ramp = np.arange(30, dtype=np.uint8) * 8
    x = np.broadcast_to(ramp if shape[1] == 30 else ramp[:, None], shape)
    path = save(tmp_path / "a.png", np.ascontiguousarray(x))
    got = images.read_picture(path, 6, 1)[..., 0].astype(float)
    expected = (ramp[9:21].reshape(6, 2)).mean(axis=1)
    np.testing.assert_allclose(got if shape[1] == 30 else got.T, np.tile(expected, (6, 1)), atol=6)


@pytest.mark.parametrize("limit", [1 << 30, 1])
@pytest.mark.parametrize("size", [None, 4])
def test_the_next_of_its_class_is_in_place_of_a_damaged_picture(tmp_path, caplog, size, limit):
    """So that the set is the same in memory and on disk."""
    for i in range(300):
        save(tmp_path / "train" / f"{i % 3}" / f"{i:03d}.png", np.full((4, 4, 3), i % 256, np.uint8))
    whole = (tmp_path / "train/0/000.png").read_bytes()
    (tmp_path / "train/0/000.png").write_bytes(whole[:-30])
    (tmp_path / "train/1/298.png").write_text("hello")
    (tmp_path / "train/2/002.png").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        dataset = data.load(f"folder:{tmp_path}", split="train", image_size=size, memory_limit_bytes=limit)
        found = dataset.gather(np.arange(300))
    assert "3 of 300 pictures cannot be read" in caplog.text and "298.png" in caplog.text
    assert "it is no picture of a format that Pillow reads" in caplog.text and "BufferedReader" not in caplog.text
    want = np.arange(300).reshape(100, 3).T
    want[0, 0], want[1, 99], want[2, 0] = 3, 1, 5  # after the last comes the first
    np.testing.assert_array_equal(found["x"][:, 0, 0, 0], want.ravel() % 256)
    for labels in (dataset.labels, found["label"]):
        np.testing.assert_array_equal(labels, np.repeat([0, 1, 2], 100))


def test_many_damaged_pictures_are_an_error(tmp_path):
    for i in range(30):
        save(tmp_path / "train" / f"{i}.png")
    (tmp_path / "train" / "5.png").write_text("hello")
    with pytest.raises(ValueError, match=r"1 of 30 pictures cannot be read: .*5\.png.*more than 1%"):
        data.load(f"folder:{tmp_path}", split="train")


def test_on_disk_a_damaged_picture_is_found_when_it_is_read(tmp_path, caplog):
    for i in range(120):
        save(tmp_path / "train" / f"{i // 60}" / f"{i:03d}.png", np.full((4, 4, 3), i, np.uint8))
    bad = tmp_path / "train" / "0" / "059.png"
    bad.write_bytes(bad.read_bytes()[:-30])
    dataset = data.load(f"folder:{tmp_path}", split="train", image_size=4, memory_limit_bytes=1)
    with caplog.at_level(logging.WARNING):
        got = dataset.gather(np.array([58, 59, 60, 59]))
    np.testing.assert_array_equal(got["x"][:, 0, 0, 0], [58, 0, 60, 0])
    np.testing.assert_array_equal(got["label"], [0, 0, 1, 0])
    assert caplog.text.count("059.png") == 1
    (tmp_path / "train" / "0" / "003.png").write_text("hello")
    with pytest.raises(ValueError, match="2 of 120 pictures cannot be read"):
        dataset.gather(np.array([3]))


@pytest.mark.parametrize("limit", [1 << 30, 1])
def test_unequal_sizes_name_two_files(tmp_path, limit):
    save(tmp_path / "train/a.png", picture(8, 8))
    save(tmp_path / "train/b.png", picture(8, 9))
    with pytest.raises(
        ValueError, match=r"`image_size` is None.*a\.png is 8x8 and .*b\.png is 9x8: give an image_size"
    ):
        data.load(f"folder:{tmp_path}", split="train", memory_limit_bytes=limit)
    assert data.load(f"folder:{tmp_path}", split="train", image_size=4).shape == (4, 4, 3)


def test_a_class_without_a_picture_that_can_be_read_is_an_error(tmp_path):
    for i in range(120):
        save(tmp_path / "train" / f"{i // 119}" / f"{i:03d}.png")
    (tmp_path / "train/1/119.png").write_text("hello")
    with pytest.raises(UserError, match=r"119\.png and all others of its class cannot be read"):
        data.load(f"folder:{tmp_path}", split="train")


def test_folders_of_the_splits_in_capitals_are_no_classes(tmp_path):
    for name in ("Train/1.png", "Train/2.png", "test/3.png", "more/4.png"):
        save(tmp_path / name)
    with pytest.raises(UserError, match=r"has Train, test: the folders of the splits must be called train and test"):
        data.load(f"folder:{tmp_path}", split="train")
    # A class may have this name.
    save(tmp_path / "classes/Bus/1.png")
    save(tmp_path / "classes/Train/1.png")
    assert data.load(f"folder:{tmp_path}/classes", split="train").class_names == ("Bus", "Train")


@pytest.mark.parametrize(
    ("tops", "listed"),
    [
        (["train", "validation", "Test"], "Test, train"),
        (["train", "TEST"], "TEST, train"),
        (["training", "testing"], "testing, training"),
        (["Training", "validation"], "Training, validation"),
        (["train", "valid"], "train, valid"),
        (["Test"], "Test"),
    ],
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_folders_of_splits_by_other_names_are_no_classes(tmp_path, tops, listed, split):
    for top in tops:
        save(tmp_path / top / "a/1.png")
        save(tmp_path / top / "a/2.png")
    with pytest.raises(UserError, match=rf"has {listed}: the folders of the splits must be called train and test"):
        data.load(f"folder:{tmp_path}", split=split)


def test_a_third_split_and_classes_may_have_these_names(tmp_path, caplog):
    for name in ("train/1.png", "test/2.png", "valid/3.png", "classes/valid/1.png", "classes/other/2.png"):
        save(tmp_path / name, np.full((4, 4, 3), int(name[-5]), np.uint8))
    assert data.load(f"folder:{tmp_path}/classes", split="train").class_names == ("other", "valid")
    os.rename(tmp_path / "classes", tmp_path.parent / f"{tmp_path.name} classes")
    assert [list(numbers(data.load(f"folder:{tmp_path}", split=s))) for s in ("train", "test")] == [[1], [2]]
    assert not caplog.text


def test_pictures_beside_the_splits_are_named(tmp_path, caplog):
    for top in ("train", "test"):
        save(tmp_path / top / "1.png")
    for harmless in ("README.md", ".DS_Store", "labels.csv", "notes/1.txt", ".cache/1.png"):
        (tmp_path / harmless).parent.mkdir(exist_ok=True)
        (tmp_path / harmless).write_text("x")
    whole = data.load(f"folder:{tmp_path}", split="train")
    assert not caplog.text
    save(tmp_path / "more/deep/1.png")
    save(tmp_path / "loose.png")
    (tmp_path / "dataset.json").write_text("{}")
    packed = tmp_path / "x.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for file in sorted(tmp_path.rglob("*")):
            if file.is_file() and file != packed:
                archive.write(file, file.relative_to(tmp_path))
    for name in (tmp_path, packed):
        caplog.clear()
        data.load(f"folder:{name}", split="test")
        assert not caplog.text
        assert data.load(f"folder:{name}", split="train").digest == whole.digest
        said = "has folders of splits, so that what lies beside them is not used: more, dataset.json, loose.png\n"
        assert caplog.text.endswith(said)


def test_the_condition_s_pictures_beside_the_splits_are_used(tmp_path, caplog):
    for top in ("train", "test", "masks/train", "masks/test"):
        save(tmp_path / top / "1.png")
    data.load(f"folder:{tmp_path}", split="train", condition=f"{tmp_path}/masks")
    assert not caplog.text


@pytest.mark.parametrize("tops", [("train", "val", "valid"), ("train", "validation", "Valid"), ("test", "valid")])
def test_another_folder_of_validation_is_not_used_where_the_splits_are_there(tmp_path, tops):
    for i, top in enumerate(tops):
        for k in range(i + 1):
            save(tmp_path / top / f"{k}.png")
    assert len(data.load(f"folder:{tmp_path}", split="test")) == (1 if "test" in tops else 2)


def test_a_folder_beside_the_splits_that_cannot_be_listed_is_passed_over(tmp_path, monkeypatch):
    for name in ("train", "more"):
        save(tmp_path / name / "1.png")
    close(monkeypatch, "more")
    assert len(data.load(f"folder:{tmp_path}", split="train")) == 1


def test_no_path_is_not_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i in range(2):
        save(tmp_path / f"{i}.png")
    fix = r"it must be folder:PATH; write folder:\. for data_dir, or else the working directory"
    with pytest.raises(UserError, match=f"`name` is 'folder:'; {fix}"):
        folder.load("folder:", split="train", memory_limit_bytes=1)
    with pytest.raises(UserError, match=f"`condition` is 'folder:'; {fix}"):
        data.load("folder:.", split="train", condition="")
    assert len(data.load("folder:.", split="train")) == 1


def test_bad_folders(tmp_path):
    with pytest.raises(ValueError, match=r"there is no folder .*nowhere"):
        data.load(f"folder:{tmp_path}/nowhere", split="train")
    with pytest.raises(ValueError, match=r"holds no picture that Pillow reads.*holds nothing"):
        data.load(f"folder:{tmp_path}", split="train")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"holds no picture that Pillow reads.*holds notes\.txt"):
        data.load(f"folder:{tmp_path}", split="train")
    save(tmp_path / "cats" / "1.png")
    with pytest.raises(ValueError, match="must hold two pictures or more: one is held out"):
        data.load(f"folder:{tmp_path}", split="train")
    (tmp_path / "test").mkdir()
    with pytest.raises(ValueError, match="has a folder test and no folder train"):
        data.load(f"folder:{tmp_path}", split="train")
    (tmp_path / "test").rmdir()
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match="train holds no picture"):
        data.load(f"folder:{tmp_path}", split="train")
    save(tmp_path / "train/a/1.png")
    with pytest.raises(
        ValueError, match=r"has a folder train and none of test, val, validation: .* write folder:.*/train, of which"
    ):
        data.load(f"folder:{tmp_path}", split="test")
    save(tmp_path / "test/b/1.png")
    with pytest.raises(ValueError, match=r"classes of .*test that .*train lacks: \['b'\]"):
        data.load(f"folder:{tmp_path}", split="test")
    save(tmp_path / "train/2.png")
    with pytest.raises(ValueError, match=r"class folders and also pictures outside them, such as 2\.png"):
        data.load(f"folder:{tmp_path}", split="train")
    with pytest.raises(UserError, match="cannot be read: Protocol not known: nowhere"):
        data.load("folder:nowhere://bucket/x", split="train")
    np.save(tmp_path / "x.npy", picture())
    with pytest.raises(UserError, match=r"x\.npy is a file of arrays: write npz:"):
        data.load(f"folder:{tmp_path}/x.npy", split="train")
    (tmp_path / "x.zip").write_bytes(b"PK hello")
    with pytest.raises(UserError, match=r"x\.zip is not a readable zip archive"):
        data.load(f"folder:{tmp_path}/x.zip", split="train")


def test_test_without_the_class_folders_of_train(tmp_path):
    save(tmp_path / "train/a/1.png")
    save(tmp_path / "test/1.png")
    with pytest.raises(ValueError, match=r"train has class folders and .*test has none"):
        data.load(f"folder:{tmp_path}", split="test")


def test_a_test_split_without_the_labels_of_train_has_no_classes(tmp_path):
    save(tmp_path / "train/1.png")
    save(tmp_path / "test/2.png")
    (tmp_path / "train/dataset.json").write_text(json.dumps({"labels": [["1.png", 3]]}))
    for listed in (None, {"labels": None}):
        if listed is not None:
            (tmp_path / "test/dataset.json").write_text(json.dumps(listed))
        found = [data.load(f"folder:{tmp_path}", split=split) for split in ("train", "test")]
        assert [part.num_classes for part in found] == [4, 0] and found[1].labels is None


def close(monkeypatch, name):
    """Folders of this name cannot be listed. (For root, who may run the tests, no mode forbids it.)"""
    scandir = os.scandir

    def listed(path):
        if Path(path).name == name:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", listed)


def test_a_class_that_cannot_be_listed_is_not_left_out(tmp_path, monkeypatch):
    for name in ("cat", "dog"):
        save(tmp_path / f"train/{name}/1.png")
    close(monkeypatch, "dog")
    with pytest.raises(UserError, match="dog cannot be listed: Permission denied"):
        data.load(f"folder:{tmp_path}/train", split="train")
    with pytest.raises(UserError, match="dog cannot be listed: Permission denied"):
        picture_files.pictures(tmp_path / "train", None, None)


def test_what_a_file_system_has_at_the_root_of_a_disk_is_no_class(tmp_path, monkeypatch):
    for name in ("cat", "dog"):
        for i in range(2):
            save(tmp_path / f"{name}/{i}.png")
    (tmp_path / "lost+found").mkdir()
    close(monkeypatch, "lost+found")
    assert data.load(f"folder:{tmp_path}", split="train").num_classes == 2


def test_all_damaged(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.png").write_text("hello")
    with pytest.raises(ValueError, match="none of its 1 pictures can be read"):
        data.load(f"folder:{tmp_path}", split="train")
    with pytest.raises(ValueError, match="1 of 1 pictures cannot be read"):
        data.load(f"folder:{tmp_path}", split="train", image_size=4)


def test_decompression_bombs_count_as_unreadable(tmp_path):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "bomb.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )
    with pytest.raises(ValueError, match=r"bomb\.png.*decompression bomb"):
        data.load(f"folder:{tmp_path}", split="train", image_size=4)


def entries(top, num=23):
    """Pictures whose every pixel is their number, in three class folders below `top`."""
    return {f"{top}{'abc'[i % 3]}/{i:02d}.png": np.full((4, 6, 3), i, np.uint8) for i in range(num)}


def numbers(dataset):
    return dataset.gather(np.arange(len(dataset)))["x"][:, 0, 0, 0]


def zipped(path, pictures, more=None):
    """A zip archive of pictures, and of further files."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, x in pictures.items():
            buffer = io.BytesIO()
            if name.endswith(".npy"):
                np.save(buffer, x)
            else:
                Image.fromarray(x).save(buffer, "PNG")
            archive.writestr(name, buffer.getvalue())
        for name, text in (more or {}).items():
            archive.writestr(name, text)
    return path


@pytest.mark.parametrize("limit", [1 << 30, 1])
def test_a_tenth_of_class_folders_is_held_out(tmp_path, limit):
    for name, x in entries("").items():
        save(tmp_path / name, x)
    train, test = (data.load(f"folder:{tmp_path}", split=s, memory_limit_bytes=limit) for s in ("train", "test"))
    assert (len(train), len(test)) == (20, 3)  # a tenth, rounded up
    assert sorted([*numbers(train), *numbers(test)]) == list(range(23))
    for part in (train, test):
        assert part.class_names == ("a", "b", "c") and part.shape == (4, 6, 3)
        np.testing.assert_array_equal(part.labels, numbers(part) % 3)
    again = data.load(f"folder:{tmp_path}", split="test")
    np.testing.assert_array_equal(numbers(again), numbers(test))


def test_a_tenth_of_a_flat_folder_is_held_out(tmp_path):
    for i in range(10):
        save(tmp_path / f"{i}.png", np.full((4, 4, 3), i, np.uint8))
    train, test = (data.load(f"folder:{tmp_path}", split=s) for s in ("train", "test"))
    assert (len(train), len(test), train.labels, train.num_classes) == (9, 1, None, 0)
    assert sorted([*numbers(train), *numbers(test)]) == list(range(10))


def test_a_folder_val_is_the_test_split(tmp_path):
    for name in ("train/1.png", "train/2.png", "val/3.png", "extra/4.png"):
        save(tmp_path / name, np.full((4, 4, 3), int(name[-5]), np.uint8))
    assert [list(numbers(data.load(f"folder:{tmp_path}", split=s))) for s in ("train", "test")] == [[1, 2], [3]]


@pytest.mark.parametrize("top", ["", "my pictures/"])
@pytest.mark.parametrize("limit", [1 << 30, 1])
def test_a_zip_archive_is_read_as_the_folder_in_it(tmp_path, top, limit):
    path = zipped(tmp_path / "x.zip", entries(f"{top}train/") | {f"{top}test/b/1.png": np.zeros((4, 6, 3), np.uint8)},
                  {"__MACOSX/train/a/._00.png": "x", f"{top}train/a/.hidden.png": "x"})  # fmt: skip
    train = data.load(f"folder:{path}", split="train", memory_limit_bytes=limit)
    assert train.class_names == ("a", "b", "c") and train.in_memory == (limit > 1)
    np.testing.assert_array_equal(numbers(train) % 3, train.gather(np.arange(23))["label"])
    assert sorted(numbers(train)) == list(range(23))
    np.testing.assert_array_equal(data.load(f"folder:{path}", split="test").labels, [1])


@pytest.mark.parametrize("top", ["", "./", "./my pictures/", "/"])
def test_names_in_a_zip_archive_as_other_programs_write_them(tmp_path, top):
    pictures = entries(f"{top}train/") | {f"{top}test/b/1.png": np.zeros((4, 6, 3), np.uint8)}
    old = {name.replace("/", "\\"): x for name, x in pictures.items()}
    for path in (
        zipped(tmp_path / "x.zip", old, {"train\\": ""}),
        zipped(tmp_path / "y.zip", pictures, {f"{top}train/": "", f"{top}.hidden/0.png": "x"}),
    ):
        train = data.load(f"folder:{path}", split="train")
        assert train.class_names == ("a", "b", "c") and sorted(numbers(train)) == list(range(23))
        np.testing.assert_array_equal(numbers(train) % 3, train.labels)
        np.testing.assert_array_equal(data.load(f"folder:{path}", split="test").labels, [1])


def test_of_members_of_one_name_the_last_counts(tmp_path):
    path = zipped(tmp_path / "x.zip", {f"{i}.png": np.full((4, 4, 3), i, np.uint8) for i in range(3)})
    second = zipped(tmp_path / "y.zip", {"1.png": np.full((4, 4, 3), 9, np.uint8)})
    with zipfile.ZipFile(second) as source, zipfile.ZipFile(path, "a") as archive:
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("1.png", source.read("1.png"))
    parts = [data.load(f"folder:{path}", split=s) for s in ("train", "test")]
    assert sorted(np.concatenate([numbers(part) for part in parts])) == [0, 2, 9]


def test_edm_s_archives_have_their_labels_in_a_file(tmp_path):
    """Folders there hold a thousand pictures each and are no classes (2206.00364, dataset_tool.py)."""
    pictures = {f"{i // 8:05d}/img{i:08d}.png": np.full((4, 4, 3), i, np.uint8) for i in range(20)}
    labels = [[name, (7 * i) % 5] for i, name in enumerate(pictures)]
    path = zipped(tmp_path / "x.zip", pictures, {"dataset.json": json.dumps({"labels": labels[::-1]})})
    parts = [data.load(f"folder:{path}", split=s) for s in ("train", "test")]
    assert [len(p) for p in parts] == [18, 2]
    for part in parts:
        np.testing.assert_array_equal(part.labels, 7 * numbers(part) % 5)
        assert part.num_classes == 5 and part.class_names == ()
    path = zipped(tmp_path / "y.zip", pictures, {"dataset.json": json.dumps({"labels": labels + labels})})
    assert data.load(f"folder:{path}", split="train").num_classes == 5
    path = zipped(tmp_path / "y.zip", pictures, {"dataset.json": '{"labels": null}'})
    assert data.load(f"folder:{path}", split="train").num_classes == 0
    for bad, match in (
        (labels[1:], "has no label of '00000/img00000000.png'"),
        (
            [*labels, [labels[3][0], 4]],
            r"dataset\.json lists 00000/img00000003\.png with the labels 1 and 4: remove one",
        ),
        ([[name, 0.5] for name, _ in labels], "must be whole numbers from 0 to 65535"),
        ([1, 2], "cannot be used as a list of labels"),
    ):
        path = zipped(tmp_path / "z.zip", pictures, {"dataset.json": json.dumps({"labels": bad})})
        with pytest.raises(UserError, match=match):
            data.load(f"folder:{path}", split="train")


def test_a_bucket_is_read_as_a_folder():
    files = fsspec.filesystem("memory")
    for name, x in entries("set/").items():
        buffer = io.BytesIO()
        Image.fromarray(x).save(buffer, "PNG")
        files.pipe_file(f"/{name}", buffer.getvalue())
    try:
        for limit in (1 << 30, 1):
            train = data.load("folder:memory://set", split="train", memory_limit_bytes=limit)
            assert len(train) == 20 and train.class_names == ("a", "b", "c")
            np.testing.assert_array_equal(train.gather(np.arange(20))["label"], numbers(train) % 3)
        with pytest.raises(UserError, match="holds no picture"):
            data.load("folder:memory://elsewhere", split="train")
    finally:
        files.rm("/set", recursive=True)


def test_a_zip_archive_in_a_bucket(tmp_path):
    files = fsspec.filesystem("memory")
    files.pipe_file("/x.zip", zipped(tmp_path / "x.zip", entries("")).read_bytes())
    try:
        assert len(data.load("folder:memory://x.zip", split="train")) == 20
        with pytest.raises(UserError, match="must be the URL of a file that exists"):
            data.load("folder:memory://y.zip", split="train")
    finally:
        files.rm("/x.zip")


def test_float_pictures_are_those_of_zero_to_one(tmp_path):
    x = RNG.random((4, 6, 3)).astype(np.float32)
    x[0, 0, 0], x[0, 0, 1] = 0, 1
    np.save(tmp_path / "a.npy", x)
    save(tmp_path / "b.tif", Image.fromarray(x[..., 0]))
    np.testing.assert_array_equal(images.read_picture(tmp_path / "a.npy", None, 3), np.rint(255 * x))
    assert images.picture_size(tmp_path / "a.npy") == (4, 6)
    np.testing.assert_array_equal(images.read_picture(tmp_path / "b.tif", None, 1), np.rint(255 * x[..., :1]))
    np.save(tmp_path / "a.npy", 2 * x - 1)
    with pytest.raises(UserError, match=r"a\.npy has floating-point pixels from -.* to 1; .* data\.kind=array to keep"):
        images.read_picture(tmp_path / "a.npy", None, 3)


def test_arrays_keep_the_values_of_sixteen_bits_floats_and_any_channels(tmp_path):
    x = RNG.integers(0, 1 << 16, (3, 4, 6), dtype=np.uint16)
    for i in range(3):
        save(tmp_path / "png" / f"{i}.png", x[i])
    y = RNG.normal(size=(3, 4, 6, 5))
    zipped(tmp_path / "y.zip", {f"{i}.npy": y[i] for i in range(3)})
    for name, want in ((f"{tmp_path}/png", x[..., None]), (f"{tmp_path}/y.zip", y.astype(np.float32))):
        for limit in (1 << 30, 1):
            parts = [
                data.load(f"folder:{name}", split=s, kind="array", memory_limit_bytes=limit) for s in ("train", "test")
            ]
            assert all(part.kind == "array" and not part.is_image for part in parts)
            assert all(part.integers == (want.dtype == np.uint16) for part in parts)
            found = np.concatenate([part.gather(np.arange(len(part)))["x"] for part in parts])
            assert found.dtype == np.float32
            assert {a.tobytes() for a in found} == {a.astype(np.float32).tobytes() for a in want}
    with pytest.raises(UserError, match="`image_size` is 4; it must be None for kind = 'array'"):
        data.load(f"folder:{tmp_path}/png", split="train", kind="array", image_size=4)


@pytest.mark.parametrize("limit", [1 << 30, 1])
def test_arrays_of_integers_and_of_floats_are_not_one_data_set(tmp_path, limit):
    # Bits per dimension of the floats would be those of integers, or the other way round.
    for first, second in ((np.uint16, np.float32), (np.float32, np.uint16)):
        for i in range(4):
            np.save(tmp_path / f"{i}.npy", np.ones((4, 6, 2), second if i == 3 else first))
        what = f"3.npy holds .* \\({second.__name__}\\), and the first file .*: all files must hold the same"
        with pytest.raises(UserError, match=what):
            for split in ("train", "test"):
                found = data.load(f"folder:{tmp_path}", split=split, kind="array", memory_limit_bytes=limit)
                found.gather(np.arange(len(found)))


def test_rectangles_are_covered_and_cut(tmp_path):
    """A ramp of 16 gray values from left to right, each 2 wide: 4 high and 6 wide is its middle, at half the size."""
    ramp = np.repeat(np.arange(16, dtype=np.uint8) * 10, 2)
    for i in range(2):
        save(tmp_path / f"{i}.png", np.tile(ramp, (8, 1)))
    found = data.load(f"folder:{tmp_path}", split="train", image_size=(4, 6), channels=1)
    assert found.shape == (4, 6, 1)
    np.testing.assert_allclose(found.source[0, :, :, 0], np.tile(np.arange(5, 11) * 10, (4, 1)), atol=3)
    digits = data.load("digits", split="test", image_size=(4, 8))
    assert digits.shape == (4, 8, 1)
