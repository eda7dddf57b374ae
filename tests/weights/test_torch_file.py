import copyreg
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest
from weights.torch_bytes import (
    call,
    name,
    ordered,
    pickled,
    row,
    storage,
    table,
    tensor,
    text,
    whole,
    write_legacy,
    write_zip,
)

from hold_jax.errors import UserError
from hold_jax.weights.torch_file import read

FLOATS = np.arange(12, dtype="<f4") / 4 - 1


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.pth"


def refused(path, reason):
    """The file is refused in one line that names it."""
    with pytest.raises(UserError, match=reason) as error:
        read(path)
    assert str(error.value).startswith(f"`input` is {str(path)!r}; it ")
    assert "\n" not in str(error.value)


def test_views_of_one_storage(path):
    stored = storage("FloatStorage", "0", 12)
    views = {
        "whole": tensor(stored, 0, (3, 4), (4, 1)),
        "transposed": tensor(stored, 0, (4, 3), (1, 4)),
        "every other": tensor(stored, 1, (2, 3), (6, 2)),
        "expanded": tensor(stored, 11, (2, 2), (0, 0)),
        "scalar": tensor(stored, 5, (), ()),
        "empty": tensor(stored, 12, (0, 4), (4, 1)),
    }
    write_zip(path, table(views), [FLOATS.tobytes()])
    got = read(path)
    grid = FLOATS.reshape(3, 4)
    np.testing.assert_array_equal(got["whole"], grid)
    np.testing.assert_array_equal(got["transposed"], grid.T)
    np.testing.assert_array_equal(got["every other"], FLOATS[1:].reshape(-1)[[[0, 2, 4], [6, 8, 10]]])
    np.testing.assert_array_equal(got["expanded"], np.full((2, 2), FLOATS[11]))
    assert got["scalar"].shape == () and got["scalar"] == FLOATS[5]
    assert got["empty"].shape == (0, 4)
    assert np.shares_memory(got["whole"], got["transposed"])
    assert all(array.dtype == np.float32 for array in got.values())
    with pytest.raises(ValueError, match="read-only"):
        got["whole"][0, 0] = 1


@pytest.mark.parametrize("order", ["little", "big", None])
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("HalfStorage", np.float16),
        ("FloatStorage", np.float32),
        ("DoubleStorage", np.float64),
        ("BFloat16Storage", ml_dtypes.bfloat16),
        ("CharStorage", np.int8),
        ("ShortStorage", np.int16),
        ("IntStorage", np.int32),
        ("LongStorage", np.int64),
        ("ByteStorage", np.uint8),
        ("BoolStorage", np.bool_),
    ],
)
def test_types_and_byte_orders(path, kind, dtype, order):
    want = np.array([0, 1, 1, 0, 1] if dtype is np.bool_ else [0, 1, 3, 100, 77]).astype(dtype)
    raw = want.tobytes()
    if order == "big":
        size = want.itemsize
        raw = b"".join(raw[i : i + size][::-1] for i in range(0, len(raw), size))
    marker = order and order.encode()
    write_zip(path, tensor(storage(kind, "0", 5), 0, (5,), (1,)), [raw], byteorder=marker)
    got = read(path)
    assert got.dtype == want.dtype and got.dtype.isnative and not got.flags.writeable
    np.testing.assert_array_equal(got, want)


def test_plain_values_and_nesting(path):
    stored = storage("LongStorage", "0", 2)
    parameter = call(name("torch._utils", "_rebuild_parameter"), tensor(stored, 0, (2,), (1,)), b"\x88", ordered({}))
    value = {
        "none": b"N",
        "flags": row(b"\x88", b"\x89"),
        "numbers": b"](" + whole(-3) + b"G" + b"\x3f\xf8" + bytes(6) + b"e",
        "text": text("né"),
        "size": call(name("torch", "Size"), row(whole(2), whole(3))),
        "dtype": name("torch", "bfloat16"),
        "state": ordered({"w": parameter}, state=table({"_metadata": ordered({})})),
    }
    write_zip(path, table(value), [np.array([7, 8], "<i8").tobytes()])
    got = read(path)
    state = got.pop("state")
    assert type(state) is dict and list(state) == ["w"]
    np.testing.assert_array_equal(state["w"], [7, 8])
    assert got == {
        "none": None,
        "flags": (True, False),
        "numbers": [-3, 1.5],
        "text": "né",
        "size": (2, 3),
        "dtype": np.dtype(ml_dtypes.bfloat16),
    }


