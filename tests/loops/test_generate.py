import dataclasses
import functools
import json
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from training import small
from training.small import quick_compilation  # noqa: F401

from hold_jax import samplers
from hold_jax.autoguided import Autoguided
from hold_jax.condition import Condition
from hold_jax.data import Statistics
from hold_jax.errors import UserError
from hold_jax.loops import generate as generate_module
from hold_jax.loops import origin
from hold_jax.loops.draw import draw_blocks, draw_labels, make_draw
from hold_jax.loops.generate import film_frames, generate, picture
from hold_jax.runtime import lock

POINTS, PICTURES, CLASSES = small.mlp(), small.unet(), small.mlp(num_classes=3)
GUIDED = small.mlp(num_classes=3, label_dropout=0.1)
EIGHT = small.devices(8)


def params_of(model):
    return jax.jit(model.init)(jax.random.key(0))


@pytest.fixture(scope="module")
def points():
    return params_of(POINTS)


def draw(params, num=16, devices=EIGHT, **changes):
    return small.draw_many(POINTS, params, small.sample_settings(**changes), devices, num=num)[0]


@pytest.mark.slow
def test_points_are_written(points, tmp_path):
    settings = small.sample_settings(num_samples=11, frames=2)
    folder = generate(POINTS, points, settings, tmp_path, step=30, reference=np.zeros((5, 2), np.float32))
    assert folder == tmp_path / "samples" / "step_30_sampler4"
    assert sorted(p.name for p in folder.iterdir()) == ["film.gif", "grid.png", "samples.npz", "sampling.json"]
    x = np.load(folder / "samples.npz")["x"]
    assert x.shape == (11, 2) and x.dtype == np.float32 and np.isfinite(x).all()
    np.testing.assert_allclose(x, draw(points, 11), atol=1e-5)
    PIL.Image.open(folder / "grid.png").verify()
    assert PIL.Image.open(folder / "film.gif").n_frames == 3


@pytest.mark.slow
def test_pictures_are_written(tmp_path):
    params = params_of(PICTURES)
    settings = small.sample_settings(num_samples=11, frames=2, save_pngs=True)
    folder = generate(PICTURES, params, settings, tmp_path, step=0)
    assert sorted(p.name for p in folder.iterdir()) == ["film.gif", "grid.png", "png", "samples.npz", "sampling.json"]
    x = np.load(folder / "samples.npz")["x"]
    assert x.shape == (11, 8, 8, 1) and x.dtype == np.uint8 and x.min() < x.max()
    assert sorted(p.name for p in (folder / "png").iterdir()) == [f"{i:06d}.png" for i in range(11)]
    for i in range(11):
        np.testing.assert_array_equal(np.asarray(PIL.Image.open(folder / "png" / f"{i:06d}.png")), x[i, ..., 0])
    assert PIL.Image.open(folder / "film.gif").n_frames == 3


def test_no_film_and_no_pictures_unless_asked(points, tmp_path):
    folder = generate(POINTS, points, small.sample_settings(), tmp_path, step=0)
    assert sorted(p.name for p in folder.iterdir()) == ["grid.png", "samples.npz", "sampling.json"]


def test_vectors_of_one_number_are_drawn_as_histograms(tmp_path):
    x = np.random.default_rng(0).normal(size=(50, 1)).astype(np.float32)
    assert picture(x, reference=2 * x).size == picture(x).size
    frames = film_frames(np.stack([5 * x, 2 * x, x]))
    assert len(frames) == 3 and len({frame.tobytes() for frame in frames}) == 3


@pytest.fixture
def batches(monkeypatch):
    """The number of samples in each batch that was drawn; set `die` to stop before so many more."""
    found = SimpleNamespace(sizes=[], die=None)

    def watched(*args):
        for i, block in enumerate(draw_blocks(*args)):
            if i == found.die:
                raise KeyboardInterrupt
            found.sizes.append(len(block.x))
            yield block

    monkeypatch.setattr(generate_module, "draw_blocks", watched)
    return found


