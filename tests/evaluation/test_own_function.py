"""Features of the user's own: what they compute, by what they are known, and what is said of mistakes."""

import numpy as np
import pytest
from training.small import quick_compilation  # noqa: F401

from hold_jax import fid
from hold_jax.errors import UserError
from hold_jax.evaluation import own_function as own
from hold_jax.evaluation.own_function import own_function
from hold_jax.evaluation.reference import About, Reference
from hold_jax.metrics.frechet import moments

UINT8 = np.dtype(np.uint8)


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module into the current folder."""
    monkeypatch.chdir(tmp_path)
    count = iter(range(100))

    def write(text, name=None):
        name = name or f"own_{tmp_path.name}_{next(count)}".replace("-", "_")
        (tmp_path / f"{name}.py").write_text(f"import jax\nimport jax.numpy as jnp\nimport numpy as np\n{text}\n")
        return name

    return write


def identity(name, shape=(2, 2, 3)):
    return own_function(name, shape, UINT8, "eval.features").identity


def grid(a, b):
    """40 pictures; the first two values of pixel (0, 0) are all pairs of 5 and 8: their covariance is diagonal."""
    x = np.random.default_rng(0).integers(0, 256, (40, 2, 2, 3), dtype=np.uint8)
    x[:, 0, 0, 0], x[:, 0, 0, 1] = np.repeat(a, 8), np.tile(b, 5)
    return x


def test_linear_features_of_two_sets_have_the_distance_of_the_closed_form(module, tmp_path, capsys):
    first = (np.arange(5) * 10, np.arange(8) * 4)
    second = (np.arange(5) * 25 + 30, np.arange(8) * 9)
    np.savez(tmp_path / "a.npz", x=grid(*first))
    np.savez(tmp_path / "b.npz", x=grid(*second))
    name = module("def red_green(x): return 2 * x[:, 0, 0, :2].astype(jnp.float32)")
    fid.main(["a.npz", "b.npz", f"--features={name}:red_green", "--cache=kept"])
    found, said = capsys.readouterr()
    # Commuting covariances: the squares of the differences of means and of standard deviations.
    want = 0.0
    for a, b in zip(first, second, strict=True):
        stds = [2 * np.sqrt(np.var(v) * 40 / 39) for v in (a, b)]
        want += 4 * (a.mean() - b.mean()) ** 2 + (stds[0] - stds[1]) ** 2
    printed = {line.split()[0]: line.split()[1] for line in found.splitlines()}
    assert float(printed["frechet_red_green"]) == pytest.approx(want, rel=1e-5)
    assert {"red_green_kid", "red_green_precision"} <= printed.keys() and "kept" not in said
    fid.main(["a.npz", "b.npz", f"--features={name}:red_green", "--cache=kept"])
    assert capsys.readouterr().err.count("kept/red_green_") == 2


def test_the_identity_is_of_the_content(module, tmp_path):
    text = "W = np.load('w.npy')\ndef f(x): return jax.nn.relu(x.reshape(len(x), -1) @ W)"
    np.save(tmp_path / "w.npy", np.ones((12, 2), np.float32))
    first = identity(f"{module(text)}:f")
    assert identity(f"{module(text + '  # the same')}:f") == first
    assert identity(f"{module(text.replace('relu', 'tanh'))}:f") != first
    np.save(tmp_path / "w.npy", np.eye(12, 2, dtype=np.float32))
    assert identity(f"{module(text)}:f") != first


def test_what_the_function_calls_is_part_of_the_identity(module):
    def of(factor):
        helper = module(f"@jax.jit\ndef scaled(x): return np.full((1, 1), {factor}, np.float32) * x")
        return identity(f"{module(f'import {helper}{chr(10)}def f(x): return {helper}.scaled(x[:, 0, 0] / 255)')}:f")

    assert of(2) == of(2) != of(3)


def test_parameters_are_part_of_the_identity_and_may_be_numpys(module):
    text = "def f(): return {'w': [np.full((12, 2), 3.0)]}, lambda p, x: x.reshape(len(x), -1) @ p['w'][0]"
    name = f"{module(text)}:f"
    network = own_function(name, (2, 2, 3), UINT8, "eval.features")
    x = np.ones((4, 2, 2, 3), np.uint8)
    np.testing.assert_array_equal(network.apply(network.params, x).values, np.full((4, 2), 36.0))
    assert identity(name) == network.identity != identity(f"{module(text.replace('3.0', '4.0'))}:f")


def test_a_call_back_to_python_has_a_new_identity_each_time(module):
    shape = "jax.ShapeDtypeStruct((len(x), 3), jnp.float32)"
    text = f"def f(x): return jax.pure_callback(lambda x: x.mean((1, 2), dtype=np.float32), {shape}, x)"
    name = f"{module(text)}:f"
    network = own_function(name, (2, 2, 3), UINT8, "eval.features")
    x = np.random.default_rng(0).integers(0, 256, (4, 2, 2, 3), dtype=np.uint8)
    np.testing.assert_allclose(network.apply(network.params, x).values, x.mean(axis=(1, 2)), rtol=1e-6)
    assert identity(name) != network.identity


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("f = 3", r"own_.*\.py has no function 'f'$"),
        ("import nowhere_at_all", "cannot be imported: ModuleNotFoundError: No module named 'nowhere_at_all'$"),
        ("def f(x): return x.mean((1, 2, 3))", r"for x uint8\[2, 2, 2, 3\] it returns float32\[2\]; it must return"),
        ("def f(x): return x[:, 0, 0]", r"it returns uint8\[2, 3\]; it must return floating features \[2, d\]"),
        ("def f(x): return (x[:, 0, 0] / 255,)", "it returns tuple; it must return"),
        ("def f(x): return x[:, 0, 0, :0] / 255", r"it returns float32\[2, 0\]"),
        ("def f(x): return x @ np.ones(7)", r"it fails for x uint8\[2, 2, 2, 3\]: TypeError: "),
        ("def f(x, y): return x", "it fails for x .*: TypeError: .*argument"),
        ("def f(): return 3", r"`f\(\)` is 'int'; it must be a pair \(params, apply\)"),
        ("def f(): raise OSError('no\\nweights')", r"f\(\) fails: OSError: no weights$"),
        ("def f(): return 'w', len", r"the params of f\(\) are no arrays: "),
    ],
)
def test_mistakes_are_one_line(module, text, said):
    with pytest.raises(UserError, match=said) as caught:
        identity(f"{module(text)}:f")
    assert "\n" not in str(caught.value)


def test_names():
    assert own.is_own("a:b") and own.is_own("pack.mod:Fn_2")
    assert not any(own.is_own(name) for name in ("pixels", "a:", ":b", "a:b:c", "a b:c", "1a:b"))


@pytest.mark.parametrize("name", ["pixels", "raw", "inception"])
def test_names_of_the_packages_own_figures_are_taken(module, name):
    with pytest.raises(UserError, match=f"a function of another name than the package's features: {name} is one"):
        identity(f"{module(f'def {name}(x): return x / 255')}:{name}")


def test_statistics_of_pictures_of_other_sizes_are_each_checked_against_the_function(module, tmp_path, capsys):
    name = module("def color(x): return x.astype(jnp.float32).mean(axis=(1, 2))")
    values, files = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32), []
    for size, found in ((2, None), (4, None), (4, "function of another")):
        shape = (size, size, 3)
        about = About("x", "test", 9, shape, "color", found or identity(f"{name}:color", shape))
        files.append(f"{len(files)}.npz")
        Reference(moments(values + size), values + np.float32(size), about).save(tmp_path / files[-1])
    small, large, other = files
    fid.main([small, large, f"--features={name}:color"])
    printed = dict(line.split()[:2] for line in capsys.readouterr().out.splitlines())
    assert float(printed["frechet_color"]) == pytest.approx(12.0, rel=1e-5)  # means 2 apart in 3 features
    for arguments, said in (
        ([small, other, f"--features={name}:color"], "are of features of color (function of another), not of color"),
        ([small, large], "give --features and the weights that they were made with"),
    ):
        with pytest.raises(SystemExit):
            fid.main(arguments)
        assert said in capsys.readouterr().err


def test_features_that_are_not_finite_are_counted(module, tmp_path, capsys):
    np.savez(tmp_path / "a.npz", x=grid(np.arange(5), np.arange(8)))
    name = module("def f(x): return 1 / x[:, 0, 0, :2].astype(jnp.float32)")
    with pytest.raises(SystemExit):
        fid.main(["a.npz", "a.npz", f"--features={name}:f"])
    assert "12 of 40 examples of a.npz have f features that are not finite" in capsys.readouterr().err
