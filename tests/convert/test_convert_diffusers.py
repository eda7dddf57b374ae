"""diffusers' networks against numbers recorded from diffusers, and its folders by the command."""

import functools
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from convert.diffusers_record import FULL, SMALL, inputs, numbers, outputs_kept
from convert.test_convert_runs import convert, fails, restored
from weights.torch_bytes import write_value

import hold_jax
from hold_jax import kernels
from hold_jax.app import build
from hold_jax.app import config as base
from hold_jax.convert import diffusers, runs, to_diffusers
from hold_jax.errors import UserError
from hold_jax.runtime import workdir
from hold_jax.weights import safetensors

RECORD = json.loads((Path(__file__).parent / "diffusers.json").read_text())


def save(folder, name, *, old=False, **changes):
    """A pipeline's folder, as `save_pretrained` writes it; `old`, as in 2022: at one root, a pickle, other names."""
    unet, scheduler = folder / "unet", folder / "scheduler"
    if old:
        unet = scheduler = folder
    unet.mkdir(parents=True, exist_ok=True)
    scheduler.mkdir(exist_ok=True)
    spec, of_scheduler = SMALL[name], {*diffusers._SCHEDULER, "timestep_type", "use_flow_sigmas"}
    settings = {"_class_name": "UNet2DModel", "_diffusers_version": "0.42.1", **spec["unet"]}
    settings |= {key: value for key, value in changes.items() if key not in of_scheduler}
    (unet / "config.json").write_text(json.dumps(settings))
    written = spec["scheduler"] | {key: value for key, value in changes.items() if key in of_scheduler}
    (scheduler / "scheduler_config.json").write_text(json.dumps({**written, "clip_sample": True}))
    arrays = {label: numbers(label, tuple(shape)) for label, shape in RECORD[name]["state"].items()}
    if old:
        names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        arrays = {functools.reduce(lambda k, n: k.replace(*n), names.items(), k): v for k, v in arrays.items()}
        write_value(unet / "diffusion_pytorch_model.bin", arrays)
    else:
        safetensors.write(unet / "diffusion_pytorch_model.safetensors", arrays)
    return folder


def loaded(folder):
    """The model of a folder, of order three, and its parameters."""
    config = diffusers.config(folder)
    config.sde.order = 3
    model = build.model(base.read(config), (8, 8, 3), 0)
    return model, diffusers.read(folder, model.network, model.input_shape, "it").params


def denoised(model, params, y, sigma):
    """D of a third-order state whose sufficient statistic is y, with anything beside it."""

    def of(params, y, rest, sigma):
        t = kernels.time_of_noise(model.sde, sigma)
        u = kernels.state_of(model.sde, y, rest, t)
        return kernels.denoiser(model.sde, u, t, model.eps_fn(params)(u, t))

    rest = np.random.default_rng(0).standard_normal((*y.shape[:-1], 2, 3)).astype(np.float32)
    return np.asarray(jax.jit(of)(params, y.astype(np.float32), rest, sigma.astype(np.float32)), np.float64)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_network_of_diffusers_is_a_denoiser_at_order_three(tmp_path, name):
    spec, x = SMALL[name], inputs(SMALL[name]).astype(np.float64)
    model, params = loaded(save(tmp_path, name))
    if name == "ncsnpp":
        half = np.array(spec["times"])[:, None, None, None]  # of pictures in [0, 1]; ours are in [-1, 1]
        y, sigma = 2 * x - 1, 2 * half
        got = (denoised(model, params, y, sigma.ravel()) - y) / sigma
        want = np.array(RECORD[name]["output"]) * half[:, 0, :, 0]  # theirs is the score
    else:
        alpha = np.sqrt(RECORD[name]["abar"])[:, None, None, None]
        std = np.sqrt(1 - alpha**2)
        D = denoised(model, params, x / alpha, (std / alpha).ravel())
        prediction = spec["scheduler"].get("prediction_type", "epsilon")
        got = {"epsilon": (x - alpha * D) / std, "v_prediction": (alpha * x - D) / std, "sample": D}[prediction]
        want = np.array(RECORD[name]["output"])
    np.testing.assert_allclose(outputs_kept(got), want, atol=5e-4)