def test_samples_of_other_settings_are_kept_and_those_of_the_same_not_drawn_again(points, tmp_path, batches, capsys):
    def of(**changes):
        return generate(POINTS, points, small.sample_settings(**changes), tmp_path, step=3)

    first = of(seed=0)
    before = small.contents(first)
    other = of(seed=1)
    assert first.name == "step_3_sampler4" and re.fullmatch(r"step_3_sampler4_[0-9a-f]{6}", other.name)
    assert batches.sizes == [8] * 4
    assert of(seed=0) == first and of(seed=1) == other and batches.sizes == [8] * 4
    assert small.contents(first) == before
    assert f"these samples were drawn before, with the same settings: {first}" in capsys.readouterr().err
    changed = jax.tree.map(lambda a: a + 1e-3, points)
    assert generate(POINTS, changed, small.sample_settings(), tmp_path, step=3) not in (first, other)
    assert len(list((tmp_path / "samples").iterdir())) == 3 and small.contents(first) == before


@pytest.mark.parametrize(
    ("changes", "want"),
    [
        ({}, "step_1000_strang4"),
        ({"label": 2, "guidance": 1.5, "num_steps": 20}, "step_1000_strang20_label2_guidance1.5"),
        ({"label": 0, "guidance": -2.0}, "step_1000_strang4_label0_guidance-2"),
        ({"ema_length": 0.15}, "step_1000_strang4_ema0.15"),
    ],
)
def test_the_folder_says_which_samples(changes, want):
    settings = small.sample_settings(name="strang", **changes)
    assert origin.name_of(origin.of_samples(GUIDED, settings, EIGHT, step=1000, weights="w")) == want


@pytest.mark.eight_devices
def test_the_record_has_what_made_the_samples(points, tmp_path):
    settings = small.sample_settings(name="strang", seed=5, grid=functools.partial(samplers.GRIDS["karras"], rho=3.0))
    found = json.loads((generate(POINTS, points, settings, tmp_path, step=3) / "sampling.json").read_text())
    want = {
        "step": 3, "sampler": {"name": "strang", "score_time": "midpoint"}, "grid": "karras(rho=3)", "steps": 4,
        "calls": 5, "seed": 5, "label": None, "guidance": None, "conditions": None, "classes": None, "denoise": True,
        "samples": "0:16", "guidance_interval": None, "clip": None, "threshold": None,
        "batch_size": 8, "devices": "8 x cpu", "dtype": "float32", "t_min": POINTS.sde.t_min, "frames": 0,
        "checkpoint": origin.fingerprint(points), "versions": origin.versions(),
    }  # fmt: skip
    process = found.pop("process")
    assert found == want
    assert process["order"] == 2 and process["T"] == POINTS.sde.T and process["F"] == POINTS.sde.F.tolist()


def test_the_record_names_the_guide_beside_the_run_s_own_checkpoint(points):
    named = ("path", "runs/weak"), ("step", 7), ("checkpoint", "d1")
    model = Autoguided.of(POINTS, POINTS, named)
    assert origin.weights_of(model, (points, points)) == origin.weights_of(POINTS, points) == origin.fingerprint(points)
    settings = small.sample_settings(guidance=2.0)
    records = [origin.of_samples(m, settings, EIGHT, step=3, weights="w") for m in (POINTS, model)]
    assert records[1] == records[0] | {"guide": {"path": "runs/weak", "step": 7, "checkpoint": "d1"}}


@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_a_draw_that_was_killed_goes_on_to_the_same_bits(points, tmp_path, batches, blocks):
    settings = small.sample_settings(num_samples=20, frames=2)
    straight = small.contents(generate(POINTS, points, settings, tmp_path / "straight", step=3))
    batches.sizes.clear()
    batches.die = blocks
    with pytest.raises(KeyboardInterrupt):
        generate(POINTS, points, settings, tmp_path / "killed", step=3)
    assert not list((tmp_path / "killed").rglob("samples.npz"))
    batches.die = None
    found = small.contents(generate(POINTS, points, settings, tmp_path / "killed", step=3))
    assert batches.sizes == [8, 8, 4] and found == straight


