"""The safetensors format, against bytes written by hand from its description and by the `safetensors` package."""

import base64
import json
import struct

import ml_dtypes
import numpy as np
import pytest

from hold_jax.errors import UserError
from hold_jax.weights import safetensors


def file_of(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


# safetensors 0.8.0: save({"b": arange(6).reshape(2, 3) float32, "a": [1, -2] int64}, metadata={"format": "pt"}).
PACKAGE = base64.b64decode(
    "kAAAAAAAAAB7Il9fbWV0YWRhdGFfXyI6eyJmb3JtYXQiOiJwdCJ9LCJhIjp7ImR0eXBlIjoiSTY0Iiwic2hhcGUiOlsyXSwiZGF0"
    "YV9vZmZzZXRzIjpbMCwxNl19LCJiIjp7ImR0eXBlIjoiRjMyIiwic2hhcGUiOlsyLDNdLCJkYXRhX29mZnNldHMiOlsxNiw0MF19"
    "fSABAAAAAAAAAP7/////////AAAAAAAAgD8AAABAAABAQAAAgEAAAKBA"
)


def test_a_file_of_the_package(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(PACKAGE)
    found = safetensors.read(path)
    np.testing.assert_array_equal(found["b"], np.arange(6, dtype=np.float32).reshape(2, 3))
    np.testing.assert_array_equal(found["a"], np.array([1, -2]))
    assert (found["b"].dtype, found["a"].dtype) == (np.float32, np.int64)
    assert safetensors.read_metadata(path) == {"format": "pt"}


def test_bytes_by_the_description(tmp_path):
    path = tmp_path / "a.safetensors"
    header = {
        "half": {"dtype": "BF16", "shape": [2], "data_offsets": [8, 12]},
        "two": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]},
        "none": {"dtype": "F16", "shape": [0, 3], "data_offsets": [12, 12]},
    }
    path.write_bytes(file_of(header, struct.pack("<ff", 1.5, -2.0) + b"\x80\x3f\x00\xc0"))
    found = safetensors.read(path)
    np.testing.assert_array_equal(found["two"], [[1.5], [-2.0]])
    np.testing.assert_array_equal(found["half"], np.array([1, -2], ml_dtypes.bfloat16))
    assert found["none"].shape == (0, 3) and safetensors.read_metadata(path) == {}


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "a.safetensors"
    arrays = {
        "scalar": np.float64(3.25),
        "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "big-endian": np.arange(3, dtype=">i4"),
        "half": np.array([1, 2], ml_dtypes.bfloat16),
        "né": np.array([True, False]),
    }
    safetensors.write(path, arrays, {"which": "of a test"})
    found = safetensors.read(path)
    assert list(found) == list(arrays) and safetensors.read_metadata(path) == {"which": "of a test"}
    for name, value in arrays.items():
        np.testing.assert_array_equal(found[name], value)
    assert (struct.unpack("<Q", path.read_bytes()[:8])[0]) % 8 == 0  # so that the numbers are aligned
    with pytest.raises(UserError, match=r"`dtype of a` is 'complex64'; it must be one of: "):
        safetensors.write(path, {"a": np.zeros(2, np.complex64)})


ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "it is not a safetensors file, or is cut"),
        (b"PK\x03\x04aaaaaaaa", "it is not a safetensors file, or is cut"),
        (file_of({"a": ONE}, b"1234567"), "a ends at byte 8 of 7"),
        (file_of({"a": ONE}, b"123456789"), "1 bytes are left over"),
        (file_of({"a": {**ONE, "shape": [3]}}, b"12345678"), r"a of shape \(3,\), F32, has 8 bytes"),
        (file_of({"a": {**ONE, "shape": [-2]}}, b"12345678"), r"a has shape \(-2,\)"),
        (file_of({"a": {**ONE, "shape": [True, 2]}}, b"12345678"), r"a has shape \(True, 2\)"),
        (file_of({"a": {**ONE, "dtype": "C64"}}, b"12345678"), "; its a is of type C64; it must be one of F64, F32"),
        (file_of({"a": {**ONE, "dtype": ["F32"]}}, b"12345678"), "or is damaged"),
        (file_of({"a": ONE, "b": ONE}, b"12345678"), "an array begins at byte 0, not 8"),
        (file_of({"a": 3}, b""), "or is damaged"),
        (file_of([1]), "or is damaged"),
        (file_of(b"{"), "or is damaged"),
        (file_of({"__metadata__": {"a": 1}}), "__metadata__ is not an object of strings"),
    ],
)
def test_a_damaged_file(tmp_path, raw, message):
    path = tmp_path / "a.safetensors"
    path.write_bytes(raw)
    with pytest.raises(UserError, match=message):
        safetensors.read(path)