@pytest.mark.slow
def test_a_folder_of_2022_becomes_a_run(tmp_path, capsys):
    new, old = save(tmp_path / "new", "ddpm"), save(tmp_path / "old", "ddpm", old=True)
    folder = tmp_path / "run"
    out = convert(capsys, "--from=diffusers", f"--input={old}", f"--output={folder}", "--config.sde.order=2")
    assert re.fullmatch(
        rf"{folder}: the weights of diffusion_pytorch_model.bin, step 0, 0.\d+ million parameters\n", out
    )
    got, want = restored(folder).ema, loaded(new)[1]
    jax.tree.map(np.testing.assert_array_equal, got, want)
    record = workdir.read(folder)
    assert (record.data_shape, record.config["sde"]["order"]) == ((8, 8, 3), 2)
    assert record.config["model"]["num_times"] == 1000
    out = convert(capsys, "--to=diffusers", f"--input={folder}", f"--output={tmp_path}/back")
    assert re.fullmatch(rf"{tmp_path}/back: the averaged weights of step 0, \d+ tensors\n", out)
    theirs, ours = (diffusers._open(f) for f in (new, tmp_path / "back"))
    assert ours.scheduler == theirs.scheduler
    assert all(ours.unet[key] == theirs.unet[key] for key in diffusers._UNET)
    (first,) = (new / "unet").glob("*.safetensors")
    written = safetensors.read(tmp_path / "back/unet" / first.name)
    jax.tree.map(np.testing.assert_array_equal, written, safetensors.read(first))
    # The package's own file stands for the run.
    convert(capsys, "--to=hold_jax", f"--input={folder}", f"--output={tmp_path}/one.safetensors")
    convert(capsys, "--to=diffusers", f"--input={tmp_path}/one.safetensors", f"--output={tmp_path}/again")
    again = safetensors.read(tmp_path / "again/unet" / first.name)
    jax.tree.map(np.testing.assert_array_equal, again, written)


@pytest.mark.parametrize("name", ["default", "sample"])
def test_a_folder_that_is_written_gives_back_the_network(tmp_path, name):
    first = save(tmp_path / "in", name)  # its features of the time begin with the cosines, ours with the sines
    config = base.read(diffusers.config(first))
    model, params = loaded(first)
    to_diffusers.write(params, model, model.network, config, tmp_path / "out")
    again = hold_jax.load(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, again.params, params)
    assert (again.model.network, again.config) == (model.network, hold_jax.load(first).config)
    with pytest.raises(UserError, match=r"`output` is '.*/out'; it must be a new folder, or an empty one"):
        to_diffusers.write(params, model, model.network, config, tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"skip_rescale": True}, r"`model.skip_rescale` is True; it must be False for a network of diffusers"),
        ({"attention_up": "last"}, r"`model.attention_up` is 'last'; it must be 'every' for a network of diffusers"),
        ({"norm_groups": None}, r"`model.norm_groups` is None; it must be 32 for a network of diffusers"),
        ({"conditioning": "vp_time"}, r"`model.conditioning` is 'vp_time'; it must be discrete_time"),
        ({"parameterization": "sufficient"}, r"`model.parameterization` is 'sufficient'; it must be vp or v or x0"),
    ],
)
def test_a_network_that_diffusers_has_not_is_not_written(tmp_path, changes, message):
    folder = save(tmp_path / "in", "ddpm")
    values = {f"model.{key}": value for key, value in changes.items()}
    if "conditioning" in changes:
        values |= dict.fromkeys([f"model.{key}" for key in build._CONDITIONING])
    config = base.read(diffusers.config(folder)).changed(values)
    model = build.model(config, (8, 8, 3), 0)
    with pytest.raises(UserError, match=message):
        to_diffusers.write({}, model, model.network, config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_is_loaded_in_one_line(tmp_path):
    folder = save(tmp_path, "default")
    found = hold_jax.load(folder)
    jax.tree.map(np.testing.assert_array_equal, found.params, loaded(folder)[1])
    assert (found.model.data_shape, found.sde.order, found.step) == ((8, 8, 3), 1, 0)
    assert found.config.model.parameterization == "v"
    with pytest.raises(UserError, match=r"`checkpoint` is 3; it must be None for a file or folder of diffusers"):
        hold_jax.load(folder, checkpoint=3)
    (folder / "unet/config.json").write_text("[1]")
    with pytest.raises(UserError, match=r"`workdir` is '.*'; its config.json is no JSON object"):
        hold_jax.load(folder)


def test_the_folder_of_the_network_alone_is_none(tmp_path):
    save(tmp_path, "default")
    none = r"it has none of scheduler/scheduler_config\.json and scheduler_config\.json"
    with pytest.raises(UserError, match=rf"^`workdir` is '.*/unet'; {none}: give the pipeline's folder, '{tmp_path}'$"):
        hold_jax.load(tmp_path / "unet")
    (tmp_path / "scheduler").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=rf"^`workdir` is '.*/unet'; {none}$"):
        hold_jax.load(tmp_path / "unet")


