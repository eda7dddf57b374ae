import dataclasses
import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from training import small
from training.small import quick_compilation  # noqa: F401

from hold_jax import data, losses
from hold_jax.autoguided import Autoguided
from hold_jax.data.dataset import Statistics, array_dataset
from hold_jax.errors import UserError
from hold_jax.evaluation import reference
from hold_jax.evaluation.feature_network import Features
from hold_jax.evaluation.figures import compute
from hold_jax.evaluation.pixels import pixels
from hold_jax.evaluation.reference import Reference
from hold_jax.loops import conditions
from hold_jax.loops import evaluate as evaluation
from hold_jax.loops import generate as sampling
from hold_jax.loops import likelihood as nll
from hold_jax.loops.draw import Drawn, draw_blocks
from hold_jax.loops.evaluate import EvalSettings, Evaluator
from hold_jax.loops.likelihood import LikelihoodSettings
from hold_jax.metrics.frechet import frechet_distance, moments
from hold_jax.metrics.sliced_wasserstein import sliced_wasserstein
from hold_jax.numerics import ode
from hold_jax.runtime.log import read_jsonl
from hold_jax.runtime.mesh import Devices
from hold_jax.samplers import EulerMaruyama
from hold_jax.samplers.grids import times_of


class Convolutions(nn.Module):
    """What compiles in a third of the time of the smallest U-Net."""

    num_classes: int = 0

    @nn.compact
    def __call__(self, inputs, noise_cond, condition, train=False):
        hidden = jnp.tanh(nn.Conv(8, (3, 3))(inputs) + noise_cond[:, None, None, None])
        return nn.Conv(1, (3, 3))(hidden)


MODEL = small.mlp()
PICTURES = dataclasses.replace(MODEL, network=Convolutions(), data_shape=(8, 8, 1), sigma_data=0.5)
TRAIN, TEST = small.points(300), small.points(20, "test")  # a ragged tail: 16 + 4
DIGITS, HELD_OUT = data.load("digits", split="train"), data.load("digits", split="test")
PIXELS, EIGHT = pixels(), small.devices(8)
SETTINGS = dict(batch_size=16, repeats=3, num_samples=None, stats=None, neighbors=0, likelihood=None, seed=5)
BITS = LikelihoodSettings(
    num_examples=None, batch_size=8, probes=1, repeats=1, importance_weighted=False, auxiliary="posterior",
    solver=ode.Solver(), t_min=None, seed=5,
)  # fmt: skip


@pytest.fixture(scope="module")
def params():
    return jax.jit(MODEL.init)(jax.random.key(0))


def score(
    params, workdir, *, model=MODEL, loss=small.LOSS, test=TEST, train=TRAIN, networks=(PIXELS,), step=1, sampling=None,
    load_train=None, **changes,
):  # fmt: skip
    settings = EvalSettings(**SETTINGS | changes)
    evaluator = Evaluator(
        model, loss, test, load_train or (lambda: train), networks, settings,
        small.sample_settings(**sampling or {}), workdir,
    )  # fmt: skip
    return evaluator.evaluate(params, step=step)


def timeless(results):
    return {name: value for name, value in results.items() if "seconds" not in name}


def never(*args, **options):
    raise AssertionError("this was not to be called")


@pytest.fixture
def no_loss(monkeypatch):
    """The loss is not what is tested, and costs a compilation each time."""
    monkeypatch.setattr(evaluation, "test_loss", lambda *args: {"test_loss": 0.5})


def loss_of(params, devices=8, test=TEST, loss=small.LOSS, **changes):
    settings = EvalSettings(**SETTINGS | changes)
    return evaluation.test_loss(MODEL, loss, params, test, settings, small.devices(devices))


@pytest.mark.slow
def test_the_loss_is_the_same_in_every_batch(params):
    """20 examples, in ragged and in full batches, on one device and on eight."""
    loss = functools.partial(small.LOSS, weighting=losses.q0_weight)
    found = loss_of(params, loss=loss)
    for devices, batch_size in ((8, 8), (8, 512), (1, 7)):
        other = loss_of(params, devices, loss=loss, batch_size=batch_size)
        assert other["test_loss"] == pytest.approx(found["test_loss"], rel=1e-5)
        assert other["test_loss_error"] == pytest.approx(found["test_loss_error"], rel=1e-4)
    assert loss_of(params, loss=loss) == found  # nothing is drawn anew


