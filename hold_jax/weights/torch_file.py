"""Reads what `torch.save` wrote, without PyTorch and without running anything that the file names.

Such a file is a pickle beside the raw numbers of its tensors; a pickle names functions and calls them. Here it can name
only what `_GLOBALS` lists, each an opaque stand-in for a function of ours, and its tensors become NumPy arrays.
"""

import io
import math
import pickle
import pickletools
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn

import ml_dtypes
import numpy as np

from hold_jax.errors import UserError
from hold_jax.runtime.storage import open_regular

_READABLE = "only tensors, dicts, lists, numbers and strings are read"
# torch.serialization's first pickle of a file that is not a zip (the format before PyTorch 1.6), and its version.
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
# Tensors are beside the pickle, which takes about 200 bytes for each of them.
_PICKLE_MAX_BYTES = 1 << 26
# What `zipfile` was seen to raise, or documents, for a damaged archive.
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    ValueError,
)


def read(path: str | Path, argument: str = "input") -> Any:
    """What `torch.save(value, path)` saved, e.g. a state dict as `dict[str, np.ndarray]`.

    Both formats, the zip of PyTorch 1.6 and the one before it. What `torch.jit.save` saved is read too, each module as
    a dict of its attributes. Dicts, lists, tuples, numbers, strings and None stay;
    a NumPy number becomes Python's, a tensor or parameter a read-only array of the same type (bfloat16 of `ml_dtypes`),
    a dtype NumPy's; views of one storage share memory.

    Args:
      path: the file.
      argument: what errors call it.

    Raises:
      UserError: if the file is missing or damaged, or holds anything else.
    """
    try:
        with open_regular(path) as file:
            return _read_zip(file) if _starts_with(file, b"PK\x03\x04") else _read_legacy(file)
    except _Refusal as refusal:
        raise UserError(f"`{argument}` is {str(path)!r}; it {refusal}") from None
    except OSError as error:
        raise UserError(f"`{argument}` is {str(path)!r}; it cannot be read: {error.strerror or error}") from None


class _Refusal(Exception):  # noqa: N818
    """Completes the sentence "the file ..."."""


def _refuse(reason: str) -> NoReturn:
    raise _Refusal(reason)


class _Storage(NamedTuple):
    """The numbers that tensors are views of: `numel` of type `dtype`, found under `key`."""

    key: str
    dtype: np.dtype
    numel: int


class _Opaque:
    """An object that a pickle can pass on and call, and can neither look into nor alter."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> NoReturn:
        _refuse(f"sets the state of a {type(self).__name__.strip('_').lower()}; {_READABLE}")


class _Global(_Opaque):
    """What a pickle may name: a function of ours or, as `value`, a type of numbers."""

    __slots__ = ("function", "name", "value")

    def __init__(self, name: str, function: Callable[..., Any] | None = None, value: np.dtype | None = None):
        self.name, self.function, self.value = name, function, value

    def __call__(self, *args: Any) -> Any:
        if self.function is None:
            _refuse(f"calls {self.name}; {_READABLE}")
        return self.function(*args)


class _Tensor(_Opaque):
    """A view of a storage, made into an array once the storages are read; offset and stride count elements."""

    __slots__ = ("offset", "size", "storage", "stride")

    def __init__(self, storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...]):
        numbers = (offset, *size, *stride)
        if not isinstance(storage, _Storage) or any(type(n) is not int or n < 0 for n in numbers):
            _refuse("holds a tensor that is not well formed")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if math.prod(size) and last >= storage.numel:
            _refuse(
                f"is damaged: a tensor with offset {offset}, size {size}, stride {stride} "
                f"is past the {storage.numel} numbers of its storage"
            )
        self.storage, self.offset, self.size, self.stride = storage, offset, size, stride

    def array(self, raw: bytes, order: str) -> np.ndarray:
        """The view of `raw`, the storage's bytes in byte order "<" or ">"."""
        dtype = self.storage.dtype
        # Bytes are swapped as integers: bfloat16 has no byte order in NumPy.
        numbers = np.frombuffer(raw, f"{order}u{dtype.itemsize}").astype(f"=u{dtype.itemsize}", copy=False)
        numbers = numbers != 0 if dtype.kind == "b" else numbers.view(dtype)
        strides = tuple(step * dtype.itemsize for step in self.stride)
        if not math.prod(self.size):
            return np.empty(self.size, dtype)
        return np.lib.stride_tricks.as_strided(numbers[self.offset :], self.size, strides, writeable=False)