def test_a_variant_is_read_where_it_is_the_only_file(tmp_path):
    (weights,) = (save(tmp_path, "default") / "unet").glob("*.safetensors")
    arrays, want = safetensors.read(weights), loaded(tmp_path)[1]
    half = weights.with_name("diffusion_pytorch_model.fp16.safetensors")
    safetensors.write(half, {name: array.astype(np.float16) for name, array in arrays.items()})
    jax.tree.map(np.testing.assert_array_equal, hold_jax.load(tmp_path).params, want)  # not the variant
    weights.unlink()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), loaded(tmp_path)[1], want)
    safetensors.write(weights.with_name("diffusion_pytorch_model.non_ema.safetensors"), arrays)
    names = r"diffusion_pytorch_model\.fp16\.safetensors, diffusion_pytorch_model\.non_ema\.safetensors"
    with pytest.raises(UserError, match=rf"^`workdir` is '.*'; it has {names}; keep only the one to be read$"):
        hold_jax.load(tmp_path)


@pytest.mark.parametrize(
    ("variant", "ending", "write"),
    [("", ".safetensors", safetensors.write), ("", ".bin", write_value), (".fp16", ".safetensors", safetensors.write)],
)
def test_weights_in_several_files_are_read_by_their_index(tmp_path, variant, ending, write):
    (weights,) = (save(tmp_path, "default") / "unet").glob("*.safetensors")
    arrays, want = safetensors.read(weights), loaded(tmp_path)[1]
    weights.unlink()
    files = [f"diffusion_pytorch_model{variant}-0000{i}-of-00002{ending}" for i in (1, 2)]
    places = {name: files[i % 2] for i, name in enumerate(arrays)}
    for file in files:
        write(weights.with_name(file), {name: arrays[name] for name in arrays if places[name] == file})
    index = weights.with_name(f"diffusion_pytorch_model{ending}.index{variant}.json")
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    jax.tree.map(np.testing.assert_array_equal, hold_jax.load(tmp_path).params, want)
    first = next(iter(places))
    for weight_map, message in (
        (None, f"its {index.name} has no weight_map: it must have a file beside it for every tensor"),
        ({first: "../x.bin"}, f"its {index.name} has no weight_map"),
        (places | {first: files[1]}, f"the files of its {index.name} hold other tensors than its weight_map has"),
        (places | {first: f"x{ending}"}, ""),
    ):
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(UserError, match=rf"^`workdir` is '.*'; .*{message}"):
            hold_jax.load(tmp_path)


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"vqvae": ["diffusers", "VQModel"]}, "its model_index.json has vqvae beside the network"),
        (
            {"text_encoder": ["transformers", "CLIPTextModel"], "vae": ["diffusers", "AutoencoderKL"]},
            "its model_index.json has text_encoder, vae beside the network; it must be of a pipeline of pictures "
            "without conditions, which has unet and scheduler alone: latents and texts are not read",
        ),
        ({"vae": [None, None], "_name_or_path": "x", "requires_safety_checker": True}, None),
        ({"_class_name": ["my_pipeline", "MyDDPM"], "image_size": [64, 64]}, None),
        ({}, None),
    ],
)
def test_a_pipeline_of_latents_or_texts_is_refused(tmp_path, others, message):
    own = {"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDPMScheduler"]}
    folder = save(tmp_path, "default")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "Pipeline", **own, **others}))
    if message is None:
        assert diffusers.config(folder).data.image_size == 8
        return
    with pytest.raises(UserError, match=rf"^`workdir` is '.*'; {message}"):
        hold_jax.load(folder)