def test_legacy_format(path):
    value = ordered(
        {
            "a": tensor(storage("FloatStorage", "94", 12, b"N"), 2, (2, 2), (4, 1)),
            "b": tensor(storage("LongStorage", "17", 1, b"N"), 0, (1,), (1,)),
        }
    )
    storages = {"17": (1, np.int64(-5).tobytes()), "94": (12, FLOATS.tobytes())}
    write_legacy(path, value, storages)
    got = read(path)
    np.testing.assert_array_equal(got["a"], FLOATS.reshape(3, 4)[:2, 2:])
    np.testing.assert_array_equal(got["b"], [-5])

    whole_file = path.read_bytes()
    for length in (3, 14, 60, len(whole_file) - 60, len(whole_file) - 1):
        path.write_bytes(whole_file[:length])
        refused(path, "is damaged|no file of torch.save")
    write_legacy(path, value, {"94": (12, FLOATS.tobytes())})
    refused(path, "list of storages is not that of its tensors")
    write_legacy(path, value, storages | {"94": (11, FLOATS.tobytes())})
    refused(path, "storage 94 has 44 bytes, not 48")


def test_nothing_that_a_file_names_is_run(path, tmp_path, monkeypatch):
    proof = tmp_path / "proof"
    ran = f"open({str(proof)!r}, 'w')"

    class Reduced:
        def __reduce__(self):
            return getattr, ("os", "system")

    attacks = {
        "os.system": call(name("os", "system"), text(f"touch {proof}")),
        "posix.system": b"(" + text(f"touch {proof}") + b"iposix\nsystem\n",
        "builtins.eval": call(name("builtins", "eval"), text(ran)),
        # STACK_GLOBAL, and a path of attributes
        "builtins.exec": text("builtins") + text("exec") + b"\x93" + row(text(ran)) + b"R",
        "torch.serialization.os.system": text("torch.serialization") + text("os.system") + b"\x93",
        "torch.load": call(name("torch", "load"), text("other.pth")),
        "torch._utils._rebuild_device_tensor_from_numpy": name("torch._utils", "_rebuild_device_tensor_from_numpy"),
        # NEWOBJ
        "subprocess.Popen": name("subprocess", "Popen") + row(text(f"touch {proof}")) + b"\x81",
        "collections.defaultdict": call(name("collections", "defaultdict")),
        # hidden in what is thrown away
        "os.getcwd": call(name("os", "getcwd")) + b"0" + whole(1),
    }
    for asked, attack in attacks.items():
        write_zip(path, attack)
        refused(path, f"refers to {asked}; only tensors")
    for protocol in (0, 2, 4):
        write_zip(path, pickle.dumps(Reduced(), protocol))
        refused(path, "refers to (__builtin__|builtins).getattr; only")
    # The registry of extensions hands out what it has loaded without asking for its name.
    monkeypatch.setitem(copyreg._extension_cache, 77, lambda: proof.write_text("ran"))
    write_zip(path, b"\x82\x4d)R")
    refused(path, "uses the pickle extension 77")
    assert not proof.exists()


def test_the_readers_own_functions_cannot_be_altered(path):
    function = name("torch._utils", "_rebuild_tensor_v2")
    for state in (table({"function": b"N"}), row(b"N", table({"name": text("x"), "function": b"N"}))):
        write_zip(path, function + state + b"b")
        refused(path, "sets the state of a global")
    stored = storage("FloatStorage", "0", 12)
    good = tensor(stored, 0, (12,), (1,))
    write_zip(path, good + row(b"N", table({"offset": whole(10**6)})) + b"b", [FLOATS.tobytes()])
    refused(path, "sets the state of a tensor")
    write_zip(path, stored + row(b"N", table({"numel": whole(10**6)})) + b"b", [FLOATS.tobytes()])
    refused(path, "is damaged")
    write_zip(path, call(name("torch", "FloatStorage"), whole(3)))
    refused(path, "calls torch.FloatStorage")
    write_zip(path, good, [FLOATS.tobytes()])
    np.testing.assert_array_equal(read(path), FLOATS)


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (1, (12,), (1,)),
        (13, (), ()),
        (0, (3, 4), (5, 1)),
        (0, (2,), (2**30,)),
    ],
)
def test_views_stay_inside_their_storage(path, offset, size, stride):
    write_zip(path, tensor(storage("FloatStorage", "0", 12), offset, size, stride), [FLOATS.tobytes()])
    refused(path, "is damaged: a tensor with offset .* is past the 12 numbers of its storage")