def test_draws_at_the_same_time_do_not_meet(points, tmp_path, monkeypatch):
    def of(seed, folder="together"):
        settings = small.sample_settings(num_samples=20, seed=seed)
        return generate(POINTS, points, settings, tmp_path / folder, step=3)

    alone = [small.contents(of(seed, f"alone{seed}")) for seed in (0, 1)]
    drawn, others, messages = generate_module.draw_blocks, [], []

    def with_others(*args):
        for block in drawn(*args):
            if not others:  # while seed 0 draws its first batch
                others.append(None)
                others[0] = of(1)
                # A second draw of seed 0 would take the second folder; one in which a third draws is an error.
                place = others[0].with_name(f"step_3_sampler4_{digest}")
                with lock.locked(place), pytest.raises(UserError) as found:
                    of(0)
                messages.append(str(found.value))
            yield block

    record = {"weights": origin.fingerprint(points), "step": 3}
    made = origin.of_samples(POINTS, small.sample_settings(num_samples=20), EIGHT, **record) | {"samples": "0:20"}
    digest = origin.place(tmp_path, made)[1].name.rpartition("_")[2]
    monkeypatch.setattr(generate_module, "draw_blocks", with_others)
    first = of(0)
    assert first.name == "step_3_sampler4" and others[0].name != first.name
    assert [small.contents(first), small.contents(others[0])] == alone
    (message,) = messages
    assert re.search(rf"{digest} is in use by process \d+ on .*: wait until its samples are drawn", message)


@pytest.mark.slow
def test_pictures_are_written_one_by_one_also_later_and_no_other_is_touched(tmp_path, batches):
    params = params_of(PICTURES)
    of = functools.partial(generate, PICTURES, params, workdir=tmp_path, step=0)
    folder = of(small.sample_settings(num_samples=9))
    assert not (folder / "png").exists()
    (folder / "png").mkdir()
    (folder / "png" / "000001.png").write_bytes(b"mine")
    assert of(small.sample_settings(num_samples=9, save_pngs=True)) == folder and batches.sizes == [8, 1]
    assert (folder / "png" / "000001.png").read_bytes() == b"mine"
    x = np.load(folder / "samples.npz")["x"]
    for i in (0, *range(2, 9)):
        np.testing.assert_array_equal(np.asarray(PIL.Image.open(folder / "png" / f"{i:06d}.png")), x[i, ..., 0])


def test_any_sample_is_drawn_again_alone_bitwise(points, tmp_path):
    many = generate(POINTS, points, small.sample_settings(num_samples=20), tmp_path, step=3)
    x = np.load(many / "samples.npz")["x"]
    for indices, want in (("17", [17]), ("3,9:11,19", [3, 9, 10, 19]), ("5:20", range(5, 20))):
        settings = small.sample_settings(indices=indices)
        folder = generate(POINTS, points, settings, tmp_path, step=3)
        np.testing.assert_array_equal(np.load(folder / "samples.npz")["x"], x[list(want)])


@pytest.mark.slow
def test_a_sample_of_an_adaptive_solver_is_drawn_again_with_its_batch(points):
    """All of a batch share their steps, so a sample's bits depend on the others there."""
    settings = small.sample_settings(sampler=samplers.ProbabilityFlow(), num_steps=1)
    many = np.concatenate([b.x for b in draw_blocks(POINTS, points, settings, EIGHT, np.arange(16))])
    (alone,) = (b.x for b in draw_blocks(POINTS, points, settings, EIGHT, np.array([11])))
    np.testing.assert_array_equal(alone, many[11:12])


def test_the_seed_fixes_the_samples_and_fewer_are_the_first_of_more(points):
    many = draw(points)
    np.testing.assert_array_equal(draw(points), many)
    np.testing.assert_array_equal(draw(points, 5), many[:5])
    np.testing.assert_array_equal(draw(points, 11), many[:11])
    assert len(np.unique(many, axis=0)) == 16  # batches differ too
    assert np.abs(draw(points, seed=1) - many).min() > 0


def test_equal_settings_share_one_compilation(points):
    assert make_draw(POINTS, small.sample_settings(), EIGHT) is make_draw(
        small.mlp(), small.sample_settings(), small.devices(8)
    )
    draw(points)
    with small.compilations() as found:
        draw(points)
    assert not found