def weight_of_time(sde, times):
    """Large where t is small, and so in the first stratum."""
    return (times.t < sde.T / 8) * 8.0


@pytest.mark.parametrize(("repeats", "tolerance"), [(1, 0.1), (8, 1e-6), (64, 1e-6)])
def test_the_loss_of_each_example_is_over_all_times(repeats, tolerance):
    """The mean of a loss that is w(t) itself: E w = 1, exactly 1 where each of 8 strata has its time."""

    def loss(sde, eps_fn, x, key, **_):
        times = losses.draw_times(sde, losses.uniform, key, len(x), t_min=1e-6)
        return 2 * weight_of_time(sde, times)  # over 2 dimensions

    test = small.points(2000, "test")
    found = loss_of(None, test=test, loss=loss, repeats=repeats, batch_size=4096)
    # At one repeat the standard error is sqrt(7 / 2000) = .06.
    assert found["test_loss"] == pytest.approx(1, abs=2 * tolerance)
    if repeats == 1:
        assert found["test_loss_error"] == pytest.approx(np.sqrt(7 / 2000), rel=0.15)


def test_the_loss_depends_on_an_examples_number_and_not_on_those_beside_it(params):
    """The first 8 examples alone have the share that they have among all."""

    def each(num):
        batch = next(data.eval_batches(TEST, batch_size=num))
        return evaluation._loss_of_batch(MODEL, small.LOSS, 4, 0, small.devices(1))(params, batch)

    np.testing.assert_allclose(each(8), each(20)[:8], rtol=1e-5)


def test_the_training_split_has_its_figures_under_its_own_names(params, tmp_path):
    """As many training examples as test examples, drawn at random."""
    some = TRAIN.subset(len(TEST))
    test, train = loss_of(params), loss_of(params, test=some)
    common = dict(num_samples=0, networks=())
    both = score(params, tmp_path, split="both", **common)
    assert both == {"step": 1} | test | {name.replace("test", "train"): value for name, value in train.items()}
    assert score(params, tmp_path, split="train", **common).keys() == {"step", "train_loss", "train_loss_error"}
    with pytest.raises(UserError, match=r"`eval.split` is 'all'; it must be one of: both, test, train"):
        EvalSettings(**SETTINGS | dict(split="all"))


@pytest.fixture(scope="module")
def straight(params, tmp_path_factory):
    """An evaluation that nothing stopped, and its work directory."""
    workdir = tmp_path_factory.mktemp("straight")
    return timeless(score(params, workdir)), workdir


def test_figures_are_those_of_the_samples(params, straight):
    results, _ = straight
    x = small.draw_many(MODEL, params, small.sample_settings(), EIGHT, num=20)[0]
    target = Reference(moments(TRAIN.source), TRAIN.source, None)
    want = (
        {"step": 1, "num_samples": 20, "floor_examples": 20}
        | loss_of(params)
        | compute("pixels", Features(x, None), target)
    )
    want |= {
        "frechet_raw_floor": frechet_distance(moments(TEST.source), moments(TRAIN.source)),
        "sliced_wasserstein": sliced_wasserstein(x, TRAIN.source),
        "sliced_wasserstein_floor": sliced_wasserstein(TEST.source, TRAIN.source),
    }
    assert results == want and "pixels_precision_low" in want