class _NumpyDtype(_Opaque):
    """The type of a NumPy number; its state is a version and a byte order, then what plain numbers have none of."""

    __slots__ = ("dtype",)

    def __init__(self, code: Any, *rest: Any):
        if rest != (False, True) or not isinstance(code, str) or not re.fullmatch(r"[biuf][1248]", code):
            _refuse(f"holds numbers of NumPy's type {_printable(str(code))}; {_READABLE}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        match state:
            case (int(), "<" | ">" | "=" | "|" as order, None, None, None, -1, -1, 0):
                self.dtype = self.dtype.newbyteorder(order)
            case _:
                _refuse(f"alters a type of NumPy; {_READABLE}")


def _numpy_scalar(dtype: Any, raw: Any) -> Any:
    """A NumPy number, such as a learning rate of a warm-up, as Python's."""
    if not isinstance(dtype, _NumpyDtype) or type(raw) is not bytes or len(raw) != dtype.dtype.itemsize:
        _refuse("holds a NumPy number that is not well formed")
    return np.frombuffer(raw, dtype.dtype)[0].item()


def _encode(text: Any, encoding: Any) -> bytes:
    """How protocol 2 writes bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        _refuse(f"encodes an object that is not a string of bytes; {_READABLE}")
    return text.encode("latin1")


class _Dict(dict):
    """An OrderedDict of the file; module state dicts carry attributes, which are not kept."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        del state


class _Module(dict):
    """A module of a TorchScript archive: its attributes by name."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            _refuse(f"has a module whose state is not a dict; {_READABLE}")
        self.update(state)


def _rebuild_tensor(
    storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any = None, hooks: Any = None, marks: Any = None
) -> _Tensor:
    del requires_grad, hooks
    if marks:
        _refuse("holds a tensor marked as lazily conjugated or negated; save a copy of it")
    return _Tensor(storage, offset, tuple(size), tuple(stride))


def _bare(value: Any, beside: Any = None, hooks: Any = None) -> Any:
    """A parameter's tensor, or a list or dict of a TorchScript archive, whose type PyTorch writes beside it."""
    del beside, hooks
    return value


_DTYPES = {
    "float16": ("HalfStorage", np.float16),
    "bfloat16": ("BFloat16Storage", ml_dtypes.bfloat16),
    "float32": ("FloatStorage", np.float32),
    "float64": ("DoubleStorage", np.float64),
    "int8": ("CharStorage", np.int8),
    "int16": ("ShortStorage", np.int16),
    "int32": ("IntStorage", np.int32),
    "int64": ("LongStorage", np.int64),
    "uint8": ("ByteStorage", np.uint8),
    "bool": ("BoolStorage", np.bool_),
}
_FUNCTIONS = {
    "collections.OrderedDict": _Dict,
    "torch.Size": tuple,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _bare,
    "numpy.dtype": _NumpyDtype,
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray.scalar": _numpy_scalar,
    "_codecs.encode": _encode,
    "torch.jit._pickle.build_intlist": _bare,
    "torch.jit._pickle.restore_type_tag": _bare,
}
_GLOBALS = (
    {name: _Global(name, function=function) for name, function in _FUNCTIONS.items()}
    | {f"torch.{name}": _Global(f"torch.{name}", value=np.dtype(dtype)) for name, (_, dtype) in _DTYPES.items()}
    | {f"torch.{name}": _Global(f"torch.{name}", value=np.dtype(dtype)) for name, dtype in _DTYPES.values()}
)


class _Unpickler(pickle.Unpickler):
    """A pickle machine that allows `_GLOBALS` only; `storages` collects what tensors refer to."""

    def __init__(self, file: BinaryIO):
        # "utf-8" is for strings that Python 2 pickled; torch.load reads them so.
        super().__init__(file, encoding="utf-8")
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> _Global | type[_Module]:
        if module.startswith("__torch__."):  # classes of a TorchScript archive, whose code lies beside and is not read
            return _Module
        found = _GLOBALS.get(f"{module}.{name}")
        return found or _refuse(f"refers to {_printable(f'{module}.{name}')}; {_READABLE}")

    def persistent_load(self, pid: Any) -> _Storage:
        """`pid`: ("storage", type, key, device, number of elements), and a sixth, None, in the older format."""
        match pid:
            case ("storage", _Global(value=np.dtype() as dtype), str(key), _, int(numel), *view) if numel >= 0:
                if any(view):
                    _refuse("holds views of storages as PyTorch before 0.4 wrote them; save it with a later one")
                storage = _Storage(key, dtype, numel)
                if self.storages.setdefault(key, storage) != storage:
                    _refuse(f"is damaged: it describes storage {_printable(key)} in two ways")
                return storage
        return _refuse(f"refers to something beside its pickle that is not a tensor's storage; {_READABLE}")


def _unpickle(file: BinaryIO) -> tuple[Any, dict[str, _Storage]]:
    """The next pickle of `file`, with what its tensors refer to."""
    try:
        start = file.tell()
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            # An extension code may stand for a function that this process has loaded: `find_class` is not asked.
            if opcode.name.startswith("EXT"):
                _refuse(f"uses the pickle extension {argument}; {_READABLE}")
            # The machine's memo is a list: one high index would fill the memory.
            if opcode.name.endswith("PUT") and argument is not None and argument > count:
                _refuse("is damaged: its pickle skips places of the memo")
        file.seek(start)
        unpickler = _Unpickler(file)
        return unpickler.load(), unpickler.storages
    except (_Refusal, OSError):
        raise
    except Exception as error:  # a pickle that is cut or altered may raise almost anything
        _refuse(f"is damaged: its pickle ends early or makes no sense ({type(error).__name__}: {error})")


def _read_zip(file: BinaryIO) -> Any:
    try:
        with zipfile.ZipFile(file) as archive:
            roots = [
                name.removesuffix("data.pkl") for name in archive.namelist() if re.fullmatch(r"[^/]+/data\.pkl", name)
            ]
            if len(roots) != 1:
                _refuse("is a zip without data.pkl, so not one of torch.save")
            (root,) = roots
            names = set(archive.namelist())
            _require_stored(archive, file, root)
            order = archive.read(root + "byteorder") if root + "byteorder" in names else b"little"
            if order not in (b"little", b"big"):
                _refuse("is damaged: its byte order is neither little nor big")
            value, storages = _unpickle(io.BytesIO(archive.read(root + "data.pkl")))
            raw = {}
            for key, storage in storages.items():
                name = f"{root}data/{key}"
                if name not in names:
                    _refuse(f"is damaged: it has no storage {_printable(key)}")
                _require_size(storage, archive.getinfo(name).file_size)
                raw[key] = archive.read(name)
            return _finish(value, raw, "<" if order == b"little" else ">")
    except _ZIP_ERRORS as error:
        _refuse(f"is a damaged or cut zip ({error or type(error).__name__})")


def _require_stored(archive: zipfile.ZipFile, file: BinaryIO, root: str) -> None:
    """Bounds what reading takes: torch.save compresses nothing, so that the members fill the file and no more.

    A TorchScript archive has compressed code beside these, which is not read.
    """
    members = [info for info in archive.infolist() if not info.filename.startswith(root + "code/")]
    for info in members:
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            _refuse(f"has the compressed member {_printable(info.filename)}; torch.save compresses nothing")
        most = {root + "byteorder": 16, root + "data.pkl": _PICKLE_MAX_BYTES}.get(info.filename)
        if most is not None and info.file_size > most:
            _refuse(f"has {info.file_size:,} bytes in {_printable(info.filename)}; at most {most:,} are read")
    size = file.seek(0, io.SEEK_END)
    if sum(info.file_size for info in members) > size:
        _refuse(f"is damaged: its members overlap within its {size:,} bytes")


def _read_legacy(file: BinaryIO) -> Any:
    if not _starts_with(file, b"\x80") or _unpickle(file)[0] != _LEGACY_MAGIC:
        _refuse("is not a file of torch.save, or one from before PyTorch 0.4")
    protocol, _ = _unpickle(file)
    if protocol != _LEGACY_PROTOCOL:
        _refuse(f"is of another version of the format than {_LEGACY_PROTOCOL}, the only one known")
    _unpickle(file)  # the sizes of integers on the machine that wrote it; the numbers are little-endian on all
    value, storages = _unpickle(file)
    keys, _ = _unpickle(file)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or {*keys} != {*storages}:
        _refuse("is damaged: its list of storages is not that of its tensors")
    raw = {}
    for key in keys:
        size = storages[key].numel * storages[key].dtype.itemsize
        _require_size(storages[key], int.from_bytes(file.read(8), "little") * storages[key].dtype.itemsize)
        _require_size(storages[key], min(size, _remaining(file)))
        raw[key] = file.read(size)
    return _finish(value, raw, "<")


def _require_size(storage: _Storage, found: int) -> None:
    expected = storage.numel * storage.dtype.itemsize
    if found != expected:
        _refuse(f"is damaged or cut: storage {_printable(storage.key)} has {found} bytes, not {expected}")


def _printable(text: str) -> str:
    """A file's word in one short line, without control characters."""
    return repr(text[:100])[1:-1]


def _starts_with(file: BinaryIO, start: bytes) -> bool:
    found = file.read(len(start))
    file.seek(0)
    return found == start


def _remaining(file: BinaryIO) -> int:
    here = file.tell()
    end = file.seek(0, io.SEEK_END)
    file.seek(here)
    return end - here


def _finish(value: Any, raw: dict[str, bytes], order: str) -> Any:
    """Returns `value` with arrays for tensors; anything but plain types is an error."""
    done: dict[int, Any] = {}  # a container met twice is made once: nested references double with each level

    def convert(value: Any) -> Any:
        if value is None or type(value) in (bool, int, float, str, bytes):
            return value
        if id(value) not in done:
            match value:
                case dict():
                    done[id(value)] = result = {}
                    result.update((key_of(key), convert(item)) for key, item in value.items())
                case list():
                    done[id(value)] = result = []
                    result.extend(convert(item) for item in value)
                case _Tensor(storage=storage):
                    done[id(value)] = value.array(raw[storage.key], order)
                case tuple() if type(value) is tuple:
                    done[id(value)] = tuple(convert(item) for item in value)
                case _Global(value=np.dtype() as dtype):
                    done[id(value)] = dtype
                case _:
                    _refuse(f"holds a {type(value).__name__.strip('_')}; {_READABLE}")
        return done[id(value)]

    def key_of(key: Any) -> Any:
        if key is not None and type(key) not in (bool, int, float, str, bytes):
            _refuse(f"holds a dict with a {type(key).__name__.strip('_')} as a key; {_READABLE}")
        return key

    try:
        return convert(value)
    except (RecursionError, ValueError) as error:  # ValueError: an array too large for NumPy to describe
        _refuse(f"cannot be held in memory ({error})")
