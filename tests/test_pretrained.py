"""`hold_jax.load`: a work directory as one object, whose results are those of the parts."""

import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import conditional_gaussian
from training import small

import hold_jax
from configs import swissroll_hold
from hold_jax import data, kernels, likelihood, samplers, sde
from hold_jax.app import build
from hold_jax.app import config as base
from hold_jax.convert import __main__ as convert
from hold_jax.data.dataset import Statistics
from hold_jax.errors import UserError
from hold_jax.numerics import programs
from hold_jax.runtime import storage, workdir
from hold_jax.training import power_average
from hold_jax.training.checkpoint import Checkpoints
from hold_jax.training.state import init_state

KEY = jax.random.key(3)
MEAN, STD = (5.0, -3.0), (2.0, 4.0)


def run(folder, **changes):
    """Writes a work directory of an untrained model of the plane, with averages that differ from the parameters."""
    config = swissroll_hold.get_config()
    settings = {
        "sde.order": 1,
        "model.width": 8,
        "model.hidden_layers": 2,
        "model.init_scale": 1.0,
        "model.fourier_scale": 0.1,
    }
    settings |= {"model.parameterization": "sufficient", "sampling.name": "ddim", "sampling.grid": "log"}
    settings |= {"sampling.num_steps": 4, "sampling.batch_size": 3}
    config.update_from_flattened_dict(settings | changes)
    config = base.read(config)
    statistics = Statistics(mean=MEAN, std=STD)
    model = build.model(config, (2,), 0, statistics)
    state = init_state(model, build.optimizer(config), 0)
    folder = storage.path(str(folder))
    kept = {"mean": list(MEAN), "std": list(STD)}
    workdir.write(folder, workdir.Record(build.as_json(config), (2,), 0, statistics=kept))
    with Checkpoints.open(folder, keep_last=2) as checkpoints:
        for step, scale in ((10, 1.0), (20, 2.0)):
            ema = jax.tree.map(lambda a, scale=scale: scale * a, state.params)
            checkpoints.save(state.replace(step=jnp.int32(step), ema=ema))
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return run(tmp_path_factory.mktemp("pretrained") / "run")


@pytest.fixture(scope="module")
def model(folder):
    return hold_jax.load(folder)


def test_the_averages_of_a_checkpoint(folder, model):
    older = hold_jax.load(folder, checkpoint=10)
    assert (model.step, older.step) == (20, 10)
    for new, old in zip(jax.tree.leaves(model.params), jax.tree.leaves(older.params), strict=True):
        np.testing.assert_array_equal(new, 2 * old)
    assert model.sde == sde.hold(1) and model.config.sampling.name == "ddim"


def test_an_average_of_any_length(tmp_path):
    where = run(tmp_path / "run")
    own = hold_jax.load(where)
    for step in (10, 20):
        power_average.write(storage.path(where), [own.params, own.params], step, "")
    tripled = jax.tree.map(lambda a: 3 * a, own.params)
    power_average.write(storage.path(where), [tripled, tripled], 15, "")
    found = hold_jax.load(where, checkpoint=10, ema_length=0.15)  # of the snapshot at 10, of parameters at rest
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found.params, own.params)
    mixed = hold_jax.load(where, ema_length=0.1).params["out"]["kernel"]  # kept at step 20 itself
    np.testing.assert_allclose(mixed, own.params["out"]["kernel"], rtol=1e-4, atol=1e-6)
    arguments = ["--to=hold_jax", f"--input={where}", f"--output={tmp_path / 'mixed.safetensors'}"]
    convert.main([*arguments, "--ema_length=0.2"])
    want, exported = hold_jax.load(where, ema_length=0.2), hold_jax.load(str(tmp_path / "mixed.safetensors"))
    jax.tree.map(np.testing.assert_array_equal, exported.params, want.params)
    assert not np.array_equal(want.params["out"]["kernel"], own.params["out"]["kernel"])
    with pytest.raises(UserError, match=r"ema_length` is 0\.5; it must be .*0\.28"):
        hold_jax.load(where, ema_length=0.5)
    with pytest.raises(UserError, match=r"`ema_length` is 0\.1; it must be None for weights"):
        hold_jax.load("digits", ema_length=0.1)


