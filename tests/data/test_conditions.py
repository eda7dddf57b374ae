"""Conditions beside the examples of an npz."""

import numpy as np
import PIL.Image
import pytest

from hold_jax import data
from hold_jax.data import measured
from hold_jax.data.dataset import measure
from hold_jax.errors import UserError

NUM = 25
X = np.arange(NUM * 2, dtype=np.float32).reshape(NUM, 2)
PICTURES = np.random.default_rng(0).integers(0, 256, (NUM, 6, 6, 3), dtype=np.uint8)
VECTOR = X[:, :1] * 10 + np.arange(3)
LOW = PICTURES[:, ::2, ::2, 0]


@pytest.fixture
def save(tmp_path):
    def save_(**arrays):
        np.savez(tmp_path / "set.npz", **arrays)
        return f"npz:{tmp_path / 'set.npz'}"

    return save_


def load(name, split="train", **options):
    return data.load(name, split=split, **options)


def test_conditions_stay_with_their_examples(save):
    name = save(x=X, given=VECTOR)
    for split, num in (("train", 22), ("test", 3)):
        found = load(name, split, condition="given")
        batch = found.subset(None).gather(np.arange(num))
        assert len(found) == num and found.layout["vector"] == ((3,), np.float32)
        np.testing.assert_array_equal(batch["vector"], batch["x"][:, :1] * 10 + np.arange(3))
    step = next(data.batches(load(name, condition="given"), batch_size=7, seed=0))
    np.testing.assert_array_equal(step["vector"][:, 0], step["x"][:, 0] * 10)


def test_a_picture_a_vector_and_a_class_at_once_with_own_test_arrays(save):
    parts = {"x": PICTURES, "y": np.arange(NUM) % 3, "low": LOW, "angle": X[:, 0].astype(np.int64)}
    name = save(**{k: v[:20] for k, v in parts.items()}, **{f"{k}_test": v[20:] for k, v in parts.items()})
    batch = load(name, "test", condition="low, angle").gather(np.arange(5))
    np.testing.assert_array_equal(batch["picture"], LOW[20:, ..., None])
    np.testing.assert_array_equal(batch["vector"], X[20:, :1])
    np.testing.assert_array_equal(batch["label"], np.arange(20, 25) % 3)


def test_a_condition_may_have_the_name_that_data_may_have(save):
    found = load(save(x=X, images=PICTURES), condition="images")
    assert found.shape == X.shape[1:] and found.layout["picture"][0] == PICTURES.shape[1:]
    assert load(save(x=X), condition="x").layout["vector"][0] == X.shape[1:]


def test_the_digest_depends_on_the_conditions(save):
    found = [load(save(x=X, given=v), condition="given").digest for v in (VECTOR, VECTOR + 1)]
    assert len({*found, load(save(x=X)).digest}) == 3


def test_a_condition_picture_is_mirrored_with_its_picture(save):
    found = load(save(x=PICTURES, same=PICTURES), condition="same")
    batch = next(data.batches(found, batch_size=22, seed=0, flip=True))
    np.testing.assert_array_equal(batch["picture"], batch["x"])
    known = {p.tobytes() for p in PICTURES}
    assert 3 < sum(p.tobytes() in known for p in batch["x"]) < 19


def test_an_image_size_fits_both_pictures_in_the_same_way(save):
    wide = np.repeat(PICTURES, 2, axis=2)
    found = load(save(x=wide, low=wide), condition="low", image_size=4)
    np.testing.assert_array_equal(found.picture, found.source)
    with pytest.raises(UserError, match=r"`image_size` is 4; it must be None, because the condition pictures"):
        load(save(x=wide, low=wide.astype(np.float32)), condition="low", image_size=4)


def test_statistics_of_conditions(save):
    floats = PICTURES[..., :2] * np.float32([1, 5]) + np.float32([0, 100])
    found = measure(load(save(x=PICTURES, a=floats, b=VECTOR), condition="a,b"))
    rows = load(save(x=PICTURES, a=floats, b=VECTOR), condition="a,b")
    np.testing.assert_allclose(found.picture_mean, rows.picture.mean(axis=(0, 1, 2), dtype=np.float64))
    np.testing.assert_allclose(found.vector_std, rows.vector.std(axis=0, dtype=np.float64))
    assert found.picture_shape == (6, 6, 2)
    eight = measure(load(save(x=PICTURES, a=LOW), condition="a"))
    assert eight.picture_shape == (3, 3, 1) and eight.picture_mean == () and eight.vector_mean == ()