def test_one_device_draws_the_samples_of_eight(points):
    np.testing.assert_allclose(draw(points, devices=small.devices(1)), draw(points), atol=1e-4)


@pytest.mark.slow
def test_frames_lead_from_the_prior_to_the_samples(points):
    x, film = small.draw_many(POINTS, points, small.sample_settings(frames=4, denoise=False), EIGHT, num=8)
    assert film.shape == (5, 8, 2)
    np.testing.assert_array_equal(film[-1], x)
    np.testing.assert_allclose(x, draw(points, 8, denoise=False), atol=1e-5)
    # At the prior every block has variance 1 / L = 1/2, and the film begins there.
    assert 0.2 < film[0].std() < 1.5 and film[0].std() != film[-1].std()


def test_a_sample_has_its_number_and_not_its_place(points):
    settings = small.sample_settings()
    many = draw(points, 20)
    blocks = [block.x for block in draw_blocks(POINTS, points, settings, EIGHT, np.arange(20))]
    assert [len(x) for x in blocks] == [8, 8, 4]
    np.testing.assert_array_equal(np.concatenate(blocks), many)
    # The same program from another place on: the same bits.
    blocks = [block.x for block in draw_blocks(POINTS, points, settings, EIGHT, np.arange(5, 16))]
    assert [len(x) for x in blocks] == [3, 8]
    np.testing.assert_array_equal(np.concatenate(blocks), many[5:16])
    turned, _, _ = make_draw(POINTS, settings, EIGHT)(points, np.arange(8, dtype=np.int32)[::-1] + 3, Condition())
    np.testing.assert_array_equal(turned, many[3:11][::-1])
    # Another batch is another program, which rounds differently.
    np.testing.assert_allclose(draw(points, 20, batch_size=16), many, atol=2e-6 * np.abs(many).max())
    assert not list(draw_blocks(POINTS, points, settings, EIGHT, np.arange(0)))


def test_a_sample_that_is_nan_stops_the_draw(points):
    settings = small.sample_settings()
    broken = jax.tree.map(lambda a: a * jnp.nan, points)
    with pytest.raises(UserError, match="NaN"):
        next(draw_blocks(POINTS, broken, settings, EIGHT, np.arange(8)))


@pytest.mark.slow
def test_labels_are_all_in_turn_or_the_one_asked_for():
    params = params_of(CLASSES)
    params["embedding"]["labels"]["embedding"] *= 50

    def of(label):
        return small.draw_many(CLASSES, params, small.sample_settings(label=label), EIGHT, num=16)[0]

    in_turn, first, last = of(None), of(0), of(2)
    assert np.abs(first - last).min() > 0.01
    for i in range(16):  # through both batches
        near = [np.abs(in_turn[i] - x[i]).max() < 1e-4 for x in (first, last)]
        assert near == [i % 3 == 0, i % 3 == 2], i


@pytest.mark.slow
def test_guidance_reaches_the_network():
    params = params_of(GUIDED)
    params["embedding"]["labels"]["embedding"] *= 50

    def of(devices=EIGHT, **changes):
        return small.draw_many(GUIDED, params, small.sample_settings(**changes), devices, num=8)[0]

    plain = of(label=2)
    np.testing.assert_allclose(of(label=2, guidance=1.0), plain, atol=1e-4)
    # At scale 0 the label is forgotten.
    np.testing.assert_allclose(of(label=2, guidance=0.0), of(label=1, guidance=0.0), atol=1e-4)
    assert np.abs(of(label=2, guidance=0.0) - plain).min() > 0.01
    strong = of(guidance=3.0)
    assert np.abs(strong - of()).min() > 0.01
    np.testing.assert_allclose(strong[2::3], of(label=2, guidance=3.0)[2::3], atol=1e-4)
    np.testing.assert_allclose(of(small.devices(1), guidance=3.0), strong, atol=1e-3)


@pytest.fixture(scope="module")
def guided():
    """Samples of the guided model, whose classes differ much."""
    params = params_of(GUIDED)
    params["embedding"]["labels"]["embedding"] *= 50

    @functools.cache
    def of(**changes):
        return small.draw_many(GUIDED, params, small.sample_settings(**changes), small.devices(1), num=8)[0]

    return of