def test_one_line_a_time(params, tmp_path):
    results = [score(params, tmp_path, step=step, num_samples=num) for step, num in ((1, None), (2, 8), (3, 0))]
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    made_by = [line.pop("made_by") for line in lines]
    assert lines == results
    assert [(made["step"], made.get("steps"), made.get("calls")) for made in made_by] == [
        (1, 4, 5),
        (2, 4, 5),
        (3, None, None),
    ]
    assert len({made["checkpoint"] for made in made_by}) == 1 and made_by[2].keys() == {
        "data",
        "step",
        "checkpoint",
        "versions",
    }
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert [line.get("num_samples") for line in lines] == [20, 8, None]
    assert lines[2].keys() == {"step", "test_loss", "test_loss_error"}
    assert len({line["test_loss"] for line in lines}) == 1
    # Of an average made of snapshots the line says so, also without samples.
    score(params, tmp_path, step=3, num_samples=0, networks=(), sampling={"ema_length": 0.1})
    assert read_jsonl(tmp_path / "results.jsonl")[-1]["made_by"]["ema_length"] == 0.1
    # The floor is that of as many test points as there are samples, drawn at random.
    some = TEST.subset(8).source
    assert lines[1]["floor_examples"] == 8
    assert lines[1]["sliced_wasserstein_floor"] == pytest.approx(sliced_wasserstein(some, TRAIN.source))
    assert lines[1]["frechet_raw_floor"] == frechet_distance(moments(some), moments(TRAIN.source))
    assert all(np.isfinite(value) for line in lines for value in line.values())
    # The figures of another average have a folder and TensorBoard curves of their own.
    assert sorted(p.name for p in (tmp_path / "eval").iterdir()) == ["step_1", "step_2", "step_3", "step_3_ema0.1"]
    assert sorted(p.name for p in (tmp_path / "tensorboard").iterdir()) == ["eval", "eval_ema0.1"]


def test_tensorboard_has_every_figure_and_picture(straight):
    results, workdir = straight
    (file,) = (workdir / "tensorboard" / "eval").iterdir()
    events = file.read_bytes()
    for name in results.keys() - {"step"}:
        assert f"eval/{name}".encode() in events
    assert b"eval/step" not in events and events.count(b"\x89PNG") == 1
    PIL.Image.open(workdir / "eval" / "step_1" / "samples.png").verify()


def test_data_are_read_only_where_samples_are_compared_with_them(params, tmp_path):
    score(params, tmp_path, num_samples=0, networks=(), load_train=never)


def test_figures_that_are_not_finite_are_strict_json(params, tmp_path):
    def reject(word):
        raise AssertionError(f"{word} is not JSON")

    def loss(sde, eps_fn, x, key, **_):
        return jnp.full(len(x), jnp.nan)

    score(params, tmp_path, loss=loss, num_samples=0)
    (line,) = (tmp_path / "results.jsonl").read_text().splitlines()
    found = json.loads(line, parse_constant=reject)
    assert found.pop("made_by") and found == {"step": 1, "test_loss": "NaN", "test_loss_error": "NaN"}
    assert np.isnan(read_jsonl(tmp_path / "results.jsonl")[0]["test_loss"])


@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_killed_while_it_samples_it_goes_on_and_comes_to_the_same(params, straight, tmp_path, monkeypatch, blocks):
    """20 samples are three blocks."""
    drawn = []

    def watched(*args, **options):
        for block in draw_blocks(*args, **options):
            drawn.append(len(block.x))
            yield block

    def dying(*args, **options):
        for i, block in enumerate(draw_blocks(*args, **options)):
            if i == blocks:
                raise KeyboardInterrupt
            yield block

    loss = {name: straight[0][name] for name in ("test_loss", "test_loss_error")}
    monkeypatch.setattr(evaluation, "test_loss", lambda *args: loss)
    monkeypatch.setattr(sampling, "draw_blocks", dying)
    with pytest.raises(KeyboardInterrupt):
        score(params, tmp_path)
    assert not (tmp_path / "results.jsonl").exists()
    monkeypatch.setattr(sampling, "draw_blocks", watched)
    assert timeless(score(params, tmp_path)) == straight[0]
    assert drawn == [8, 8, 4][blocks:]
    for folder in ("eval", "stats"):
        kept, want = small.contents(tmp_path / folder), small.contents(straight[1] / folder)
        assert kept.keys() == want.keys()
        assert all(kept[name] == want[name] for name in kept if name.endswith(".npy"))
    assert timeless(score(params, tmp_path)) == straight[0] and drawn == [8, 8, 4][blocks:]  # all there