@pytest.mark.parametrize(("offset", "size", "stride"), [(-1, (2,), (1,)), (0, (-2,), (1,)), (5, (2,), (-1,))])
def test_negative_offsets_sizes_and_strides_are_refused(path, offset, size, stride):
    write_zip(path, tensor(storage("FloatStorage", "0", 12), offset, size, stride), [FLOATS.tobytes()])
    refused(path, "not well formed")


def test_malformed_tensors_and_storages(path):
    stored = storage("FloatStorage", "0", 12)
    rebuild = name("torch._utils", "_rebuild_tensor_v2")
    for arguments, reason in [
        ((text("0"), whole(0), row(whole(1)), row(whole(1))), "not well formed"),
        ((stored, b"N", row(whole(1)), row(whole(1))), "not well formed"),
        ((stored, whole(0), row(b"G" + bytes(8)), row(whole(1))), "not well formed"),
        ((stored, whole(0), row(whole(1)), row(whole(1), whole(1))), "is damaged"),
        ((stored, whole(0)), "is damaged"),
        ((stored, whole(0), row(whole(1)), row(whole(1)), b"\x89", b"N", table({"conj": b"\x88"})), "lazily conj"),
    ]:
        write_zip(path, call(rebuild, *arguments), [FLOATS.tobytes()])
        refused(path, reason)
    write_zip(path, stored, [FLOATS.tobytes()])
    refused(path, "holds a Storage; only tensors")
    write_zip(path, row(text("module"), text("x")) + b"Q")
    refused(path, "refers to something beside its pickle")
    both = row(
        tensor(storage("FloatStorage", "0", 12), 0, (1,), (1,)), tensor(storage("IntStorage", "0", 12), 0, (1,), (1,))
    )
    write_zip(path, both, [FLOATS.tobytes()])
    refused(path, "describes storage 0 in two ways")
    write_zip(path, tensor(storage("FloatStorage", "0", 13), 0, (1,), (1,)), [FLOATS.tobytes()])
    refused(path, "storage 0 has 48 bytes, not 52")
    write_legacy(path, tensor(storage("FloatStorage", "0", 1, row(text("1"))), 0, (1,), (1,)), {"0": (1, bytes(4))})
    refused(path, "views of storages as PyTorch before 0.4")


@pytest.mark.parametrize("key", ["../version", "1", "0/../0", "", "٠"])
def test_storages_are_looked_for_in_data_only(path, key):
    write_zip(path, tensor(storage("ByteStorage", key, 2), 0, (2,), (1,)), [b"ab"])
    refused(path, "has no storage")