@pytest.mark.slow
def test_samples_are_those_of_the_parts_in_data_units_in_any_batches(model):
    done = []
    x = model.sample(5, KEY, progress=done.append)
    assert done == [3, 5] and x.shape == (5, 2) and x.dtype == np.float32
    out = samplers.sample(
        "ddim", model.sde, model.eps_fn, key=KEY, shape=(5, 2), index=jnp.arange(5), num_steps=4, grid="log"
    )
    sigma_data = model.model.sigma_data
    want = np.array(MEAN) + np.array(STD) / sigma_data * np.asarray(out.x, np.float64)
    np.testing.assert_allclose(x, want, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(model.sample(5, KEY, batch_size=5), x, rtol=1e-5, atol=1e-5)
    other = model.sample(5, KEY, batch_size=5, sampler="euler_maruyama", num_steps=5)
    assert np.abs(other - x).min() > 1e-3


@pytest.mark.slow
def test_the_denoiser_is_edms_preconditioning_of_the_network_at_every_order(model):
    y, sigma = jax.random.normal(KEY, (3, 2)), np.array([0.01, 0.5, 20.0], np.float32)
    s, d = sigma[:, None], model.model.sigma_data
    # 2206.00364, table 1.
    network = model.model.network.apply(
        {"params": model.params}, y / np.sqrt(s**2 + d**2), np.log(sigma) / 4, None, False
    )
    want = d**2 / (s**2 + d**2) * y + s * d / np.sqrt(s**2 + d**2) * network
    np.testing.assert_allclose(model.denoise(y, sigma), want, rtol=2e-4, atol=2e-5)
    third = model.with_sde(sde.hold(3))
    np.testing.assert_allclose(third.denoise(y, sigma), want, rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(model.denoise(y[1:2], 0.5), want[1:2], rtol=2e-4, atol=2e-5)
    assert third.sde == sde.hold(3) and third.sample(2, KEY).shape == (2, 2)


def test_a_network_of_one_process_is_not_sampled_by_another(tmp_path):
    model = hold_jax.load(run(tmp_path / "run", **{"model.parameterization": "gaussian"}))
    for process in (2, sde.hold(2)):
        with pytest.raises(UserError, match=r"`sde` is 2; .* of training: this network, of .* 'gaussian'"):
            model.with_sde(process)


def test_an_order_keeps_the_other_settings_of_the_process(tmp_path, model):
    own = hold_jax.load(run(tmp_path / "run", **{"sde.sigma_max": 157.0}))
    assert own.with_sde(3).sde == sde.hold(3, sigma_max=157.0) != sde.hold(3)
    assert model.with_sde(np.int64(2)).sde == sde.hold(2)
    with pytest.raises(UserError, match=r"`sde` is None; it must be a whole number >= 1"):
        model.with_sde(None)
    unset = {key: None for key in own.config.flat() if key.startswith("sde.")}
    vp = dataclasses.replace(own, config=own.config.changed(unset | {"sde.name": "vp"}))
    with pytest.raises(UserError, match=r"`sde.order` has no effect with sde.name = 'vp'"):
        vp.with_sde(3)


@pytest.mark.slow
def test_bits_per_dim_are_of_the_density_in_data_units(model):
    x = np.array([[5.0, -3.0], [6.0, 1.0]], np.float32)
    z = (x - np.array(MEAN)) / np.array(STD) * model.model.sigma_data
    options = {"key": KEY, "probes": 0}
    inside = likelihood.bits_per_dim(model.sde, model.eps_fn, jnp.asarray(z, jnp.float32), **options).bpd
    # dx / dz is std / sigma_data in each of two dimensions: log2(2 4 / sigma_data^2) / 2 bits more.
    want = inside + np.log2(8 / model.model.sigma_data**2) / 2
    found = model.bits_per_dim(x, KEY, probes=0)
    np.testing.assert_allclose(found.bpd, want, rtol=1e-4)
    assert not found.is_bound
    network = model.model.network.clone(dtype=jnp.bfloat16)
    half = dataclasses.replace(model, model=dataclasses.replace(model.model, network=network))
    assert (half.denoise(x, 0.5) != model.denoise(x, 0.5)).any()
    np.testing.assert_array_equal(half.bits_per_dim(x, KEY, probes=0).bpd, found.bpd)


@pytest.mark.slow
def test_latents_lead_back(model):
    # A network that is zero is the exact denoiser of Gaussian data.
    model = dataclasses.replace(model, params=jax.tree.map(jnp.zeros_like, model.params))
    x = np.array([[5.0, -3.0], [6.0, 1.0]], np.float32)
    latent = model.encode(x, KEY, num_steps=60)
    t = jnp.float32(model.sde.T)
    assert np.abs(kernels.sufficient_statistic(model.sde, latent.u, t)[0]).max() > 20
    back = samplers.sample("unipc", model.sde, model.eps_fn, start=latent.u, num_steps=60)
    np.testing.assert_allclose(model.model.to_data(back.x), x, atol=0.03)


def test_latents_are_those_given_the_condition(model):
    known = conditional_gaussian.model(sde.hold(2), (3,), "vector", dropout=0.1)
    model = dataclasses.replace(model, model=known, params={})
    x = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
    condition = {"vector": conditional_gaussian.in_data_units(x)}
    latent = model.encode(x, KEY, condition=condition, num_steps=4).u
    kept = len(programs._PROGRAMS[model._predictor])
    other = model.encode(x, KEY, condition={"vector": condition["vector"] + 1}, num_steps=4).u
    assert np.abs(latent - other).max() > 0.1 and len(programs._PROGRAMS[model._predictor]) == kept
    numbered = {"index": np.arange(2), "grid": np.linspace(known.sde.T, 0.1, 5)}
    for kept in (len(programs._PROGRAMS[model._predictor]) + 1,) * 2:
        model.encode(x, KEY, condition=condition, num_steps=4, **numbered)
        assert len(programs._PROGRAMS[model._predictor]) == kept
    want = samplers.encode("unipc", known.sde, known.eps_fn({}, condition=condition), x, key=KEY, num_steps=4).u
    np.testing.assert_array_equal(latent, want)
    assert np.abs(latent - model.encode(x, KEY, num_steps=4).u).max() > 0.1
    with pytest.raises(UserError, match=r"`condition.vector` is 'float32\[2, 2\]'; it must be an array of floats"):
        model.encode(x, KEY, condition={"vector": x[:, :2]})
    without = dataclasses.replace(model, model=dataclasses.replace(known, vector_dropout=0.0))
    with pytest.raises(UserError, match=r"`condition.vector` is None; .* the network is conditioned on it"):
        without.encode(x, KEY)
    assert without.encode(x, KEY, condition=condition, num_steps=4).u.shape == (2, 2, 3)


def test_a_model_is_pickled_after_its_use_as_before_it(model):
    times = [model.sde.T, 1.0, 0.1]
    x = model.sample(2, KEY, num_steps=np.int64(2), grid=times)
    with small.compilations() as found:
        np.testing.assert_array_equal(model.sample(2, KEY, num_steps=2, grid=tuple(times)), x)
    assert not found
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.sample(2, KEY, num_steps=2, grid=times), x)
    with jax.enable_x64(True):
        assert jax.eval_shape(lambda y: model.denoise(y, 0.5), jnp.zeros((2, 2))).dtype == jnp.float32


def test_loading_says_nothing(folder, caplog):
    hold_jax.load(folder)
    assert not caplog.records


def test_mistakes_are_named(model, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"no trained model in .*nothing"):
        hold_jax.load(str(tmp_path / "nothing"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    assert hold_jax.load("digits").config.data.name == "digits"
    (tmp_path / "digits" / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"'digits' is a model of the package and a work directory: write ./digits"):
        hold_jax.load("digits")
    with pytest.raises(UserError, match=r"`num` is 0"):
        model.sample(0, KEY)
    with pytest.raises(UserError, match=r"`key` is 0; it must be one key of JAX"):
        model.sample(4, 0)
    with pytest.raises(UserError, match=r"`checkpoint` is '10'; it must be a whole number"):
        hold_jax.load("run", checkpoint="10")
    with pytest.raises(UserError, match=r"`config` is 3; it must be a path, values by key, or None"):
        hold_jax.load("x.pth", source="edm", config=3)
    for name in ("~nobody-of-this-name/x", "a" * 300):
        with pytest.raises(UserError, match=r"`workdir` is .*; it must be a path that there can be"):
            hold_jax.load(name)
    for act in (model.encode, model.bits_per_dim):
        for shape in ((2,), (4, 3), (4, 2, 2)):
            allowed = r"it must be a batch of the model's data, \(B, 2\)"
            with pytest.raises(UserError, match=rf"`x` is 'of shape \({shape[0]},.*'; {allowed}"):
                act(np.zeros(shape), KEY)
    with pytest.raises(UserError, match=r"`y` is 'of shape \(2,\)'"):
        model.denoise(np.zeros(2), 0.5)
    with pytest.raises(UserError, match=r"`sigma` is 'of shape \(3,\)'; it must be of shape \(\) or \(2,\)"):
        model.denoise(np.zeros((2, 2)), np.ones(3))
    for y in (np.zeros((2, 2), np.uint8), np.zeros((2, 2), complex), jnp.zeros((2, 2), jnp.int32), [["a", "b"]]):
        with pytest.raises(UserError, match=r"`y` is 'of type .*'; it must be floating, .* \[-1, 1\]\): `model.mod"):
            model.denoise(y, 0.5)
    for sigma in ("a", 1j, True, None):
        with pytest.raises(UserError, match=rf"`sigma` is {sigma!r}; it must be real, one noise level or one for"):
            model.denoise(np.zeros((2, 2)), sigma)
    for changes, message in (
        ({"batch_size": 1.5}, r"`sampling.batch_size` is 1.5; it must be a whole number >= 1"),
        ({"guidance": np.ones(2)}, r"`sampling.guidance` is array\(.*; it must be a number, finite, or None"),
        ({"guidance": "2"}, r"`sampling.guidance` is '2'; it must be a number, finite, or None"),
        ({"guidance": 2.0, "guidance_interval": (1, 2, 3)}, r"`sampling.guidance_interval` is \(1, 2, 3\); .* two"),
    ):
        with pytest.raises(UserError, match=message):
            model.sample(2, KEY, **changes)
    with pytest.raises(UserError, match=r"`options` is \['steps'\]; it must be among sampler, num_steps"):
        model.sample(2, KEY, steps=3)
    nan = dataclasses.replace(model, params=jax.tree.map(lambda a: a * jnp.nan, model.params))
    with pytest.raises(UserError, match="samples are NaN"):
        nan.sample(2, KEY)


@pytest.mark.slow
def test_the_model_of_the_package_is_a_denoiser_of_digits():
    model = hold_jax.load("digits")
    x = data.load("digits", split="test").source[:100]
    z = np.asarray(model.model.to_model(x))
    noisy = z + 0.5 * np.asarray(jax.random.normal(KEY, z.shape))
    error = np.sqrt(np.mean((np.asarray(model.denoise(noisy, 0.5)) - z) ** 2))
    # The best linear denoiser that sees one pixel leaves sigma sigma_data / sqrt(sigma^2 + sigma_data^2).
    assert error < 0.7 * 0.5 * z.std() / np.sqrt(0.25 + z.var())
    with pytest.raises(UserError, match="`checkpoint` is 3; it must be None for a model in one file"):
        hold_jax.load("digits", checkpoint=3)