@pytest.mark.slow
def test_one_device_and_another_batch_size_give_the_figures(params, straight, tmp_path, monkeypatch):
    monkeypatch.setattr(Devices, "all", classmethod(lambda cls: small.devices(1)))
    found, want = score(params, tmp_path, sampling=dict(batch_size=16)), straight[0]
    assert timeless(found).keys() == want.keys()
    one, eight = (np.load(next(d.rglob("samples_*/000000000-*.npy")))[:8] for d in (tmp_path, straight[1]))
    # Products of a matrix and one row, or several, round differently.
    np.testing.assert_allclose(one, eight, atol=2e-6 * np.abs(eight).max())
    for name, value in want.items():
        assert found[name] == pytest.approx(value, rel=1e-4), name


@pytest.mark.slow
def test_pictures_are_the_same_bytes_on_one_device_and_eight_in_any_batch(tmp_path, no_loss, monkeypatch):
    params = jax.jit(PICTURES.init)(jax.random.key(0))
    common = dict(model=PICTURES, test=HELD_OUT, train=DIGITS, num_samples=20, neighbors=3)
    eight = score(params, tmp_path / "eight", **common)
    monkeypatch.setattr(Devices, "all", classmethod(lambda cls: small.devices(1)))
    one = score(params, tmp_path / "one", sampling=dict(batch_size=16), **common)
    assert timeless(one) == timeless(eight)
    folders = [workdir / "eval" / "step_1" for workdir in (tmp_path / "one", tmp_path / "eight")]
    for name in ("samples.png", "neighbors.png"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
    x = [np.concatenate([np.load(p) for p in sorted(folder.glob("samples_*/*.npy"))]) for folder in folders]
    assert x[0].dtype == np.uint8 and x[0].shape == (20, 8, 8, 1) and x[0].std() > 10
    np.testing.assert_array_equal(x[0], x[1])
    features = (moments(a.reshape(-1, 64) / 127.5 - 1) for a in (x[0], DIGITS.source))
    assert eight["frechet_raw"] == pytest.approx(frechet_distance(*features), rel=1e-5)
    (file,) = (tmp_path / "one" / "tensorboard" / "eval").iterdir()
    assert file.read_bytes().count(b"\x89PNG") == 2


@pytest.fixture
def drawn(monkeypatch):
    """What was drawn, as (start, stop); in place of the sampler are numbers that tell the sample's."""
    found = []

    def blocks(model, params, settings, devices, index, conditions):
        found.append((int(index[0]), int(index[-1]) + 1))
        for i in np.split(index.astype(np.float32), range(settings.batch_size, len(index), settings.batch_size)):
            yield Drawn(np.stack([i, -i], axis=1), None, np.int32(5))

    monkeypatch.setattr(sampling, "draw_blocks", blocks)
    return found


def rows_of(folder, *, model=MODEL, weights="w", num=20, given=conditions.NONE, **changes):
    settings = small.sample_settings(**changes)
    return evaluation.sample_rows(model, None, settings, EIGHT, folder, weights, num=num, step=1, given=given)[0]


def in_turn(num):
    return np.stack([np.arange(num), -np.arange(num)], axis=1).astype(np.float32)


OTHER = {
    "weights": dict(weights="v"),
    "sampler": dict(sampler=EulerMaruyama()),
    "steps": dict(num_steps=5),
    "grid": dict(grid="log"),
    "end": dict(t_min=0.1),
    "denoiser": dict(denoise=False),
    "label": dict(label=1, model=small.mlp(num_classes=3)),
    "classes": dict(classes="uniform", model=small.mlp(num_classes=3)),
    "class frequencies": dict(model=dataclasses.replace(small.mlp(num_classes=2), statistics=Statistics((3, 1)))),
    "units": dict(model=dataclasses.replace(MODEL, statistics=Statistics(mean=(0.0, 0.0), std=(2.0, 1.0)))),
    "guidance": dict(guidance=1.5),
    "largest value": dict(clip=1.0),
    "threshold": dict(threshold=0.9),
    "conditions": dict(given=dataclasses.replace(conditions.NONE, digest="other")),
    "seed": dict(seed=1),
    "process": dict(model=small.mlp(order=1)),
    "type": dict(model=dataclasses.replace(MODEL, network=MODEL.network.clone(dtype=jnp.float16))),
    "prior": dict(model=dataclasses.replace(MODEL, sde=dataclasses.replace(MODEL.sde, prior_cov=2 * np.eye(2)))),
}


@pytest.mark.parametrize("changes", OTHER.values(), ids=OTHER)
def test_samples_of_other_weights_or_settings_are_drawn_anew(tmp_path, drawn, changes):
    rows_of(tmp_path)
    rows_of(tmp_path, **changes)
    assert drawn == [(0, 20), (0, 20)]
    assert len(list(tmp_path.iterdir())) == 2


def test_samples_guided_in_another_interval_are_drawn_anew(tmp_path, drawn):
    for interval in (None, (0.1, 2.0), (0.1, 3.0), (0.1, 2.0)):
        rows_of(tmp_path, guidance=1.5, guidance_interval=interval)
    assert drawn == [(0, 20)] * 3


def test_samples_of_another_guide_are_drawn_anew(tmp_path, drawn):
    for guide in ("a", "b", "a"):
        rows_of(tmp_path, model=Autoguided.of(MODEL, MODEL, (("checkpoint", guide),)), guidance=2.0)
    assert drawn == [(0, 20)] * 2


SAME = {
    "nothing": {},
    "batch size": dict(batch_size=16),
    "number to show": dict(num_samples=3),
    "film": dict(frames=2),
    "files": dict(save_pngs=True),
    "times that are the grid's": dict(grid=tuple(times_of(MODEL.sde, "karras", MODEL.sde.t_min, 4))),
    "end that is the default": dict(t_min=MODEL.sde.t_min),
}


@pytest.mark.parametrize("changes", SAME.values(), ids=SAME)
def test_samples_that_would_be_the_same_are_kept(tmp_path, drawn, changes):
    np.testing.assert_array_equal(rows_of(tmp_path), in_turn(20))
    np.testing.assert_array_equal(rows_of(tmp_path, **changes), in_turn(20))
    assert drawn == [(0, 20)]


def test_more_samples_go_on_and_fewer_are_the_first(tmp_path, drawn):
    for num, batch_size in ((10, 8), (30, 16), (5, 8), (31, 8)):
        np.testing.assert_array_equal(rows_of(tmp_path, num=num, batch_size=batch_size), in_turn(num))
    assert drawn == [(0, 10), (10, 30), (30, 31)]


def test_the_least_change_of_a_weight_is_another_model(params, tmp_path, drawn, no_loss):
    leaves, tree = jax.tree.flatten(jax.tree.map(np.array, params))
    leaves[-1].flat[0] = np.nextafter(leaves[-1].flat[0], np.float32(9))
    for weights in (params, jax.tree.unflatten(tree, leaves), params):
        score(weights, tmp_path)
    assert drawn == [(0, 20), (0, 20)]


def test_how_far_it_is_is_told(tmp_path, drawn, capsys):
    rows_of(tmp_path)
    assert "sample 20/20" in capsys.readouterr().err


def compared(x, workdir, *, test=HELD_OUT, train=DIGITS, networks=(PIXELS,), load_train=None, **changes):
    settings = EvalSettings(**SETTINGS | changes)
    return evaluation.compare(
        x, settings, networks, workdir, EIGHT, test=test, load_train=load_train or (lambda: train)
    )  # fmt: skip


def test_few_samples_for_many_features_are_warned_of(tmp_path, capsys):
    x = DIGITS.source
    told = (
        "pixels: warning: 64 examples for 64 features: their covariance is singular, and the Frechet distance far above"
    )
    compared(x[:64], tmp_path)
    assert told in capsys.readouterr().err
    compared(x[:65], tmp_path)
    compared(TEST.source, tmp_path, test=TEST, train=TRAIN)
    assert "warning" not in capsys.readouterr().err


def test_test_data_are_at_the_floor(tmp_path):
    found, images = compared(HELD_OUT.source, tmp_path)
    assert found["frechet_raw"] == found["frechet_raw_floor"] > 0
    assert "sliced_wasserstein" not in found and images.keys() == {"samples"}
    points, _ = compared(TEST.source, tmp_path, test=TEST, train=TRAIN)
    assert points["sliced_wasserstein"] == points["sliced_wasserstein_floor"] > 0
    in_three = array_dataset("three", "test", np.random.default_rng(0).standard_normal((40, 3), np.float32), None, 0)
    assert "sliced_wasserstein" not in compared(in_three.source, tmp_path, test=in_three, train=in_three)[0]


def test_each_network_has_its_figures(tmp_path):
    twice = lambda params, x: Features(2 * x, None)  # noqa: E731
    other = dataclasses.replace(PIXELS, name="other", apply=twice)
    found, _ = compared(TEST.source, tmp_path, test=TEST, train=TRAIN, networks=(PIXELS, other))
    assert found["frechet_other"] == pytest.approx(4 * found["frechet_raw"], rel=1e-6)
    assert found["other_precision"] == found["pixels_precision"]


def nearest_by_force(x, train):
    x, train = (a.reshape(len(a), -1).astype(np.int64) for a in (x, train))
    return np.argsort(((x[:, None] - train[None]) ** 2).sum(axis=-1), axis=1, kind="stable")


def test_the_nearest_training_pictures_stand_beside_each_sample(monkeypatch):
    """Of 1,500 digits, in blocks of a thousand; copies of some of them, the last among them, and noise."""
    grids = []
    monkeypatch.setattr(evaluation.pictures, "image_grid", lambda x, columns: grids.append((x, columns)))
    noise = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), dtype=np.uint8)
    x = np.concatenate([DIGITS.source[[1200, 3]], noise, DIGITS.source[-1:]])
    evaluation.neighbors(x, DIGITS)
    ((grid, columns),) = grids
    rows = grid.reshape(len(x), columns, 8, 8, 1)
    assert columns == 8
    np.testing.assert_array_equal(rows[:, 0], x)
    np.testing.assert_array_equal(rows[:, 1:], DIGITS.source[nearest_by_force(x, DIGITS.source)[:, :7]])
    for copy in (0, 1, 5):
        np.testing.assert_array_equal(rows[copy, 1], x[copy])


