"""What a run starts from: another's settings and averaged parameters."""

import json

import jax
import numpy as np
import pytest

from hold_jax.app import build, constructors, experiment, flags, initial, packed
from hold_jax.app import config as base
from hold_jax.app.flags import Given
from hold_jax.data.dataset import Statistics
from hold_jax.errors import UserError
from hold_jax.runtime import workdir

POINTS = {"data.name": "swissroll", "data.size": 100, "model.name": "mlp", "model.width": 8, "model.hidden_layers": 1}
PICTURES = {
    "data.name": "digits", "model.channels": 8, "model.channel_multipliers": (1, 1), "model.num_res_blocks": 1,
    "model.attention_resolutions": (), "model.fir": False, "model.progressive_input": "none",
}  # fmt: skip
CLASSES = {"model.class_conditional": True}


def config_of(values, **more):
    return constructors.resolve(base.Config().changed({**values, **more}))


def source(config, shape, num_classes=0, names=(), step=7):
    """A model whose parameters are random numbers."""
    model = build.model(config, shape, num_classes)
    rng = np.random.default_rng(0)
    spec = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), spec)
    statistics = {"class_names": list(names), "class_counts": [], "mean": [], "std": []}
    return packed.Packed(workdir.Record(build.as_json(config), shape, num_classes, statistics), params, step)


def start(found, config, shape, num_classes=0, names=()):
    config = config.changed({"training.init_from": "there"})
    model = build.model(config, shape, num_classes, Statistics(class_names=tuple(names)))
    return initial.parameters(found, config, model), model


def test_a_network_as_there_starts_with_all_arrays(capsys):
    config = config_of(POINTS)
    found = source(config, (2,))
    params, _ = start(found, config.changed({"optimizer.learning_rate": 1.0, "model.dtype": "bfloat16"}), (2,))
    assert all(np.array_equal(value, initial._flat(found.params)[path]) for path, value in params.items())
    assert params.keys() == initial._flat(found.params).keys()
    assert capsys.readouterr().err == f"starting from there, step 7: {len(params)} of {len(params)} arrays\n"


@pytest.mark.parametrize(
    ("there", "here", "new"),
    [
        ((3, ("a", "b", "c")), (3, ("a", "b", "c")), False),
        ((3, ("a", "b", "c")), (3, ("a", "c", "b")), True),
        ((3, ()), (4, ()), True),
        (None, (3, ()), True),
        ((3, ()), None, False),
    ],
)
def test_other_classes_have_a_new_embedding(there, here, new, capsys):
    def of(classes):
        return config_of(POINTS, **(CLASSES if classes else {})), (2,), *(classes or (0, ()))

    found = source(*of(there))
    params, model = start(found, *of(here))
    ours = initial._flat(jax.eval_shape(model.init, jax.random.key(0)))
    labels = {path for path in ours if "labels" in path}
    assert ours.keys() - params.keys() == (labels if new else set())
    assert ("new: embedding/labels/embedding" in capsys.readouterr().err) == new


@pytest.mark.parametrize(("there", "here"), [(0.1, 0.2), (0.0, 0.1), (0.1, 0.0)])
def test_augmentation_may_begin_and_end(there, here, capsys):
    found = source(config_of(PICTURES, **{"data.augment": there}), (8, 8, 1))
    params, model = start(found, config_of(PICTURES, **{"data.augment": here}), (8, 8, 1))
    ours = initial._flat(jax.eval_shape(model.init, jax.random.key(0)))
    new = {"embedding/augmentation/kernel"} if here and not there else set()
    assert ours.keys() - params.keys() == new and params.keys() <= ours.keys()
    assert ("new: embedding/augmentation/kernel" in capsys.readouterr().err) == bool(new)


def test_pictures_of_another_size_fit_a_network_of_convolutions():
    config = config_of(PICTURES)
    params, _ = start(source(config, (8, 8, 1)), config, (16, 16, 1))
    assert "conv_in/kernel" in params
    attention = config_of(PICTURES, **{"model.attention_resolutions": (4,)})
    found = source(attention, (8, 8, 1))
    message = (
        r"`training.init_from` is 'there'; it is not of a network as here \(data of shape "
        r"\(8, 8, 1\) there, \(16, 16, 1\) here\): it has, and the network has not, down1_attention0/"
    )
    with pytest.raises(UserError, match=message):
        start(found, attention, (16, 16, 1))
    params, _ = start(found, attention.changed({"model.attention_resolutions": (8,)}), (16, 16, 1))
    assert params.keys() == initial._flat(found.params).keys()