NAN = VECTOR.copy()
NAN[4, 1] = np.nan
WRONG = {
    "a missing array": (dict(x=X), "given", r"there is no array given; the archive holds x float32\[25, 2\]"),
    "another length": (dict(x=X, given=VECTOR[:-1]), "given", "array given has 24 rows for 25 examples"),
    "not finite": (dict(x=X, given=NAN), "given", "1 of its 25 rows, such as 4, are not finite as float32"),
    "too large": (dict(x=X, given=VECTOR * 1e300), "given", "25 of its 25 rows, such as 0, are not finite"),
    "text": (dict(x=X, given=np.array(["a"] * NUM)), "given", r"it is <U1\[25\]; it must be uint8 or float pictures"),
    "complex": (dict(x=X, given=VECTOR + 1j), "given", r"it is complex128\[25, 3\]"),
    "five axes": (dict(x=X, given=np.zeros((NUM, 1, 1, 1, 1))), "given", r"it is float64\[25, 1, 1, 1, 1\]"),
    "16 bits": (
        dict(x=X, given=LOW.astype(np.uint16)),
        "given",
        "its pictures are uint16; they must be uint8 or float",
    ),
    "two vectors": (dict(x=X, a=VECTOR, b=VECTOR), "a,b", "two of its arrays are a vector: join them into one array"),
    "objects": (dict(x=X, given=np.array([{}] * NUM)), "given", "array given cannot be used: Object arrays"),
    "no test array": (dict(x=X, x_test=X, given=VECTOR), "given", "there is no array given_test"),
}