def test_a_copy_can_be_seen_in_the_picture_and_few_training_pictures_are_all_shown(tmp_path):
    few = array_dataset("few", "train", DIGITS.source[:3], None, 0)
    x = DIGITS.source[[50, 2]]
    _, images = compared(x, tmp_path, train=few, neighbors=1)
    assert images.keys() == {"samples", "neighbors"}
    _, images = compared(x, tmp_path, train=few, neighbors=2)
    picture = np.asarray(images["neighbors"])
    assert picture.ndim == 2
    rows = picture[:, ~(picture == 255).all(axis=0)][~(picture == 255).all(axis=1)]
    side = rows.shape[0] // 2
    assert rows.shape == (2 * side, 4 * side)
    sample, copy, other = (rows[side:, i * side : (i + 1) * side] for i in range(3))
    np.testing.assert_array_equal(sample, copy)
    assert (sample != other).any()


@pytest.fixture(scope="module")
def stats(tmp_path_factory):
    path = tmp_path_factory.mktemp("stats") / "digits.npz"
    reference.compute(PIXELS, DIGITS, EIGHT).save(path)
    return path


def test_statistics_of_a_file_give_the_figures_of_the_data_and_these_are_not_read(stats, tmp_path):
    x = HELD_OUT.source[:100]
    found, _ = compared(x, tmp_path / "a", stats=stats, load_train=never)
    assert found == compared(x, tmp_path / "b")[0]
    assert not (tmp_path / "a").exists()  # nothing is computed, nothing kept


