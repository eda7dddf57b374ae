"""DINOv2's features against those recorded from the authors' code and from transformers (`record_dinov2.py`)."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from evaluation import dinov2_record as small
from PIL import Image
from training.small import quick_compilation  # noqa: F401
from weights.torch_bytes import write_state_dict

from hold_jax import fid
from hold_jax.errors import UserError
from hold_jax.evaluation import dinov2_weights
from hold_jax.evaluation.dinov2 import STRETCH, _apply, dinov2
from hold_jax.evaluation.dinov2_weights import from_state_dict, interpolated
from hold_jax.evaluation.feature_network import digest_of
from hold_jax.evaluation.resize import bicubic
from hold_jax.weights import safetensors

RECORD = json.loads((Path(__file__).parent / "dinov2.json").read_text())
RNG = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(32, 32, 3), (7, 500, 3), (224, 31, 3), (640, 480, 3), (1, 1, 3), (448, 56, 1)])
def test_pictures_are_stretched_bit_for_bit_as_pillow_does(shape):
    def resized(x):
        wide = Image.fromarray(x).resize((224, len(x)), Image.Resampling.BICUBIC)  # first, in every version of Pillow
        return np.asarray(wide.resize((224, 224), Image.Resampling.BICUBIC))

    for x in (RNG.integers(0, 256, shape, dtype=np.uint8), (255 * RNG.integers(0, 2, shape)).astype(np.uint8)):
        want = np.stack([resized(x[..., channel]) for channel in range(shape[2])], axis=-1)
        np.testing.assert_array_equal(bicubic(x, 224), want)


def test_pictures_are_stretched_on_the_device_as_on_reading():
    x = RNG.integers(0, 256, (2, 9, 13, 3), dtype=np.uint8)
    np.testing.assert_array_equal(jax.jit(lambda x: bicubic(x, 224))(x)[1], STRETCH.apply(x[1]))


@pytest.mark.slow
@pytest.mark.parametrize("name", list(small.GATED))
def test_features_are_those_of_the_authors_and_of_transformers(name):
    apply = jax.jit(_apply)
    for whose, state, offset in [
        ("authors", small.state(small.GATED[name]), 0.1),
        ("transformers", small.transformers_state(small.GATED[name]), 0.0),
    ]:
        params = from_state_dict(state, offset=offset)
        for size, x in small.pictures().items():
            want = np.array(RECORD[name][size][whose])
            assert np.abs(want).max() > 1 and np.abs(want[0] - want[1]).max() > 0.1
            np.testing.assert_allclose(apply(params, x).values[:, ::4], want, atol=2e-5)
            if size == "32x32":
                np.testing.assert_allclose(apply(params, x[2:, ..., :1]).values[:, ::4], want[2:], atol=2e-5)


def test_both_codes_differ_by_more_than_the_bound_of_the_comparison():
    for found in RECORD.values():
        for outputs in found.values():
            assert np.abs(np.subtract(outputs["authors"], outputs["transformers"])).max() > 1e-3


def test_positions_of_the_same_grid_are_kept_and_constants_stay_constant():
    x = RNG.standard_normal((1, 257, 4)).astype(np.float32)
    assert interpolated(x, 0.1) is x
    for n in (3, 16, 37):
        constant = np.full((1, 1 + n * n, 2), 1.5, np.float32)
        np.testing.assert_allclose(interpolated(constant, 0.1), np.full((1, 257, 2), 1.5), rtol=1e-6)


@pytest.mark.parametrize("gated", [False, True])
def test_files_of_both_kinds_are_one_network(gated, tmp_path):
    write_state_dict(tmp_path / "authors.pth", small.state(gated))
    safetensors.write(tmp_path / "model.safetensors", small.transformers_state(gated))
    a, b = dinov2(tmp_path / "authors.pth"), dinov2(tmp_path / "model.safetensors")
    assert a.identity == b.identity == f"dinov2 {digest_of(from_state_dict(small.state(gated)))}"
    changed = small.state(gated)
    changed["blocks.1.ls2.gamma"][7] += 1e-6
    assert f"dinov2 {digest_of(from_state_dict(changed))}" != a.identity
    prefixed = {f"dinov2.{name}": value for name, value in small.transformers_state(gated).items()}
    assert digest_of(from_state_dict(prefixed)) in a.identity


def test_what_is_not_of_the_network_is_named():
    state = small.state(False)

    def of(**changes):
        changed = state | {name.replace("__", "."): value for name, value in changes.items()}
        return from_state_dict({name: value for name, value in changed.items() if value is not None}, "the file")

    of(mask_token=None)
    for changes, said in [
        ({"blocks__1__norm2__bias": None}, "it is not of DINOv2 without registers: it lacks blocks.1.norm2.bias$"),
        ({"register_tokens": np.zeros((1, 4, 128))}, "it has, and the network has not, register_tokens$"),
        ({"norm__bias": np.zeros(7)}, r"norm.bias \(7,\) for \(128,\)"),
        ({"cls_token": None}, "it lacks cls_token"),
        ({"pos_embed": np.zeros((1, 11, 128))}, r"its pos_embed is \[1, 11, 128\]; it must be \[1, 1 \+ n\^2, 64 k\]"),
        ({"norm__bias": np.full(128, np.nan)}, "its norm.bias has values that are not finite"),
        ({"norm__bias": 3}, "it is no state dict"),
    ]:
        with pytest.raises(UserError, match=f"the file; .*{said}"):
            of(**changes)


@pytest.mark.slow
def test_the_command(tmp_path, capsys):
    safetensors.write(tmp_path / "model.safetensors", small.transformers_state(False))
    for name, sizes in (("a", (20, 20)), ("b", (20, 31))):
        (tmp_path / name).mkdir()
        for i in range(12):
            x = RNG.integers(0, 256, (20, sizes[i % 2], 3), dtype=np.uint8)
            Image.fromarray(x).save(tmp_path / name / f"{i}.png")
    arguments = [str(tmp_path / "a"), str(tmp_path / "b"), "--features=dinov2", "--batch_size=4"]
    fid.main([*arguments, f"--dinov2={tmp_path}/model.safetensors"])
    out, said = capsys.readouterr()
    figures = {line.split()[0] for line in out.splitlines()}
    assert {"fd_dinov2", "dinov2_kid", "dinov2_precision"} <= figures
    assert "20 x 20 pixels, stretched to 224 x 224 (bicubic)" in said and "of 2 sizes, stretched to 224 x 224" in said


def test_the_command_says_where_the_weights_are(tmp_path, capsys):
    for i in range(2):
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / f"{i}.png")
    for more, said in [
        ((), "`dinov2` is None; it must be the path"),
        (("--dinov2=none.pth",), "there is no such file"),
    ]:
        with pytest.raises(SystemExit):
            fid.main([str(tmp_path), str(tmp_path), "--features=dinov2", *more])
        err = capsys.readouterr().err
        assert said in err and dinov2_weights.FILE in err
