"""Files of `torch.save`, written byte by byte, and what was recorded from pytorch-fid."""

import functools
import json
import zipfile
import zlib
from pathlib import Path

import numpy as np

RECORD = json.loads((Path(__file__).parent / "pytorch_fid.json").read_text())


def name(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


def text(value):
    raw = value.encode()
    return b"X" + len(raw).to_bytes(4, "little") + raw


def whole(value):
    return b"J" + value.to_bytes(4, "little", signed=True)


def row(*items):
    return b"(" + b"".join(items) + b"t"


def call(function, *arguments):
    return function + row(*arguments) + b"R"


def table(items):
    """A dict of pickled values."""
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def ordered(items, state=None):
    """An OrderedDict, with attributes as module state dicts have them."""
    built = b"" if state is None else state + b"b"
    return call(name("collections", "OrderedDict")) + table(items)[1:] + built


def storage(kind, key, numel, *view):
    return row(text("storage"), name("torch", kind), text(key), text("cpu"), whole(numel), *view) + b"Q"


def tensor(stored, offset, size, stride):
    return call(
        name("torch._utils", "_rebuild_tensor_v2"),
        stored,
        whole(offset),
        row(*map(whole, size)),
        row(*map(whole, stride)),
        b"\x89",
        ordered({}),
    )


def pickled(value):
    return b"\x80\x02" + value + b"."


def write_zip(path, value, storages=(), byteorder=b"little"):
    """`storages`: the bytes of data/0, data/1, ..."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(value))
        if byteorder is not None:
            archive.writestr("archive/byteorder", byteorder)
        for key, raw in enumerate(storages):
            archive.writestr(f"archive/data/{key}", raw)
        archive.writestr("archive/version", b"3\n")


def write_legacy(path, value, storages):
    """`storages`: key -> (number of elements, bytes)."""
    magic = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"
    head = pickled(magic) + pickled(whole(1001)) + pickled(table({"little_endian": b"\x88"}))
    keys = pickled(b"](" + b"".join(map(text, storages)) + b"e")
    body = b"".join(numel.to_bytes(8, "little") + raw for numel, raw in storages.values())
    path.write_bytes(head + pickled(value) + keys + body)


def write_state_dict(path, arrays):
    """float32 arrays by name, each with a storage of its own."""
    tensors = {}
    for key, (label, array) in enumerate(arrays.items()):
        strides = tuple(step // 4 for step in np.ascontiguousarray(array).strides)
        tensors[label] = tensor(storage("FloatStorage", str(key), array.size), 0, array.shape, strides)
    write_zip(path, ordered(tensors), [array.tobytes() for array in arrays.values()])


@functools.cache
def inception_state():
    """Numbers for pytorch-fid's state dict, the same everywhere.

    Kernels keep the variance through ReLU, and batch normalization is far from the identity.
    """
    state = {}

    def put(label, shape, center, spread):
        # RandomState's numbers are frozen, those of newer generators may change between versions of NumPy.
        uniform = np.random.RandomState(zlib.crc32(label.encode())).random_sample(shape)
        state[label] = (center + spread * (2 * uniform - 1)).astype(np.float32)

    for label, shape in RECORD["convolutions"].items():
        put(f"{label}.conv.weight", shape, 0, np.sqrt(6 / np.prod(shape[1:])))
        for part, center, spread in (
            ("weight", 1, 0.2),
            ("bias", 0.1, 0.2),
            ("running_mean", 0, 0.2),
            ("running_var", 1, 0.5),
        ):
            put(f"{label}.bn.{part}", shape[:1], center, spread)
    put("fc.weight", (1008, 2048), 0, np.sqrt(3 / 2048))
    put("fc.bias", (1008,), 0, 1)
    return state


def write_value(path, value):
    """Anything of dicts, lists, whole numbers, strings and float32 arrays; bytes are opcodes as they are."""
    raws = []

    def pickled_of(item):
        match item:
            case bytes():
                return item
            case None:
                return b"N"
            case bool():
                return b"\x88" if item else b"\x89"
            case int():
                return whole(item)
            case str():
                return text(item)
            case dict():
                return b"}(" + b"".join(pickled_of(k) + pickled_of(v) for k, v in item.items()) + b"u"
            case list():
                return b"](" + b"".join(map(pickled_of, item)) + b"e"
            case np.ndarray():
                raws.append(np.ascontiguousarray(item).tobytes())
                strides = tuple(step // 4 for step in np.ascontiguousarray(item).strides)
                return tensor(storage("FloatStorage", str(len(raws) - 1), item.size), 0, item.shape, strides)

    body = pickled_of(value)
    write_zip(path, body, raws)