def test_statistics_that_do_not_fit_are_refused_before_anything_is_computed(params, stats, tmp_path, monkeypatch):
    for module, name in ((sampling, "draw_blocks"), (evaluation, "test_loss"), (nll, "evaluate_likelihood")):
        monkeypatch.setattr(module, name, never)
    common = dict(model=PICTURES, load_train=never)
    cases = [
        (dict(test=dataclasses.replace(HELD_OUT, name="mnist")), "was made with data = 'digits'; this .* has 'mnist'"),
        (dict(test=data.load("digits", split="test", image_size=16)), "of 64 features; pixels has 256"),
        (dict(test=HELD_OUT, networks=[dataclasses.replace(PIXELS, name="inception")]), "with network = 'pixels'"),
        (dict(test=HELD_OUT, networks=[dataclasses.replace(PIXELS, identity="mine")]), "identity = .pixels in the"),
        (dict(test=HELD_OUT, networks=[PIXELS, PIXELS]), r"`eval.features` is \['pixels', 'pixels'\]; it must be one"),
        (dict(test=HELD_OUT, networks=[]), r"`eval.features` is \[\]; it must be one network, to use eval.stats"),
    ]
    for changes, message in cases:
        with pytest.raises(UserError, match=message):
            score(params, tmp_path, stats=stats, **common | changes)
    with pytest.raises(UserError, match="no such file; make it with --mode=stats"):
        score(params, tmp_path, stats=tmp_path / "none.npz", test=HELD_OUT, **common)
    assert not list(tmp_path.iterdir())
    evaluator = Evaluator(
        PICTURES, small.LOSS, HELD_OUT, never, [PIXELS], EvalSettings(**SETTINGS | dict(stats=stats)),
        small.sample_settings(), tmp_path,
    )  # fmt: skip
    evaluator.check()
    # Where nothing is drawn, no statistics are needed.
    settings = dataclasses.replace(evaluator.settings, num_samples=0)
    dataclasses.replace(evaluator, settings=settings, networks=[]).check()