def test_the_denoiser_is_limited(guided):
    size = np.abs(guided())
    assert size.min() > 0.05 and size.max() > 1  # as it would be without the limits
    assert np.abs(guided(clip=0.05)).max() == pytest.approx(0.05, rel=1e-4)
    # Of two values the quantile .5 is their mean: the larger is cut, so that it becomes 1.
    assert np.abs(guided(threshold=0.5)).max() == pytest.approx(1, rel=1e-4)


def test_samples_are_guided_in_the_interval_alone(guided):
    strong, plain = guided(guidance=3.0), guided()
    assert np.abs(strong - plain).max() > 0.01
    np.testing.assert_allclose(guided(guidance=3.0, guidance_interval=(1e8, 1e9)), plain, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(guided(guidance=3.0, guidance_interval=(0.0, 1e9)), strong, rtol=1e-4, atol=1e-4)


def labels_of(counts, num=4000, **changes):
    """How many of `num` samples in a row have each class."""
    model = dataclasses.replace(CLASSES, statistics=Statistics(class_counts=counts))
    labels = draw_labels(model, small.sample_settings(**changes), jnp.arange(100, 100 + num))
    return np.bincount(labels, minlength=3).tolist()


@pytest.mark.parametrize("counts", [(0, 200, 300), (95, 5, 0), (1, 1, 1), (7, 0, 1)])
def test_classes_are_drawn_as_often_as_they_occur_in_the_training_data(counts):
    want = 4000 * np.array(counts) / sum(counts)
    found = np.array(labels_of(counts))
    np.testing.assert_allclose(found, want, atol=4)  # equidistributed, not merely at random: that would be 30
    assert not found[np.array(counts) == 0].any()


def test_a_class_without_training_examples_is_not_drawn():
    with pytest.raises(UserError, match="`label` is 0; it must be a class that training examples have, or None"):
        labels_of((0, 10, 5000), label=0)
    assert labels_of((0, 10, 5000), label=1, num=8) == [0, 8, 0]


def test_classes_drawn_equally_often_are_those_that_occur():
    assert labels_of((0, 10, 5000), classes="uniform") == [0, 2000, 2000]
    assert labels_of((), classes="uniform", num=3000) == labels_of((), num=3000) == [1000] * 3
    with pytest.raises(UserError, match=r"`sampling.classes` is 'even'; it must be one of: data, uniform"):
        small.sample_settings(classes="even")


def test_samples_of_standardized_vectors_are_in_the_datas_units(points):
    """The same draws, placed where the data are."""
    of = functools.partial(
        small.draw_many, params=points, settings=small.sample_settings(frames=2), devices=EIGHT, num=8
    )
    x, film = of(dataclasses.replace(POINTS, statistics=Statistics(mean=(1000.0, -3.0), std=(50.0, 0.1))))
    plain, plain_film = of(POINTS)
    scale, shift = np.array([50.0, 0.1]), np.array([1000.0, -3.0])
    np.testing.assert_allclose((x - shift) / scale, plain, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose((film - shift) / scale, plain_film, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 12}, "`sampling.batch_size` is 12; .* the nearest are 8 and 16"),
        ({"num_steps": 0}, "`sampling.num_steps` is 0; it must be a whole number >= 1"),
        ({"grid": "karas"}, "`sampling.grid` is 'karas' .did you mean 'karras'"),
        ({"grid": (9.0, 1.0, 0.5, 0.2, 0.1)}, "`sampling.times` is .9.0, .*; it must be strictly falling within"),
        ({"grid": (2.0, 1.0, 0.5, 0.2, 0.1)}, "`sampling.times` is .2.0, .*; it must be times from T = 7.10638 on$"),
        ({"t_min": 0.0}, "`sampling.t_min` is 0.0; it must be between 0 and T"),
        ({"t_min": 99.0}, "`sampling.t_min` is 99.0; it must be between 0 and T"),
        ({"t_min": 1e-300}, "`sampling.t_min` is 1e-300; it must be a time of an effective noise above 1.2e-38, not 0"),
        ({"grid": (7.0, 1.0, 0.5, 0.2, 1e-60)}, r"`sampling.times\[-1\]` is 1e-60; it must be a time of an effective"),
        ({"frames": 3}, "`sampling.frames` is 3; it must be 0 or a divisor of num_steps = 4"),
        ({"frames": -2}, "`sampling.frames` is -2"),
        ({"save_pngs": True}, "`sampling.save_pngs` is True; it must be False for data that are not pictures"),
        ({"label": 0}, "`sampling.label` is 0; it must be None for a model without classes"),
        (
            {"guidance": 2.0},
            "`sampling.guidance` is 2.0; it must be None for a model without dropout of a condition: train "
            "with model.label_dropout, model.picture_dropout or model.vector_dropout = 0.1",
        ),
    ],
)
@pytest.mark.eight_devices
def test_what_cannot_be_drawn_is_named_before_compilation(changes, message):
    with small.compilations() as found, pytest.raises(UserError, match=message):
        make_draw(POINTS, small.sample_settings(**changes), EIGHT)
    assert sum(found) < 2.0  # host-side constants at most


