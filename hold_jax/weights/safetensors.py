"""Reads and writes safetensors files: a header of JSON, then the raw numbers of every array, one after the other.

The format (github.com/huggingface/safetensors): eight bytes, the length N of the header, little-endian; N bytes of a
JSON object that maps a name to {"dtype", "shape", "data_offsets": [begin, end]}, counted from the header's end, and
`__metadata__` to an object of strings; then the arrays' bytes, little-endian, C order, without gaps or overlaps.
"""

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from hold_jax.errors import UserError, require_choice
from hold_jax.weights.files import replacing

_DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_NAMES = {dtype.name: name for name, dtype in _DTYPES.items()}
_METADATA = "__metadata__"
# The reference implementation's limit.
_LONGEST_HEADER = 100_000_000


def read(path: Path, argument: str = "input") -> dict[str, np.ndarray]:
    """The arrays of a file by name, read-only, in the order of the header.

    Args:
      path: the file.
      argument: what errors call it.

    Raises:
      UserError: if it is missing, damaged, or no safetensors file.
    """
    return _read(path, argument)[0]


def read_metadata(path: Path, argument: str = "input") -> dict[str, str]:
    """The metadata of a file, strings by name. Raises as `read`."""
    return _read(path, argument)[1]


def write(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Writes arrays by name, and `metadata`, for `read`; what was at `path` stays until the new file is complete.

    Raises:
      UserError: if `path` cannot be written, or an array's type has no name in the format.
    """
    header: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    end = 0
    for name, array in arrays.items():
        require_choice(f"dtype of {name}", array.dtype.name, _NAMES)
        begin, end = end, end + array.nbytes
        dtype = _NAMES[array.dtype.name]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in arrays.values():
            file.write(np.asarray(array, _DTYPES[_NAMES[array.dtype.name]], order="C").tobytes())


def _read(path: Path, argument: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    where = f"`{argument}` is {str(path)!r}"
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{where}; it cannot be read: {error.strerror or error}") from None
    size = struct.unpack("<Q", raw[:8])[0] if len(raw) >= 8 else _LONGEST_HEADER + 1
    if size > min(_LONGEST_HEADER, len(raw) - 8):
        raise UserError(f"{where}; it is not a safetensors file, or is cut")
    try:
        header = json.loads(raw[8 : 8 + size].decode())
        metadata = header.pop(_METADATA, {})
        arrays = _arrays(header, memoryview(raw)[8 + size :], where)
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{where}; it is not a safetensors file, or is damaged ({error})") from None
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise UserError(f"{where}; its {_METADATA} is not an object of strings")
    return arrays, metadata


def _arrays(header: dict[str, Any], data: memoryview, where: str) -> dict[str, np.ndarray]:
    spans, arrays = [], {}
    for name, entry in header.items():
        if isinstance(entry["dtype"], str) and entry["dtype"] not in _DTYPES:
            raise UserError(f"{where}; its {name} is of type {entry['dtype']}; it must be one of {', '.join(_DTYPES)}")
        dtype, shape, (begin, end) = _DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
        if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
            raise ValueError(f"{name} has shape {shape} at bytes {begin} to {end}")
        if end - begin != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{name} of shape {shape}, {entry['dtype']}, has {end - begin} bytes")
        spans.append((begin, end))
        if end > len(data):
            raise ValueError(f"{name} ends at byte {end} of {len(data)}")
        arrays[name] = np.frombuffer(data[begin:end], dtype).reshape(shape)
    at = 0
    for begin, end in sorted(spans):
        if begin != at:
            raise ValueError(f"an array begins at byte {begin}, not {at}")
        at = end
    if at != len(data):
        raise ValueError(f"{len(data) - at} bytes are left over")
    return arrays