@pytest.fixture
def bits(monkeypatch, no_loss):
    """Of each call, how many examples there were and how many are wanted; in place of bits are their numbers."""
    found = []

    def fake(model, params, test, settings, devices, rows, *, tick):
        found.append((rows.count, rows.count + rows.missing))
        rows.append(np.arange(rows.count, rows.count + rows.missing, dtype=np.float64)[:, None])
        tick(rows.count)
        return {"bits_per_dim": rows.array().mean()}

    monkeypatch.setattr(nll, "evaluate_likelihood", fake)
    return found


def test_likelihoods_of_a_part_are_of_random_examples(params, tmp_path, bits, monkeypatch):
    """The first of a set that is sorted by class would be of one class."""
    seen = []

    def fake(model, params, test, settings, devices, rows, *, tick):
        seen.append(test.gather(np.arange(settings.num_examples))["x"])
        rows.append(np.zeros((settings.num_examples, 1)))
        return {"bits_per_dim": 0.0}

    monkeypatch.setattr(nll, "evaluate_likelihood", fake)
    order = np.argsort(TEST.source[:, 0])
    test = dataclasses.replace(TEST, source=TEST.source[order], labels=TEST.labels[order])
    settings = dataclasses.replace(BITS, num_examples=8)
    score(params, tmp_path, test=test, num_samples=0, networks=(), likelihood=settings)
    np.testing.assert_array_equal(seen[0], test.subset(8).source)
    assert seen[0][:, 0].max() > test.source[8:, 0].min()


def test_likelihoods_are_of_the_network_in_float32(params, tmp_path, monkeypatch):
    """An adaptive solver's steps would follow the roundings of half precision."""
    seen = []
    monkeypatch.setattr(nll, "check", lambda model, *rest: seen.append(model))
    monkeypatch.setattr(nll, "evaluate_likelihood", lambda model, *rest, **options: seen.append(model) or {})
    monkeypatch.setattr(evaluation, "test_loss", lambda *args: {"test_loss": 0.5})
    half = dataclasses.replace(MODEL, network=MODEL.network.clone(dtype=jnp.bfloat16))
    score(params, tmp_path, model=half, num_samples=0, networks=(), likelihood=BITS)
    assert half != MODEL and seen == [MODEL, MODEL]