@pytest.mark.parametrize(("arrays", "condition", "message"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_a_condition_is_named(save, arrays, condition, message):
    with pytest.raises(UserError, match=message) as caught:
        load(save(**arrays), "test", condition=condition)
    assert "\n" not in str(caught.value) and f"`condition` is {condition!r}" in str(caught.value)


# --- Measurements of the data ----------------------------------------------------------------------------


def test_halves_of_digits():
    """What docs/conditions.md trains on: the lower half, and gray in place of the upper one."""
    found = load("digits", "test", condition="inpaint:upper")
    want = found.source.copy()
    want[:, :4] = 128
    np.testing.assert_array_equal(found.picture, want)
    assert measure(found).picture_shape == (8, 8, 1) and not measure(found).picture_mean


def test_small_and_gray_pictures(save):
    name = save(x=PICTURES)
    small = load(name, condition="superres:3")
    blocks = small.source.reshape(22, 2, 3, 2, 3, 3).mean(axis=(2, 4))
    assert np.abs(small.picture - blocks).max() <= 0.5 + 1e-4
    gray = load(name, condition="colorize:")
    assert np.abs(gray.picture - gray.source.mean(axis=-1, keepdims=True)).max() <= 0.5 + 1e-4


def test_a_coordinate_of_points_is_a_vector_in_their_units():
    found = load("swissroll", condition="inpaint:right", size=100)
    np.testing.assert_array_equal(found.vector, found.source[:, :1])
    halves = load("damped_sines", condition="inpaint:left", size=10)
    np.testing.assert_array_equal(halves.vector, halves.source[:, 32:, 0])


def test_a_measurement_beside_an_array(save):
    batch = load(save(x=PICTURES, angle=X[:, 0]), condition="inpaint:left, angle").gather(np.arange(22))
    np.testing.assert_array_equal(batch["picture"][:, :, 3:], batch["x"][:, :, 3:])
    assert batch["vector"].shape == (22, 1)


@pytest.mark.parametrize("kind", ["picture", "array"])
def test_a_measurement_on_disk_is_that_in_memory(tmp_path, kind):
    for i in range(20):
        PIL.Image.fromarray(PICTURES[i % 4 + i // 4]).save(tmp_path / f"{i:02d}.png")
    memory, disk = (
        load(f"folder:{tmp_path}", kind=kind, condition="superres:2", memory_limit_bytes=limit)
        for limit in (1 << 30, 1)
    )
    assert memory.in_memory and not disk.in_memory
    rows = np.arange(len(memory))
    np.testing.assert_allclose(disk.gather(rows)["picture"], memory.gather(rows)["picture"], rtol=1e-6)
    assert disk.layout == memory.layout
    np.testing.assert_allclose(measure(disk).picture_mean, measure(memory).picture_mean, rtol=1e-6)


UNFIT = {
    "an array of digits": (
        "digits",
        "lower",
        "`condition` is 'lower'; for 'digits' it must be None or a measurement, inpaint:MASK, superres:FACTOR, "
        "deblur:PIXELS, colorize:; other conditions are arrays in an .npz (npz:PATH) or a second folder (folder:PATH)",
    ),
    "an array of a toy": ("swissroll", "angle", "`condition` is 'angle'; for 'swissroll' it must be None or a"),
    "a factor": (
        "digits",
        "superres:3",
        "`condition` is 'superres:3', for data of shape (8, 8, 1): `factor` is 3; it must be 2 or more and a",
    ),
    "no number": ("digits", "deblur:much", "`condition` is 'deblur:much'; 'much' must be a number of pixels"),
    "half a pixel": ("digits", "superres:2.5", "'2.5' must be a whole number of pixels"),
    "an infinite blur": ("digits", "deblur:inf", "`blur` is inf; it must be positive"),
    "a mask": ("digits", "inpaint:lowr", "`mask` is 'lowr'; it must be box, left, right, upper, lower, random, or a"),
    "a value too many": ("digits", "colorize:red", "`condition` is 'colorize:red'; it must be 'colorize:', which has"),
    "one channel": ("digits", "colorize:", "`channels` is 1; it must be 2 or more to colorize"),
    "two": ("digits", "superres:2,inpaint:left", "it must be one measurement of the data, inpaint:MASK"),
    "points": ("swissroll", "superres:2", "`data_shape` is (2,); it must be (*S, C) with axes S"),
}


@pytest.mark.parametrize(("name", "condition", "message"), UNFIT.values(), ids=UNFIT)
def test_a_measurement_that_does_not_fit_is_named(name, condition, message):
    with pytest.raises(UserError) as caught:
        load(name, condition=condition)
    assert message in str(caught.value) and "`condition`" in str(caught.value) and "\n" not in str(caught.value)


def test_a_mirrored_picture_must_have_the_same_part_hidden(tmp_path):
    for condition in ("superres:2", "inpaint:box", "inpaint:upper", "inpaint", None, "low"):
        measured.require_mirrored(condition, (8, 8, 1))
    for condition in ("inpaint:left", "inpaint:random"):
        with pytest.raises(UserError, match=f"`data.flip` is True; it must be False with {condition}"):
            measured.require_mirrored(condition, (8, 8, 1))
    np.save(tmp_path / "masks.npy", np.full((2, 8, 8, 1), 255, np.uint8))
    with pytest.raises(UserError, match="it must be one mask; it holds 2"):
        load("digits", condition=f"inpaint:{tmp_path / 'masks.npy'}")


def test_two_condition_pictures_are_one_too_many(save):
    with pytest.raises(UserError, match="'superres:2'; it must be None, because the data have a condition picture"):
        load(save(x=PICTURES, low=LOW), condition="low,superres:2")


# --- Paired folders --------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path):
    """20 pictures of 6x6, and in a second folder the upper half of each."""
    for i in range(20):
        picture = np.random.default_rng(i).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        picture[0, 0] = i
        for folder, ending, array in (("a", "png", picture), ("b", "bmp", picture[:3])):
            path = tmp_path / folder / ("cat" if i % 2 else "dog") / f"{i:02d}.{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(array).save(path)
    return tmp_path


@pytest.mark.parametrize("limit", [1 << 20, 1], ids=["in memory", "on disk"])
def test_a_second_folder_has_the_picture_of_the_same_name(folders, limit):
    for split, num in (("train", 18), ("test", 2)):
        options = dict(condition=str(folders / "b"), memory_limit_bytes=limit)
        found = data.load(f"folder:{folders / 'a'}", split=split, **options)
        assert found.in_memory == (limit > 1) and found.layout["picture"] == ((3, 6, 3), np.uint8)
        batch = found.subset(None).gather(np.arange(num))
        np.testing.assert_array_equal(batch["picture"], batch["x"][:, :3])
        assert measure(found).picture_shape == (3, 6, 3)


def test_two_conditions_of_one_name_are_an_error(folders):
    PIL.Image.open(folders / "b" / "cat" / "01.bmp").save(folders / "b" / "cat" / "01.png")
    with pytest.raises(UserError, match=r"it holds cat/01.bmp and cat/01.png: keep one of them"):
        data.load(f"folder:{folders / 'a'}", split="train", condition=str(folders / "b"))


def test_a_damaged_condition_is_named(folders):
    (folders / "b" / "cat" / "01.bmp").write_bytes(b"BM")
    with pytest.raises(UserError, match=r"1 of \d+ pictures cannot be read: .*01\.bmp"):
        data.load(f"folder:{folders / 'a'}", split="train", condition=str(folders / "b"))


def test_pairs_that_are_missing_or_damaged_are_named(folders):
    (folders / "b" / "dog" / "04.bmp").unlink()
    name = f"folder:{folders / 'a'}"
    for split, of in (("train", 18),):
        with pytest.raises(UserError, match=rf"none for 1 of {of}, such as dog/04.png"):
            data.load(name, split=split, condition=str(folders / "b"))
    with pytest.raises(UserError, match="`condition` is 'folder:none'; there is no folder none"):
        data.load(name, split="train", condition="none")