def test_damaged_zips(path):
    write_zip(path, tensor(storage("FloatStorage", "0", 12), 0, (12,), (1,)), [FLOATS.tobytes()])
    whole_file = path.read_bytes()
    for length in (10, len(whole_file) // 2, len(whole_file) - 1):
        path.write_bytes(whole_file[:length])
        refused(path, "is a damaged or cut zip")
    at = whole_file.index(FLOATS.tobytes())
    path.write_bytes(whole_file[: at + 5] + b"!" + whole_file[at + 6 :])
    refused(path, r"Bad CRC-32 for file 'archive/data/0'")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/b/data.pkl", pickled(b"N"))
    refused(path, "zip without data.pkl")
    write_zip(path, b"N", byteorder=b"middle")
    refused(path, "neither little nor big")


def test_damaged_pickles(path):
    for value in (b"", b"R", b"((((", table({"a": b""}), b"\x8a\x01", b"h\x05", b"]0."):
        write_zip(path, value)
        refused(path, "is damaged: its pickle ends early or makes no sense")
    write_zip(path, b"Nr\xff\xff\xff\xff")
    refused(path, "is damaged: its pickle skips places of the memo")


def test_what_is_no_file_of_torch(path, tmp_path):
    refused(path, "cannot be read: No such file")
    for content in (b"", b"abc", pickle.dumps({"a": 1}), pickle.dumps([1, 2], 0)):
        path.write_bytes(content)
        refused(path, "not a file of torch.save")


def test_types_that_are_not_read(path):
    for value, what in [
        (b"\x8f", "set"),
        (name("torch", "Size"), "Global"),
        (b"\x96" + (2).to_bytes(8, "little") + b"ab", "bytearray"),
        (b"}(" + row(whole(1)) + whole(2) + b"u", "dict with a tuple as a key"),
    ]:
        write_zip(path, value)
        refused(path, f"holds a {what}")
    escape = "\x1b[31m"
    write_zip(path, text("os") + text(escape) + b"\x93")
    refused(path, r"refers to os.\\x1b\[31m; only")


def test_nested_references_do_not_double(path):
    # 60 lists, each twice in the next: 2^60 lists if each reference were followed.
    level = b"](NNe"
    for i in range(60):
        level += b"r" + i.to_bytes(4, "little") + b"0](" + 2 * (b"j" + i.to_bytes(4, "little")) + b"e"
    write_zip(path, level)
    got = read(path)
    for _ in range(60):
        assert got[0] is got[1]
        got = got[0]
    assert got == [None, None]


def test_lists_that_hold_themselves_and_deep_ones(path):
    write_zip(path, b"]q\x00(h\x00e")
    got = read(path)
    assert got[0] is got
    write_zip(path, b"]" * 5_000 + b"a" * 4_999)
    refused(path, "cannot be held in memory")


@pytest.mark.parametrize("value", [np.float64(2e-4), np.float32(0.5), np.int64(-7), np.bool_(True), np.float64("inf")])
@pytest.mark.parametrize("protocol", [2, 4])
def test_numpy_s_numbers_become_python_s(path, value, protocol):
    # A learning rate that a warm-up computed with NumPy, in an optimizer's state.
    body = pickle.dumps({"lr": value}, protocol)[2:-1]
    for module in (b"numpy._core.multiarray", b"numpy.core.multiarray"):
        if protocol == 2:
            body = body.replace(b"numpy._core.multiarray", module).replace(b"numpy.core.multiarray", module)
        write_zip(path, body)
        got = read(path)
        assert got == {"lr": value.item()} and type(got["lr"]) is type(value.item())


def test_numpy_s_big_endian_numbers(path):
    # Written by hand: NumPy's own numbers have the order of the machine.
    kind = call(name("numpy", "dtype"), text("f8"), b"\x89", b"\x88")
    kind += row(whole(3), text(">"), b"N", b"N", b"N", whole(-1), whole(-1), whole(0)) + b"b"
    raw = call(name("_codecs", "encode"), text("?\xf8" + "\0" * 6), text("latin1"))
    write_zip(path, call(name("numpy.core.multiarray", "scalar"), kind, raw))
    assert read(path) == 1.5


def test_numpy_s_types_are_plain_numbers_only(path):
    def kind(code, *rest):
        return call(name("numpy", "dtype"), text(code), *(rest or (b"\x89", b"\x88")))

    raw = call(name("_codecs", "encode"), text("\0" * 8), text("latin1"))
    scalar = name("numpy.core.multiarray", "scalar")
    for value, reason in [
        (kind("O8"), "holds numbers of NumPy's type O8"),
        (kind("V8"), "holds numbers of NumPy's type V8"),
        (kind("f8", b"\x88", b"\x88"), "holds numbers of NumPy's type f8"),
        (kind("f8") + row(whole(3), text("<"), row(text("a")), b"N", b"N", whole(-1), whole(-1), whole(0)) + b"b",
         "alters a type of NumPy"),
        (kind("f8") + table({"dtype": text("O8")}) + b"b", "alters a type of NumPy"),
        (call(scalar, kind("f4"), raw), "NumPy number that is not well formed"),
        (call(scalar, text("f8"), raw), "NumPy number that is not well formed"),
        (kind("f8"), "holds a NumpyDtype; only"),
        (call(name("_codecs", "encode"), text("x"), text("utf-8")), "encodes an object that is not a string of bytes"),
        (call(name("numpy.core.multiarray", "_reconstruct")), "refers to numpy.core.multiarray._reconstruct; only"),
    ]:  # fmt: skip
        write_zip(path, value)
        refused(path, reason)