def test_an_old_and_a_new_name_have_one_value(tmp_path):
    (weights,) = (save(tmp_path, "default") / "unet").glob("*.safetensors")
    arrays, want = safetensors.read(weights), loaded(tmp_path)[1]
    new = next(name for name in arrays if ".to_q.weight" in name)
    old = new.replace("to_q", "query")
    safetensors.write(weights, arrays | {old: arrays[new]})
    jax.tree.map(np.testing.assert_array_equal, hold_jax.load(tmp_path).params, want)
    safetensors.write(weights, arrays | {old: arrays[new] + 1})
    with pytest.raises(UserError, match=rf"^`workdir` is '.*'; its {new} and {old} are one parameter with two values"):
        hold_jax.load(tmp_path)


def test_another_size_of_pictures_needs_the_sides_of_attention(tmp_path, capsys):
    arguments = ("--from=diffusers", f"--input={save(tmp_path / 'in', 'default')}", f"--output={tmp_path}/out")
    error = fails(capsys, *arguments, "--config.data.image_size=(8,16)")
    assert "which needs `model.attention_resolutions` (8,) for pictures of 16 pixels, not (4,): it has, " in error
    sides = ("--config.data.image_size=(8,16)", "--config.model.attention_resolutions=(8,)")
    source = runs.SOURCES["diffusers"]
    found = runs.read(source, tmp_path / "in", runs.settings(source, tmp_path / "in", sides))
    want = loaded(tmp_path / "in")[1]
    jax.tree.map(np.testing.assert_array_equal, found.weights.params, want)


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_published_networks_by_their_settings(tmp_path, name):
    unet = {"sample_size": 256, **FULL[name]["unet"]}
    (tmp_path / "config.json").write_text(json.dumps(unet))
    (tmp_path / "scheduler_config.json").write_text(json.dumps(FULL[name]["scheduler"]))
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"")
    config = diffusers.config(tmp_path)
    # The greatest noise: of the betas, sqrt(1 / abar - 1); of VE, four times that for 64 pixels, less than theirs.
    ends = {"ddpm-cifar10-32": None, "ddpm-celebahq-256": pytest.approx(157.407, rel=1e-4)}
    assert config.sde.sigma_max == ends.get(name, 320.0)
    size = unet["sample_size"]
    model = build.model(base.read(config), (size, size, 3), 0)
    spec = jax.eval_shape(model.init, jax.random.key(0))
    count = sum(leaf.size for leaf in jax.tree.leaves(spec))
    # As PyTorch counts them, with the Fourier frequencies.
    assert count == {"ddpm-cifar10-32": 35_746_307, "ddpm-celebahq-256": 113_673_219}.get(name, 65_574_549)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_class_embeds": 10}, r"unet/config.json: num_class_embeds is 10; it must be None"),
        ({"resnet_time_scale_shift": "scale_shift"}, r"resnet_time_scale_shift is 'scale_shift'; it must be 'default'"),
        ({"cross_attention_dim": 8}, r"has cross_attention_dim; it must be of an unconditional UNet2DModel"),
        ({"_class_name": "UNet2DConditionModel"}, r"is of UNet2DConditionModel; it must be of an unconditional"),
        (
            {"up_block_types": ["UpBlock2D", "AttnUpBlock2D"]},
            r"up_block_types is .*; it must be \['AttnUpBlock2D'",
        ),
        ({"block_out_channels": [16, 24]}, r"block_out_channels is \[16, 24\]; it must be 2 multiples of the first"),
        ({"block_out_channels": [0, 16]}, r"block_out_channels is \[0, 16\]; it must be widths from 4"),
        ({"prediction_type": ["epsilon"]}, r"prediction_type is \['epsilon'\]; it must be 'epsilon' or"),
        ({"beta_schedule": ["linear"]}, r"beta_schedule is \['linear'\]; it must be one of: linear, scaled_linear"),
        ({"beta_start": 10**400}, r"beta_start is 10+; it must be a number"),
        ({"mid_block_scale_factor": 10**400}, r"mid_block_scale_factor is 10+; it must be a number"),
        ({"block_out_channels": "16"}, r"block_out_channels is '16'; it must be a list of int"),
        ({"sample_size": None}, r"sample_size is None; it must be a whole number from 1"),
        ({"out_channels": 6}, r"out_channels is 6; it must be in_channels"),
        ({"time_embedding_type": "fourier"}, r"'fourier' goes with ScoreSdeVeScheduler, .* with DDPMScheduler"),
        ({"center_input_sample": True}, r"center_input_sample is True; it must be False without 'fourier'"),
        ({"norm_num_groups": None}, r"norm_num_groups is None; it must be a whole number from 1 for these blocks"),
        ({"mid_block_scale_factor": 2}, r"mid_block_scale_factor is 2; it must be 1"),
        ({"beta_schedule": "sigmoid"}, r"scheduler_config.json: beta_schedule is 'sigmoid'; it must be one of: linear"),
        ({"beta_end": 1.0}, r"scheduler_config.json: beta_end is 1.0; it must be a number above 0 and below 1"),
        ({"num_train_timesteps": 1}, r"scheduler_config.json: num_train_timesteps is 1; it must be a whole number"),
        ({"use_flow_sigmas": True}, r"scheduler_config.json: use_flow_sigmas is True; it must be False"),
        ({"norm_eps": -1.0}, r"unet/config.json: norm_eps is -1.0; it must be a number above 0 and below 1"),
        ({"dropout": 1}, r"unet/config.json: dropout is 1; it must be a number at least 0 and below 1"),
        ({"norm_num_groups": 3}, r"unet/config.json: norm_num_groups is 3; it must be a divisor of 16"),
        ({"attention_head_dim": 24}, r"unet/config.json: attention_head_dim is 24; it must be a divisor of 32"),
        ({"flip_sin_to_cos": "no"}, r"unet/config.json: flip_sin_to_cos is 'no'; it must be True or False"),
        ({"prediction_type": "flow"}, r"scheduler_config.json: prediction_type is 'flow'; it must be 'epsilon' or"),
        (
            {"timestep_type": "continuous"},
            r"scheduler_config.json: timestep_type is 'continuous'; it must be 'discrete'",
        ),
        ({"trained_betas": [0.1, 0.2]}, r"trained_betas is \[0.1, 0.2\]; it must be None"),
        ({"rescale_betas_zero_snr": True}, r"rescale_betas_zero_snr is True; it must be False"),
        ({"block_out_channels": [32, 64]}, r"it is not of the network of its config.json: of other shapes than"),
    ],
)
def test_what_is_not_read_is_said(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        loaded(save(tmp_path, "ddpm", **changes))


def test_folders_that_are_none(tmp_path, capsys):
    def error():
        return fails(capsys, "--from=diffusers", f"--input={tmp_path}/in", f"--output={tmp_path}/out")

    assert "it must be a folder with unet/config.json and scheduler/scheduler_config.json" in error()
    (tmp_path / "in").mkdir()
    assert "it has none of scheduler/scheduler_config.json and scheduler_config.json" in error()
    folder = save(tmp_path / "in", "ddpm")
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    assert "there is no unet/diffusion_pytorch_model.safetensors or .bin in it" in error()
    scheduler = folder / "scheduler/scheduler_config.json"
    scheduler.write_text(json.dumps(json.loads(scheduler.read_text()) | {"predict_epsilon": False}))
    assert "predict_epsilon is False; it must be True, or left out and prediction_type set" in error()
    scheduler.write_text("{")
    assert "its scheduler_config.json is no JSON (" in error()
    (folder / "unet/config.json").write_text("[" * 100_000)
    assert "its config.json is no JSON (" in error()
    (folder / "unet/config.json").write_text("[1]")
    assert "its config.json is no JSON object" in error()
    assert not (tmp_path / "out").exists()


def test_noise_that_a_network_has_not_seen_is_shown_as_the_least_that_it_has(tmp_path):
    model, _ = loaded(save(tmp_path, "ncsnpp"))
    t = kernels.time_of_noise(model.sde, jnp.float32([0.004, 0.02, 0.1]))
    np.testing.assert_allclose(model.conditioning(model.sde, t), np.log([0.01, 0.01, 0.05]), rtol=1e-5)