@pytest.mark.parametrize(
    ("changes", "shape", "message"),
    [
        ({}, (8, 8, 3), r"of other shapes than the network's are conv_in/kernel \(3, 3, 1, 8\) for \(3, 3, 3, 8\)"),
        ({"model.channels": 16}, (8, 8, 1), r"network as here \(model.channels 8 -> 16\): of other shapes"),
        ({"model.num_res_blocks": 2}, (8, 8, 1), r"it lacks down0_block1/"),
    ],
)
def test_a_network_that_does_not_fit_is_an_error(changes, shape, message):
    config = config_of(PICTURES)
    with pytest.raises(UserError, match=message):
        start(source(config, (8, 8, 1)), config.changed(changes), shape)


def test_other_options_are_said(capsys):
    config = config_of(POINTS)
    found = source(config, (2,))
    start(found, config.changed({"sde.order": 2}), (2,))  # a denoiser is of no order
    assert "other options" not in capsys.readouterr().err
    start(found, config.changed({"model.parameterization": "gaussian", "sde.order": 1}), (2,))
    said = capsys.readouterr().err
    assert "other options: sde.order 3 -> 1, model.parameterization 'sufficient' -> 'gaussian'\n" in said


@pytest.fixture
def run(tmp_path):
    """The record of a run."""
    config = config_of(POINTS, **{"model.sigma_data": 0.3, "optimizer.learning_rate": 0.5, "data.seed": 3})
    folder = tmp_path / "first"
    folder.mkdir()
    workdir.write(folder, workdir.Record(build.as_json(config), (2,), 0, run="a1"))
    return folder


def find(run, *arguments):
    given = flags.read(None, [f"--config.training.init_from={run}", *(f"--config.{a}" for a in arguments)])
    return experiment.find(given, str(run.parent / "second"), to_train=True, base=initial.settings(given))


def test_without_a_file_the_settings_are_those_of_the_other_run(run):
    found = find(run, "training.num_steps=3").config
    before = experiment.of_record(workdir.read(run), run)
    assert found == before.changed({"training.num_steps": 3, "training.init_from": str(run)})
    other = find(run, "data.name=npz:x.npz").config
    assert (other.data.name, other.data.size, other.data.seed) == ("npz:x.npz", None, None)
    assert (other.model.width, other.model.sigma_data, other.optimizer.learning_rate) == (8, 0.3, 0.5)


def test_a_config_file_is_all_there_is(run):
    given = Given("file", config_of(PICTURES, **{"training.init_from": str(run)}).flat())
    assert initial.settings(given) is None


@pytest.mark.slow
def test_the_model_of_the_package_is_one_to_start_from():
    given = flags.read(None, ["--config.training.init_from=digits", "--config.model.class_conditional"])
    settings = initial.settings(given)
    assert settings is not None and settings.data.name == "digits"
    found = packed.find("digits", initial.KEY)
    params, _ = start(found, config_of(settings.flat() | CLASSES), (8, 8, 1), 10)
    assert len(params) == len(initial._flat(found.params))


def test_what_is_no_model_is_named(tmp_path):
    for name, message in (("none.safetensors", "init_from` is .*none.safetensors"), ("none", "no trained model")):
        given = flags.read(None, [f"--config.training.init_from={tmp_path / name}"])
        with pytest.raises(UserError, match=message):
            initial.settings(given)


def test_a_run_that_has_begun_goes_on_from_its_own_weights(run):
    (run / "checkpoints" / "5").mkdir(parents=True)
    given = flags.read(None, [f"--config.training.init_from={run.parent / 'third'}"])
    with pytest.raises(UserError, match=r"training.init_from = None there, .* here: the run has begun, and goes on"):
        experiment.find(given, str(run), to_train=True)
    assert json.loads((run / "config.json").read_text())["config"]["training"]["init_from"] is None