def test_a_class_has_a_name_too():
    named = dataclasses.replace(CLASSES, statistics=Statistics((5, 6, 7), ("ant", "bird", "7")))

    def of(label):
        return draw_labels(named, small.sample_settings(label=label), jnp.arange(2)).tolist()

    labels = ("ant", "bird", "7", 7, 1, np.int64(1))
    assert [of(label) for label in labels] == [[0, 0], [1, 1], [2, 2], [2, 2], [1, 1], [1, 1]]
    with pytest.raises(UserError, match=r"`sampling.label` is 'bard' \(did you mean 'bird'\?\)"):
        make_draw(named, small.sample_settings(label="bard"), EIGHT)
    with pytest.raises(UserError, match=r"`sampling.label` is 'ant'; it must be a class, 0 to 2, or None"):
        make_draw(CLASSES, small.sample_settings(label="ant"), EIGHT)


@pytest.mark.parametrize("label", [3, -1])
def test_labels_beyond_the_classes_are_refused(label):
    with pytest.raises(UserError, match=f"`sampling.label` is {label}; it must be a class, 0 to 2, or None"):
        make_draw(CLASSES, small.sample_settings(label=label), EIGHT)


def test_guidance_needs_label_dropout_and_not_only_classes():
    with pytest.raises(UserError, match=r"`sampling.guidance` is 0.0; it must be None for a model without dropout"):
        make_draw(CLASSES, small.sample_settings(guidance=0.0), EIGHT)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guidance": float("nan")}, "`sampling.guidance` is nan; it must be finite, or None"),
        ({"guidance": float("inf")}, "`sampling.guidance` is inf; it must be finite, or None"),
        ({"guidance": "2"}, "`sampling.guidance` is '2'; it must be a number, finite, or None"),
        ({"clip": -1.0}, "`sampling.clip` is -1.0; it must be positive, or None"),
        ({"clip": "1"}, "`sampling.clip` is '1'; it must be a number, positive, or None"),
        ({"threshold": 2.0}, "`sampling.threshold` is 2.0; it must be above 0 and at most 1, or None"),
        (
            {"guidance": 2.0, "guidance_interval": ("a", "b")},
            "`sampling.guidance_interval` is ('a', 'b'); it must be two effective noises, 0 <= low < high, or None",
        ),
    ],
)
def test_numbers_of_the_settings_are_named(changes, message):
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        small.sample_settings(**changes)


def test_numbers_of_any_library_are_settings():
    made = small.sample_settings(guidance=np.float32(2), clip=jnp.float32(1), threshold=np.float64(0.5))
    assert hash(made) == hash(small.sample_settings(guidance=2.0, clip=1.0, threshold=0.5))


@pytest.mark.parametrize("name", ["num_samples", "batch_size"])
def test_counts_are_positive(name):
    with pytest.raises(UserError, match=f"`sampling.{name}` is 0; it must be a whole number >= 1"):
        small.sample_settings(**{name: 0})
