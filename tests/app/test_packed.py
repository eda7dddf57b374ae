"""A model in one file, and the one that the package ships."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from convert.test_convert_runs import convert, fails
from training.small import quick_compilation  # noqa: F401

from hold_jax.app import build, experiment, packed
from hold_jax.app import config as base
from hold_jax.data import measure
from hold_jax.errors import UserError
from hold_jax.loops.evaluate import test_loss as loss_of
from hold_jax.runtime import workdir
from hold_jax.runtime.mesh import Devices
from hold_jax.training.checkpoint import Checkpoints
from hold_jax.training.state import init_state
from hold_jax.weights import safetensors


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A work directory of a perceptron, whose checkpoint is its initialization, and what it holds."""
    config = base.get_config()
    config.data.name, config.data.size = "swissroll", 100
    config.model.update(name="mlp", width=8, hidden_layers=1)
    config.sampling.update(name="heun", times=(3.0, 1.0, 0.1), num_steps=2)
    config = base.read(config)
    data = build.dataset(config, "train")
    statistics = measure(data)
    record = experiment.Experiment(config, tmp_path_factory.getbasetemp(), None).record(data)
    model = build.model(config, record.data_shape, record.num_classes, statistics)
    state = jax.jit(lambda: init_state(model, build.optimizer(config), 0))()
    folder = tmp_path_factory.mktemp("toy") / "run"
    folder.mkdir()
    workdir.write(folder, record)
    with Checkpoints.open(folder) as checkpoints:
        checkpoints.save(jax.device_put(state, Devices.all().replicated))
    return folder, record, jax.tree.map(np.asarray, state.ema)


@pytest.mark.slow
def test_a_run_of_any_network_becomes_one_file(toy, tmp_path, capsys):
    folder, record, params = toy
    path = tmp_path / "toy.safetensors"
    out = convert(capsys, "--to=hold_jax", f"--input={folder}", f"--output={path}")
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert out == f"{path}: the averaged weights of step 0, {count:,} parameters\n"
    found = packed.read(path)
    assert found.step == 0
    assert json.loads(found.record.to_json()) == json.loads(record.to_json())
    assert found.config.sampling.times == (3.0, 1.0, 0.1)  # a tuple, as configs have it
    jax.tree.map(np.testing.assert_array_equal, found.params, params)
    error = fails(capsys, "--to=hold_jax", f"--input={folder}", f"--output={tmp_path}/toy.pth")
    assert "toy.pth'; it must be a file whose name ends in .safetensors" in error


@pytest.mark.slow
def test_a_file_holds_what_differs_from_the_base_config(toy, tmp_path):
    _, record, params = toy
    path = tmp_path / "toy.safetensors"
    packed.write(path, packed.Packed(record, params, 7))
    own = json.loads(safetensors.read_metadata(path)["hold_jax"])["config"]
    assert own == {
        "data.name": "swissroll",
        "data.size": 100,
        "model.name": "mlp",
        "model.width": 8,
        "model.hidden_layers": 1,
        "model.sigma_data": 1.0,
        "sampling.name": "heun",
        "sampling.times": [3.0, 1.0, 0.1],
        "sampling.num_steps": 2,
    }


@pytest.mark.parametrize("metadata", [None, {"hold_jax": "{"}, {"hold_jax": '{"config": {"model.nme": 1}}'}])
def test_another_file_of_the_format_is_none(tmp_path, metadata):
    safetensors.write(tmp_path / "a.safetensors", {"a": np.zeros(2)}, metadata)
    with pytest.raises(UserError, match=r"it is not a model of this package, or of another .* --to=hold_jax"):
        packed.read(tmp_path / "a.safetensors")


def test_a_folder_without_a_model_is_named_by_its_argument(tmp_path):
    with pytest.raises(UserError, match=r"`sampling.guide` is '.*none'; it must be a trained run's work directory"):
        packed.find(str(tmp_path / "none"), "sampling.guide")


@pytest.mark.slow
def test_the_digits_of_the_package_have_the_loss_of_the_run_that_made_them():
    found = packed.read(packed.shipped("digits"))
    config = found.config.changed({"eval.repeats": 20})
    model = build.model(config, found.record.data_shape, found.record.num_classes, build.statistics(found.record))
    settings = dataclasses.replace(build.evaluation(config), batch_size=100)
    got = loss_of(model, build.loss(config), found.params, build.dataset(config, "test"), settings, Devices.all())
    # results.jsonl of that run, float32 parameters: 0.0931 +- 0.0038.
    assert got["test_loss"] == pytest.approx(0.0931, abs=3 * 0.0038)
