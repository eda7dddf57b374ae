import numpy as np
import PIL.Image
import pytest

from hold_jax.data.inputs import read_input
from hold_jax.errors import UserError

RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, 256, (3, 4, 4, 3), np.uint8)


def test_arrays_and_pictures_are_read_as_they_are(tmp_path):
    np.savez(tmp_path / "x.npz", x=PICTURES, y=np.arange(3))
    np.savez(tmp_path / "only.npz", pictures=PICTURES)
    np.save(tmp_path / "x.npy", PICTURES)
    for name in ("x.npz", "only.npz", "x.npy"):
        np.testing.assert_array_equal(read_input(str(tmp_path / name), "task.input", (4, 4, 3), picture=True), PICTURES)
    np.save(tmp_path / "gray.npy", PICTURES[..., 0])
    np.testing.assert_array_equal(
        read_input(str(tmp_path / "gray.npy"), "task.input", (4, 4, 1), picture=True), PICTURES[..., :1]
    )
    PIL.Image.fromarray(PICTURES[0]).save(tmp_path / "one.png")
    np.testing.assert_array_equal(
        read_input(str(tmp_path / "one.png"), "task.input", (4, 4, 3), picture=True), PICTURES[:1]
    )
    PIL.Image.fromarray(PICTURES[0].repeat(8, 0).repeat(8, 1)).save(tmp_path / "large.png")
    assert (
        np.abs(
            read_input(str(tmp_path / "large.png"), "task.input", (4, 4, 3), picture=True)[0].astype(int) - PICTURES[0]
        ).max()
        < 60
    )
    points = RNG.normal(size=(5, 2))
    np.save(tmp_path / "points.npy", points)
    found = read_input(str(tmp_path / "points.npy"), "task.input", (2,), picture=False)
    np.testing.assert_array_equal(found, points.astype(np.float32))
    assert found.dtype == np.float32


def arrays(**values):
    return lambda path: np.savez(path, **values)


WRONG = {
    "missing": (lambda path: None, (4, 4, 3), "it must be a file that exists"),
    "text": (lambda path: path.write_bytes(b"hello"), (4, 4, 3), "it cannot be read: File is not a zip file"),
    "two arrays": (arrays(a=PICTURES, b=PICTURES), (4, 4, 3), "it needs an array x; it holds a uint8[3, 4, 4, 3], b"),
    "objects": (arrays(x=np.array([None])), (4, 4, 3), "it cannot be read: Object arrays are not read"),
    "shape": (arrays(x=PICTURES[:, :3]), (4, 4, 3), "it must be an array (N, 4, 4, 3); it is (3, 3, 4, 3)"),
    "none": (arrays(x=PICTURES[:0]), (4, 4, 3), "it must be an array (N, 4, 4, 3); it is (0, 4, 4, 3)"),
    "floats": (arrays(x=PICTURES / 255), (4, 4, 3), "it must be pictures of 8 bits, uint8; its values are float64"),
    "words": (arrays(x=np.array([["a", "b"]])), (2,), "it must be an array of numbers; its values are <U1"),
    "NaN": (arrays(x=np.array([[0, np.nan]])), (2,), "it must be an array of finite numbers"),
}


@pytest.mark.parametrize(("write", "shape", "message"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_used_is_named(write, shape, message, tmp_path):
    path = tmp_path / "x.npz"
    write(path)
    with pytest.raises(UserError) as caught:
        read_input(str(path), "task.input", shape, picture=len(shape) == 3)
    assert str(caught.value).startswith(f"`task.input` is '{path}'; {message}")


def test_a_picture_file_is_for_pictures(tmp_path):
    PIL.Image.fromarray(PICTURES[0]).save(tmp_path / "one.png")
    with pytest.raises(UserError, match="for data that are not pictures"):
        read_input(str(tmp_path / "one.png"), "task.input", (2,), picture=False)


def test_an_npy_file_of_something_else_is_named(tmp_path):
    path = tmp_path / "x.npy"
    with open(path, "wb") as file:
        np.savez(file, x=PICTURES)
    with pytest.raises(UserError, match=r"`task.input` is .*x.npy'; it cannot be read"):
        read_input(str(path), "task.input", (4, 4, 3), picture=True)
    header = {"descr": "<f8", "fortran_order": False, "shape": (2**50, 4, 4, 3)}
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(UserError, match=r"`task.input` is .*x.npy'; it cannot be read"):
        read_input(str(path), "task.input", (4, 4, 3), picture=True)
