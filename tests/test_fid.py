"""The command `python -m hold_jax.fid`: what it reads, what it prints, what it keeps."""

import dataclasses
import os
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from training.small import quick_compilation  # noqa: F401

from hold_jax import fid
from hold_jax.evaluation import inception_weights, picture_files, reference
from hold_jax.evaluation.inception import STRETCH
from hold_jax.evaluation.reference import Reference
from hold_jax.evaluation.resize import bilinear
from hold_jax.metrics.frechet import frechet_distance, moments

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (40, 4, 4, 3), dtype=np.uint8)
Y = RNG.integers(0, 200, (30, 4, 4, 3), dtype=np.uint8)


def folder(path, pictures):
    path.mkdir(parents=True)
    for i, x in enumerate(pictures):
        Image.fromarray(x).save(path / f"{i}.png")
    return path


def features(x):
    """What `pixels` compares."""
    return x.reshape(len(x), -1).astype(np.float64) / 127.5 - 1


def run(capsys, *arguments):
    """The printed figures, and what is said beside them."""
    fid.main(["--features=pixels", *map(str, arguments)])
    out, err = capsys.readouterr()
    return {line.split()[0]: float(line.split()[1]) for line in out.splitlines()}, err


def fails(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        fid.main(list(map(str, arguments)))
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and not out
    return err.splitlines()[-1]


def test_folders_samples_statistics_and_sources_give_one_distance(tmp_path, capsys):
    a, b = folder(tmp_path / "a", X), folder(tmp_path / "b" / "of one class", Y).parent
    np.savez(tmp_path / "x.npz", x=X)
    np.savez(tmp_path / "stats.npz", mu=features(Y).mean(axis=0), sigma=np.cov(features(Y), rowvar=False))
    folder(tmp_path / "data" / "test", X)
    want = frechet_distance(moments(features(X)), moments(features(Y)))
    found, said = run(capsys, a, b)
    assert "samples: " in said and "40 pictures, 4 x 4 pixels" in said and "stretched" not in said
    assert "40 examples for 48 features: their covariance is singular" in said
    assert {"frechet_raw", "frechet_raw_bias", "pixels_kid", "pixels_precision", "pixels_recall"} <= found.keys()
    assert found["frechet_raw"] == pytest.approx(want, rel=1e-5)
    for one, other in [
        (tmp_path / "x.npz", b),
        (a, tmp_path / "stats.npz"),
        (tmp_path / "stats.npz", a),
        (f"folder:{tmp_path}/data:test", b),
    ]:
        assert run(capsys, one, other)[0]["frechet_raw"] == pytest.approx(want, rel=1e-5)
    found, _ = run(capsys, tmp_path / "stats.npz", tmp_path / "stats.npz")
    assert list(found) == ["frechet_raw"] and abs(found["frechet_raw"]) < 1e-6


@pytest.mark.slow
def test_the_cache_knows_pictures_by_their_content(tmp_path, capsys):
    a, b, cache = folder(tmp_path / "a", X), folder(tmp_path / "b", Y), tmp_path / "cache"
    first, _ = run(capsys, a, b, f"--cache={cache}")
    assert len(list(cache.iterdir())) == 2
    for path in cache.iterdir():  # a mark: what is taken from the cache is these
        kept = reference.load(path)
        Reference(moments(kept.features + 1), kept.features + 1, kept.about).save(path)
    again, said = run(capsys, a.rename(tmp_path / "c"), b, f"--cache={cache}")
    assert again["frechet_raw"] == pytest.approx(first["frechet_raw"], rel=1e-4) and said.count(str(cache)) == 2
    Image.fromarray(255 - X[7]).save(tmp_path / "c" / "7.png")
    other, said = run(capsys, tmp_path / "c", b, f"--cache={cache}")
    assert said.count(str(cache)) == 1 and len(list(cache.iterdir())) == 3
    # One side moved by the mark of 1 in each of 48 features, the other not.
    assert other["frechet_raw"] > first["frechet_raw"] + 24
    for path in cache.iterdir():
        path.write_bytes(path.read_bytes()[:-100])
    _, said = run(capsys, tmp_path / "c", b, f"--cache={cache}")
    assert said.count("cannot be read") == said.count("computed again") == 2


def test_a_cache_that_cannot_be_is_named_before_the_features_are_computed(tmp_path, capsys, monkeypatch):
    def never(*args, **options):
        raise AssertionError("features were computed")

    a = folder(tmp_path / "a", X[:3])
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(fid, "features_of", never)
    said = fails(capsys, a, a, "--features=pixels", f"--cache={tmp_path / 'file' / 'cache'}")
    assert "`cache` is" in said and "it cannot be made: Not a directory" in said


def test_crop_is_that_of_the_data(tmp_path, capsys):
    wide = RNG.integers(0, 256, (6, 4, 8, 3), dtype=np.uint8)
    a, b = folder(tmp_path / "a", wide), folder(tmp_path / "b", wide[:, :, 2:6])
    found, said = run(capsys, a, b, "--crop=4")
    assert said.count("shorter side to 4 pixels, center cropped") == 2
    assert abs(found["frechet_raw"]) < 1e-6


def test_mixed_sizes_are_stretched_as_the_network_stretches(tmp_path):
    for shape in [(4, 9, 3), (320, 33, 3)]:
        x = RNG.integers(0, 256, shape, dtype=np.uint8)
        got = STRETCH.apply(x)
        assert got.shape == (299, 299, 3) and got.dtype == np.float32
        at_once = jax.jit(lambda x: bilinear(x, 299))(x[None].astype(np.float32))[0]
        np.testing.assert_allclose(got, at_once, atol=255 * 2.0**-22)  # products may be fused with sums
    folder(tmp_path / "a", X)
    Image.fromarray(X[0, :3]).save(tmp_path / "a" / "other.jpg")
    found, how = picture_files.pictures(tmp_path / "a", None, STRETCH)
    assert found.shape == (299, 299, 3) and how == "of 2 sizes, stretched to 299 x 299 (bilinear)"
    np.testing.assert_array_equal(found.gather(np.array([0]))["x"][0], STRETCH.apply(X[0]))


def test_mistakes(tmp_path, capsys, monkeypatch):
    a = folder(tmp_path / "a", X[:3])
    (tmp_path / "none").mkdir()
    np.savez(tmp_path / "floats.npz", x=X / 255)
    np.savez(tmp_path / "small.npz", mu=np.zeros(3), sigma=np.eye(3))
    (tmp_path / "bad.npz").write_bytes(b"PK")
    monkeypatch.setattr(inception_weights, "FILE_URL", "http://127.0.0.1:9/pt_inception.pth")
    monkeypatch.setenv("HOLD_JAX_CACHE", str(tmp_path / "cache"))
    weights = "cannot be fetched from http://127.0.0.1:9/pt_inception.pth: 127.0.0.1:9 cannot be reached"
    assert weights in fails(capsys, a, a)
    pixels = "--features=pixels"
    assert "none has 0 pictures (.bmp, .jpeg" in fails(capsys, tmp_path / "none", a, pixels)
    assert "float64[3, 4, 4, 3]" in fails(capsys, tmp_path / "floats.npz", a, pixels).replace("[40", "[3")
    assert "`samples` is" in fails(capsys, tmp_path / "bad.npz", a, pixels)
    assert "it must be a folder, an .npz file, or a data source" in fails(capsys, tmp_path / "nowhere", a, pixels)
    assert "it must be of 3 features, as `data` is" in fails(capsys, a, tmp_path / "small.npz", pixels)
    not_positive = tmp_path / "negative.npz"
    np.savez(not_positive, mu=np.zeros(48), sigma=-np.eye(48))
    assert "it must be a covariance" in fails(capsys, a, not_positive, pixels)
    assert "`samples` is ''" in fails(capsys, "", a, pixels)
    for name in ("~nobody-of-this-name/x", "a" * 300):
        assert f"`data` is '{name[:50]}" in fails(capsys, a, name, pixels)
        assert f"`cache` is '{name[:50]}" in fails(capsys, a, a, pixels, f"--cache={name}")
    Image.fromarray(X[0]).save(tmp_path / "none" / "A.PNG")
    assert "left out, as by pytorch-fid: 1 of endings in capitals" in fails(capsys, tmp_path / "none", a, pixels)
    (tmp_path / "none" / "A.PNG").unlink()
    (a / "4.png").write_bytes(b"no picture")
    assert "4.png cannot be read: " in fails(capsys, a, a, pixels)
    assert "it must be inception, dinov2, pixels, or module:function" in fails(capsys, a, a, "--features=inceptoin")
    Image.fromarray(X[0, :3]).save(tmp_path / "none" / "1.png")
    Image.fromarray(X[0]).save(tmp_path / "none" / "2.png")
    assert "none has pictures of 2 sizes, and these" in fails(capsys, tmp_path / "none", tmp_path / "none", pixels)
    assert "unrecognized arguments: --weights=x" in fails(capsys, a, a, "--weights=x")
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    installs = "error: the package sklearn is not installed: pip install 'hold_jax[data]'"
    assert fails(capsys, "digits:test", a, pixels) == installs


@pytest.mark.parametrize("arguments", [["--help"], ["stats.npz", "stats.npz"]], ids=["help", "figures"])
def test_an_output_whose_reader_has_ended_is_no_error_that_is_shown(arguments, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("stats.npz", mu=np.zeros(3), sigma=np.eye(3))
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe, monkeypatch.context() as patch:
        patch.setattr("sys.stdout", pipe)
        with pytest.raises(SystemExit) as stop:
            fid.main(arguments)
        pipe.flush()  # as at the exit of Python
    assert stop.value.code == 2 and capsys.readouterr().err == ""


def test_statistics_of_another_network(tmp_path, capsys):
    a = folder(tmp_path / "a", X)
    about = reference.About("a", "test", 40, (4, 4, 3), "pixels", "another map", "0")
    Reference(moments(features(X)), None, about).save(tmp_path / "stats.npz")
    said = "the statistics of a are of features of pixels (another map), not of pixels (pixels in the model's range)"
    assert said in fails(capsys, a, tmp_path / "stats.npz", "--features=pixels")
    other = dataclasses.replace(about, network="hue")
    Reference(moments(features(Y)), None, other).save(tmp_path / "other.npz")
    said = "are of features of hue (another map), not of pixels (another map): give --features"
    assert said in fails(capsys, tmp_path / "stats.npz", tmp_path / "other.npz")
    other = dataclasses.replace(
        about, identity="a third map", shape=(8, 8, 3)
    )  # pictures of another size do not excuse
    Reference(moments(features(Y)), None, other).save(tmp_path / "other.npz")
    said = "are of features of pixels (a third map), not of pixels (another map): give --features"
    assert said in fails(capsys, tmp_path / "stats.npz", tmp_path / "other.npz")
    # Statistics that say what they are of give the figure its name.
    Reference(moments(features(Y)), None, about).save(tmp_path / "other.npz")
    fid.main([str(tmp_path / "stats.npz"), str(tmp_path / "other.npz")])
    name, value = capsys.readouterr().out.split()
    assert name == "frechet_raw"
    assert float(value) == pytest.approx(frechet_distance(moments(features(X)), moments(features(Y))), rel=1e-5)


def test_floats_are_not_compared_as_pictures(tmp_path, capsys):
    for name, x in (("bytes", X), ("floats", (X / 255).astype(np.float32))):
        np.savez(tmp_path / f"{name}.npz", x=x)
    a, b = (f"npz:{tmp_path / name}.npz:train" for name in ("floats", "bytes"))
    assert "it must be pictures of 8 bits for this network; these are floats" in fails(capsys, a, b)
    assert "it must be pictures of 8 bits if `data` are" in fails(capsys, "--features=pixels", a, b)
