"""What the modes prepare: the guide of `sampling.guide`."""

import contextlib
import dataclasses

import jax
import numpy as np
import PIL.Image
import pytest

from configs import digits_hold
from hold_jax.app import build, packed, prepare
from hold_jax.app import config as base
from hold_jax.autoguided import Autoguided
from hold_jax.data import Statistics
from hold_jax.errors import UserError
from hold_jax.runtime import workdir


def settings(**changes):
    config = base.read(digits_hold.get_config())
    return config.changed({key.replace("__", "."): value for key, value in changes.items()})


def test_a_guide_has_the_process_and_the_type_of_the_samples():
    config = settings(sampling__guide="digits", sde__order=2, model__dtype="bfloat16")
    model = build.model(config, (8, 8, 1), 0)
    drawn, joined = prepare.guided(config, model)
    assert drawn.guide.sde == model.sde and drawn.guide.dtype == model.dtype == "bfloat16"
    own, theirs = joined("own")
    assert own == "own"
    want = packed.find("digits", "sampling.guide").params
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), theirs, want)))


def test_a_guide_of_other_data_is_an_error():
    config = settings(sampling__guide="digits")
    with pytest.raises(UserError, match=r"`sampling\.guide` is 'digits': .*data"):
        prepare.guided(config, build.model(config, (16, 16, 1), 0))


def test_a_guide_of_another_condition_is_an_error(tmp_path, monkeypatch):
    upper, lower = (settings(data__condition=f"inpaint:{half}", sampling__guide="run") for half in ("upper", "lower"))
    statistics = Statistics(kind="picture", picture_shape=(8, 8, 1))
    record = workdir.Record(build.as_json(upper), (8, 8, 1), 0, dataclasses.asdict(statistics))
    monkeypatch.setattr(packed, "find", lambda *_: packed.Packed(record, {}, 1))
    for config, fits in ((upper, True), (lower, False)):
        model = build.model(config, (8, 8, 1), 0, statistics)
        message = r"`sampling.guide` is 'run'; it must be a run with data.condition = 'inpaint:lower'; it has"
        with contextlib.nullcontext() if fits else pytest.raises(UserError, match=message):
            prepare.guided(config, model)


def test_conditions_that_the_guide_does_not_take_are_an_error(tmp_path):
    """Class 3 is the null class, which a guide without dropout never trained."""
    np.savez(tmp_path / "labels.npz", label=np.arange(4))
    path = str(tmp_path / "labels.npz")
    config = settings(model__class_conditional=True, model__label_dropout=0.1, sampling__condition=path)
    config = config.changed({"sampling.guide": "run"})
    model = build.model(config, (8, 8, 1), 3)
    drawn = Autoguided.of(model, dataclasses.replace(model, label_dropout=0.0))
    assert prepare.conditions(config, model, lambda: None).num == 4
    with pytest.raises(UserError, match=r"`sampling.guide` is 'run': .* 4 integers, classes from 0 to 2$"):
        prepare.conditions(config, drawn, lambda: None)


def test_without_a_guide_the_model_is_itself():
    config = settings()
    model = build.model(config, (8, 8, 1), 0)
    drawn, joined = prepare.guided(config, model)
    assert drawn is model and joined("own") == "own"


def test_a_model_of_classes_has_data_of_these_classes(tmp_path):
    x, labels = np.zeros((6, 8, 8, 1), np.uint8), np.arange(6) % 3
    np.savez(tmp_path / "x.npz", x=x, y=labels, x_test=x)
    config = settings(data__name=f"npz:{tmp_path / 'x.npz'}", model__class_conditional=True)
    model = lambda classes, names=(): build.model(config, (8, 8, 1), classes, Statistics(class_names=names))  # noqa: E731
    assert prepare.dataset(config, "train", model(3)).num_classes == 3
    allowed = "data of the 3 classes that the model takes; its test split has no labels"
    with pytest.raises(UserError, match=rf"`data.name` is 'npz:.*; it must be {allowed}$"):
        prepare.dataset(config, "test", model(3))
    with pytest.raises(UserError, match=r"it must be data of the 4 classes .* its train split has 3 classes$"):
        prepare.dataset(config, "train", model(4))
    without = config.changed({"model.class_conditional": False})
    assert prepare.dataset(without, "test", model(3)).num_classes == 0
    assert prepare.dataset(config, "train", model(3, ("a", "b", "c"))).class_names == ()


def test_classes_that_only_the_test_data_have_are_said(tmp_path, capsys):
    x, labels = np.zeros((6, 8, 8, 1), np.uint8), np.arange(6) % 3
    np.savez(tmp_path / "x.npz", x=x, y=labels, x_test=x, y_test=labels + (labels == 2))
    config = settings(data__name=f"npz:{tmp_path / 'x.npz'}", model__class_conditional=True)
    model = build.model(config, (8, 8, 1), 4, Statistics(class_counts=(2, 2, 2, 0)))
    prepare.dataset(config, "train", model)
    assert capsys.readouterr().err == ""
    prepare.dataset(config, "test", model)
    said = capsys.readouterr().err
    assert said.startswith("warning: the test split of npz:") and said.endswith("the network did not learn: [3]\n")


def test_a_model_of_classes_has_data_of_the_same_names(tmp_path):
    for name in ("bird", "cat"):
        (tmp_path / name).mkdir()
        for i in range(3):
            PIL.Image.fromarray(np.full((8, 8), 40 * i, np.uint8)).save(tmp_path / name / f"{i}.png")
    config = settings(data__name=f"folder:{tmp_path}", model__class_conditional=True)
    model = lambda *names: build.model(config, (8, 8, 3), 2, Statistics(class_names=names))  # noqa: E731
    assert prepare.dataset(config, "test", model("bird", "cat")).class_names == ("bird", "cat")
    allowed = "data of the model's classes: class 1 is dog there, cat in the test split"
    with pytest.raises(UserError, match=rf"`data.name` is 'folder:.*; it must be {allowed}$"):
        prepare.dataset(config, "test", model("bird", "dog"))
    # A guide's classes are compared as well.
    assert Autoguided.of(model("bird", "cat"), model()).guide is not None
    with pytest.raises(UserError, match=r"`guide` is \"a model of the classes \('bird', 'dog'\)"):
        Autoguided.of(model("bird", "cat"), model("bird", "dog"))
