"""Writes a state dict as `torch.save` does, without PyTorch: a zip of one pickle and each tensor's raw numbers."""

import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from hold_jax.weights.files import replacing

_ROOT = "archive"
# Opcodes of pickle protocol 2 (the documentation of Python's `pickletools`).
_PROTOCOL, _STOP = b"\x80\x02", b"."
_MARK, _TUPLE, _EMPTY_TUPLE, _EMPTY_DICT, _SET_ITEMS = b"(", b"t", b")", b"}", b"u"
_CALL, _PERSISTENT_ID, _FALSE = b"R", b"Q", b"\x89"


def write(path: Path, state: Mapping[str, np.ndarray]) -> None:
    """Writes float32 arrays by name; `torch.load(path, weights_only=True)` gives them as tensors.

    Raises:
      UserError: if `path` cannot be written; what was there stays until the new file is complete.
    """
    arrays = {name: np.asarray(array, np.dtype("<f4"), order="C") for name, array in state.items()}
    items = b"".join(_text(name) + _tensor(str(key), array) for key, (name, array) in enumerate(arrays.items()))
    pickled = _PROTOCOL + _EMPTY_DICT + _MARK + items + _SET_ITEMS + _STOP
    with replacing(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(f"{_ROOT}/data.pkl", pickled)
        archive.writestr(f"{_ROOT}/byteorder", b"little")
        for key, array in enumerate(arrays.values()):
            archive.writestr(f"{_ROOT}/data/{key}", array.tobytes())
        archive.writestr(f"{_ROOT}/version", b"3\n")


def _tensor(key: str, array: np.ndarray) -> bytes:
    """A contiguous tensor that is all of storage `key`, without gradient or hooks."""
    stored = _tuple(_text("storage"), _global("torch", "FloatStorage"), _text(key), _text("cpu"), _int(array.size))
    strides = (step // array.itemsize for step in array.strides)
    hooks = _global("collections", "OrderedDict") + _EMPTY_TUPLE + _CALL
    arguments = _tuple(
        stored + _PERSISTENT_ID,
        _int(0),
        _tuple(*map(_int, array.shape)),
        _tuple(*map(_int, strides)),
        _FALSE,
        hooks,
    )
    return _global("torch._utils", "_rebuild_tensor_v2") + arguments + _CALL


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _tuple(*items: bytes) -> bytes:
    return _MARK + b"".join(items) + _TUPLE


def _text(text: str) -> bytes:
    raw = text.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def _int(value: int) -> bytes:
    # Four bytes if that is enough, else a number with its length.
    if value < 2**31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x08" + struct.pack("<q", value)
