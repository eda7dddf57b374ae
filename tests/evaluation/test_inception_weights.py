import errno
import hashlib
import runpy
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from weights.torch_bytes import RECORD, inception_state, write_state_dict

from hold_jax.convert import __main__ as command
from hold_jax.errors import UserError
from hold_jax.evaluation.inception_weights import from_state_dict, load, save_npz


@pytest.fixture(scope="module")
def state():
    return inception_state()


@pytest.fixture(scope="module")
def params(state):
    return from_state_dict(state)


@pytest.fixture(scope="module")
def pth(state, tmp_path_factory):
    """A file that says its hash, as pytorch-fid's does."""
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    write_state_dict(path, state)
    return path.rename(path.with_name(f"weights-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.pth"))


def test_pth_and_the_npz_made_of_it_are_one(pth, params, tmp_path, monkeypatch, capsys):
    npz = tmp_path / "weights.npz"
    monkeypatch.setattr(sys, "argv", ["convert", "--from=pytorch_fid", f"--input={pth}", f"--output={npz}"])
    monkeypatch.delitem(sys.modules, command.__name__)
    runpy.run_module("hold_jax.convert", run_name="__main__")
    (a, name_a), (b, name_b) = load(pth), load(npz)
    assert jax.tree.structure(a) == jax.tree.structure(b) == jax.tree.structure(params)
    for x, y, z in zip(*map(jax.tree.leaves, (a, b, params)), strict=True):
        assert x.dtype == y.dtype == np.float32
        np.testing.assert_array_equal(x, y)
        np.testing.assert_array_equal(x, z)
    assert name_a == name_b
    assert capsys.readouterr().out == f"{npz}: {name_a}: 190 arrays\n"
    assert [p.name for p in tmp_path.iterdir()] == ["weights.npz"]

    b["fc"]["bias"][7] = np.nextafter(b["fc"]["bias"][7], np.float32(9))
    save_npz(b, npz)
    assert load(npz)[1] != name_a


def test_folded_convolution_is_convolution_and_batch_normalization(state, params):
    x = np.random.default_rng(0).normal(size=192)
    g, b, m, v = (state[f"Mixed_5b.branch1x1.bn.{part}"] for part in ("weight", "bias", "running_mean", "running_var"))
    want = g * (state["Mixed_5b.branch1x1.conv.weight"][:, :, 0, 0] @ x - m) / np.sqrt(v + 1e-3) + b
    folded = params["Mixed_5b"]["branch1x1"]
    np.testing.assert_allclose(x @ folded["kernel"][0, 0] + folded["bias"], want, rtol=1e-5, atol=1e-5)


def test_counters_of_later_pytorch_make_no_difference(state, params):
    counted = state | {f"{name}.bn.num_batches_tracked": np.zeros((), np.int64) for name in RECORD["convolutions"]}
    got = from_state_dict(counted)
    np.testing.assert_array_equal(got["Mixed_7c"]["branch_pool"]["bias"], params["Mixed_7c"]["branch_pool"]["bias"])


def test_errors_list_both_sides(state):
    changed = dict(state)
    kernel = changed.pop("Mixed_6b.branch1x1.conv.weight")
    changed["Mixed_6b.branch1x1.weight"] = kernel
    changed["fc.bias"] = changed["fc.bias"][:1000]
    with pytest.raises(UserError) as error:
        from_state_dict(changed)
    assert str(error.value) == (
        "the state dict; it is not of the FID's Inception network: it lacks Mixed_6b.branch1x1.conv.weight; "
        "it has, and the network has not, Mixed_6b.branch1x1.weight; "
        "of other shapes than the network's are fc.bias (1000,) for (1008,)"
    )
    auxiliary = {f"AuxLogits.{i}": np.zeros(1) for i in range(7)}
    with pytest.raises(UserError, match=r"has not, AuxLogits.0, .*AuxLogits.4 and 2 more$"):
        from_state_dict(state | auxiliary)


@pytest.mark.parametrize("value", [np.zeros(3), [1], {"a": 1}, None])
def test_what_is_no_state_dict_is_refused(value):
    with pytest.raises(UserError, match="no state dict: it must be a dict of tensors by name"):
        from_state_dict(value)


def test_numbers_that_are_not_finite_are_refused(state):
    variance = "Conv2d_1a_3x3.bn.running_var"
    spoilt = state | {variance: np.where(np.arange(32) == 3, np.nan, state[variance])}
    with pytest.raises(UserError, match=r"Conv2d_1a_3x3 has values that are not finite"):
        from_state_dict(spoilt)


def test_file_must_be_what_its_name_says(tmp_path):
    path = tmp_path / "pt_inception-2015-12-05-6726825d.pth"
    path.write_bytes(b"abc")
    with pytest.raises(UserError, match=r"begins with ba7816bf, not 6726825d .* get pt_.*github.com/mseitzer"):
        load(path)


def test_damaged_npz(params, tmp_path):
    path = tmp_path / "weights.npz"
    path.write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(UserError, match=r"`weights` is .*NumPy cannot read it .*python -m hold_jax.convert"):
        load(path)
    np.savez(path, a=np.zeros(2))
    with pytest.raises(UserError, match=r"lacks Conv2d_1a_3x3/bias, .* and 185 more; it has, .* a$"):
        load(path)
    half = jax.tree.map(lambda a: a, params)
    half["fc"]["bias"] = half["fc"]["bias"].astype(np.float16)
    save_npz(half, path)
    with pytest.raises(UserError, match="fc/bias is of type float16; it must be float32"):
        load(path)


def test_failed_write_keeps_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "weights.npz"
    path.write_bytes(b"old")

    def full(file, **arrays):
        file.write(b"new")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(UserError, match=r"`output` is .*cannot be written: No space left"):
        save_npz({"a": np.zeros(1)}, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from=pytorch-fid"], "`from` is 'pytorch-fid' (did you mean 'pytorch_fid'?); it must be one of: "),
        (["--from=pytorch_fid"], "`input` is 'in.pth'; there is no such file; "),
        (["--from=pytorch_fid", "--input=bad.pth"], "`input` is 'bad.pth'; it is no file of torch.save"),
        (["--from=pytorch_fid", "--speed=3"], "unrecognized arguments: --speed=3"),
        ([], "`from, to` is (None, None); it must be one of the two"),
    ],
)
def test_command_fails_in_one_line_and_leaves_the_output(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("bad.pth").write_bytes(b"not this")
    Path("out.npz").write_bytes(b"old")
    with pytest.raises(SystemExit) as stop:
        command.main(["--input=in.pth", "--output=out.npz", *arguments])
    assert stop.value.code == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"error: {message}") and said.err.count("\n") == 1 and not said.out
    assert Path("out.npz").read_bytes() == b"old"


def test_the_old_file_is_replaced_not_written_into(tmp_path):
    path = tmp_path / "weights.npz"
    path.write_bytes(b"old")
    with path.open("rb") as reader:
        save_npz({"a": np.zeros(1)}, path)
        assert reader.read() == b"old"
    assert list(np.load(path)) == ["a"]


def test_output_must_be_an_npz_in_a_folder(params, tmp_path):
    with pytest.raises(UserError, match=r"`output` is .*weights.pth'; it must be a path that ends in .npz"):
        save_npz(params, tmp_path / "weights.pth")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"`output` is .*cannot be written: (File exists|Not a directory)"):
        save_npz({"a": np.zeros(1)}, tmp_path / "file" / "weights.npz")