@pytest.mark.slow
def test_likelihoods_are_kept_by_what_they_depend_on(params, tmp_path, bits, capsys):
    def found(params=params, *, model=MODEL, test=TEST, **changes):
        settings = dataclasses.replace(BITS, **changes)
        return score(params, tmp_path, model=model, test=test, num_samples=0, networks=(), likelihood=settings)

    results = found(num_examples=12)
    assert timeless(results) == {"step": 1, "test_loss": 0.5, "bits_per_dim": 5.5} and "likelihood_seconds" in results
    assert "likelihood 12/12" in capsys.readouterr().err
    found(), found(num_examples=99), found(batch_size=16), found(test=dataclasses.replace(TEST, name="renamed"))
    assert bits == [(0, 12), (12, 20), (20, 20), (20, 20), (20, 20)]
    bits.clear()
    doubled = jax.tree.map(lambda a: 2 * a, params)
    other_process = small.mlp(order=1)
    changes = [
        dict(probes=2), dict(repeats=2), dict(importance_weighted=True), dict(auxiliary="initial"), dict(t_min=0.1),
        dict(seed=6), dict(solver=ode.Solver(rtol=1e-3)), dict(params=doubled), dict(model=other_process),
        dict(test=dataclasses.replace(TEST, source=TEST.source + 1)), dict(test=small.points(21, "test").subset(20)),
    ]  # fmt: skip
    for change in changes:
        found(**change)
        assert bits.pop() == (0, 20), change
    assert len(list((tmp_path / "eval" / "step_1").iterdir())) == 1 + len(changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"repeats": 0}, "`eval.repeats` is 0; it must be 1 or more"),
        ({"num_samples": 1}, "`eval.num_samples` is 1; it must be None, 0, or 2 or more"),
        ({"num_samples": -4}, "`eval.num_samples` is -4"),
        ({"neighbors": -1}, "`eval.neighbors` is -1; it must be 0 or more"),
    ],
)
def test_bad_settings_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        EvalSettings(**SETTINGS | changes)


@pytest.mark.eight_devices
def test_a_batch_that_does_not_divide_is_refused_first(params, tmp_path, monkeypatch):
    for module, name in ((sampling, "draw_blocks"), (evaluation, "test_loss"), (nll, "evaluate_likelihood")):
        monkeypatch.setattr(module, name, never)
    with pytest.raises(UserError, match=r"`eval.batch_size` is 10; .* the nearest are 8 and 16"):
        score(params, tmp_path, batch_size=10)
    with pytest.raises(UserError, match=r"`likelihood.batch_size` is 10; .* the nearest are 8 and 16"):
        score(params, tmp_path, likelihood=dataclasses.replace(BITS, batch_size=10))
    assert not list(tmp_path.iterdir())


def missing():
    raise UserError("no such data")


UNTRACEABLE = {
    "a test split of one example": (dict(test=small.points(1, "test")), r"`data.name` is 'gaussians8'; .* 2 test exam"),
    "no training data": (dict(load_train=missing), "no such data"),
    "an end of the likelihood": (
        dict(likelihood=dataclasses.replace(BITS, t_min=-1.0)), r"`likelihood.t_min` is -1.0; it must be between 0"
    ),
    "an end of the sampler": (dict(sampling=dict(t_min=99.0)), r"`sampling.t_min` is 99.0"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), UNTRACEABLE.values(), ids=UNTRACEABLE)
def test_what_cannot_work_is_found_before_anything_is_computed(tmp_path, monkeypatch, changes, message):
    for module, name in ((sampling, "draw_blocks"), (evaluation, "test_loss"), (nll, "evaluate_likelihood")):
        monkeypatch.setattr(module, name, never)
    with pytest.raises(UserError, match=message):
        score(None, tmp_path, **changes)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_dropout_is_off_and_pictures_are_rescaled():
    model = small.unet(dropout=0.5)
    params = jax.jit(model.init)(jax.random.key(0))
    x = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1), dtype=np.uint8)
    test = array_dataset("pictures", "test", x, None, 0)
    seen = []

    def loss(sde, eps_fn, x, key, **_):
        seen.append((x.dtype, x.shape))
        u = jnp.stack([x, x], axis=-2)
        del key
        return jnp.sum(jnp.square(eps_fn(u, jnp.float32(1.0))), axis=(1, 2, 3, 4)) + jnp.sum(x**2, axis=(1, 2, 3))

    settings = EvalSettings(**SETTINGS | dict(batch_size=8, repeats=1))
    first, second = (
        evaluation.test_loss(model, loss, params, test, settings, small.devices(1))["test_loss"] for _ in range(2)
    )
    assert first == second and set(seen) == {(jnp.dtype("float32"), (1, 8, 8, 1))}
    scaled = x / 127.5 - 1
    assert first > (scaled**2).mean()
