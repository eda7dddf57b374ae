import dataclasses
import functools
import json

import jax
import numpy as np
import PIL.Image
import pytest
from reference import measured
from training import small
from training.small import quick_compilation  # noqa: F401

from hold_jax import samplers, sde
from hold_jax.app import build
from hold_jax.app.config import Config
from hold_jax.data import Statistics
from hold_jax.data.dataset import array_dataset
from hold_jax.errors import UserError
from hold_jax.loops import tasks
from hold_jax.model import Model
from hold_jax.parameterization import log_noise, sufficient
from hold_jax.runtime.mesh import Devices

SHAPE = (4, 4, 3)
RNG = np.random.default_rng(0)


def smooth():
    """Pictures whose neighbors are alike, in the model's range; deviations about 0.4."""
    place = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1).reshape(-1, 3) / [1, 1, 2]
    far = np.square(place[:, None] - place[None]).sum(axis=-1)
    return measured.gaussian(np.zeros(48), 0.16 * np.exp(-far / 4) + 1e-3 * np.eye(48))


LAW = smooth()


@dataclasses.dataclass(frozen=True)
class Exact(Model):
    """A model whose noise predictor is exact for `LAW`."""

    def eps_fn(self, params, *, condition=None, dropout=None, guidance=None):
        return LAW.eps_fn(self.sde, SHAPE)


MODEL = Exact(sde.hold(order=2), small.unet().network, SHAPE, sufficient, log_noise, 0.4)
SETTINGS = small.sample_settings(sampler=samplers.unipc(), num_steps=16, grid="log", num_samples=16, batch_size=16)
X = np.asarray(np.clip(LAW.sample(RNG, 24).reshape(24, *SHAPE) * 127.5 + 127.5, 0, 255).round(), np.uint8)
DATA = array_dataset("smooth", "test", X, None, 0)


change = functools.partial(dataclasses.replace, SETTINGS)


def task_of(**options):
    return build.task(Config().changed({f"task.{key}": value for key, value in options.items()}))


def performed(folder, settings=SETTINGS, path=None, model=MODEL, data=DATA, **options):
    """The arrays that a task writes, and its figures."""
    task = task_of(**options)
    used = tasks.check(model, task, settings, Devices.all())
    given = tasks.examples(model, task, used, path, lambda: data)
    where, figures = tasks.perform(model, None, task, used, given, folder, step=3, options=options)
    found = dict(np.load(where / "task.npz")) | {"x": np.load(where / "samples.npz")["x"]}
    return found, figures, where


def in_model(x):
    return x.astype(np.float64) / 127.5 - 1


# --- Inverse problems -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def superres(tmp_path_factory):
    return performed(tmp_path_factory.mktemp("superres"), name="superres", factor=2, noise=0.1)


@pytest.mark.slow
def test_results_are_draws_of_the_posterior(superres):
    found, _, _ = superres
    matrix = np.kron(
        np.kron(np.eye(2), np.full((1, 2), 0.5)), np.kron(np.kron(np.eye(2), np.full((1, 2), 0.5)), np.eye(3))
    )
    y = found["measured"].astype(np.float64).reshape(16, 12)
    # The measurements have their noise: 192 values, four standard errors.
    noise = y - in_model(X[:16]).reshape(16, 48) @ matrix.T
    assert np.std(noise) == pytest.approx(0.1, abs=4 * 0.1 / np.sqrt(2 * 192))
    posterior = [LAW.given(matrix, row, 0.1).moments() for row in y]
    x = in_model(found["x"]).reshape(16, 48)
    whitened = [
        np.linalg.solve(np.linalg.cholesky(cov), row - mean) for row, (mean, cov) in zip(x, posterior, strict=True)
    ]
    assert np.mean(np.square(whitened)) == pytest.approx(1, abs=4.5 * np.sqrt(2 / (16 * 48)))


def test_figures_compare_with_the_truth_and_with_what_was_given(superres):
    found, figures, folder = superres
    np.testing.assert_array_equal(found["truth"], X[:16])
    assert found["given"].shape == found["x"].shape == (16, *SHAPE)
    np.testing.assert_array_equal(found["index"], np.arange(16))
    for name, x in (("rmse", found["x"]), ("given_rmse", found["given"])):
        each = np.sqrt(np.square(x.astype(float) - X[:16]).mean(axis=(1, 2, 3)))
        assert figures[f"superres_{name}"] == pytest.approx(each.mean(), rel=1e-5)
        assert figures[f"superres_{name}_error"] == pytest.approx(each.std(ddof=1) / 4, rel=1e-4)
    blocks = in_model(found["x"]).reshape(16, 2, 2, 2, 2, 3).mean(axis=(2, 4))
    gap = np.sqrt(np.square(found["measured"] - blocks).mean(axis=(1, 2, 3)))
    assert figures["superres_misfit"] == pytest.approx(gap.mean(), rel=1e-2)
    psnr = 20 * np.log10(255 / np.sqrt(np.square(found["x"].astype(float) - X[:16]).mean(axis=(1, 2, 3))))
    assert figures["superres_psnr"] == pytest.approx(psnr.mean(), rel=1e-5)
    assert json.loads((folder / "figures.json").read_text()) == figures
    made = json.loads((folder / "sampling.json").read_text())
    assert (made["calls"], made["steps"], made["task"]["factor"]) == (17, 16, 2)
    assert folder.name == "step_3_sampler16_superres"
    files = ["figures.json", "grid.png", "samples.npz", "sampling.json", "task.npz"]
    assert sorted(p.name for p in folder.iterdir()) == files
    assert PIL.Image.open(folder / "grid.png").mode == "RGB"


@pytest.mark.slow
def test_a_result_does_not_depend_on_its_batch_and_a_measurement_can_be_the_input(superres, tmp_path):
    settings = dataclasses.replace(SETTINGS, indices="3,9,11", batch_size=8)
    few, _, _ = performed(tmp_path, settings, name="superres", factor=2, noise=0.1)
    np.testing.assert_array_equal(few["truth"], X[[3, 9, 11]])
    np.testing.assert_allclose(few["measured"], superres[0]["measured"][[3, 9, 11]], atol=1e-6)
    assert np.abs(few["x"].astype(int) - superres[0]["x"][[3, 9, 11]]).max() <= 1
    rounded = np.clip(superres[0]["measured"] * 127.5 + 127.5, 0, 255).round().astype(np.uint8)
    np.save(tmp_path / "low.npy", rounded)
    options = {"name": "superres", "factor": 2, "noise": 0.1, "measured": True}
    found, figures, _ = performed(tmp_path, path=str(tmp_path / "low.npy"), **options)
    assert set(figures) == {"superres_misfit", "superres_misfit_error"} and "truth" not in found
    # The noise of the draws is the same; the measurement moved by its rounding alone.
    assert np.abs(found["x"].astype(int) - superres[0]["x"]).max() <= 8


MASKS = {
    "left": np.arange(4) >= 2,
    "right": np.arange(4) < 2,
    "upper": (np.arange(4) >= 2)[:, None],
    "lower": (np.arange(4) < 2)[:, None],
    "box": ~((np.arange(4) % 3 > 0)[:, None] & (np.arange(4) % 3 > 0)),
}


@pytest.mark.parametrize("mask", MASKS)
def test_masks_hide_what_they_say(mask):
    known = task_of(name="inpaint", mask=mask).operator(SHAPE).known[0]
    np.testing.assert_array_equal(known, np.broadcast_to(np.broadcast_to(MASKS[mask], (4, 4))[..., None], SHAPE))


def test_masks_at_random_and_from_a_file(tmp_path):
    known = task_of(name="inpaint", mask="random", share=0.25).operator(SHAPE).known[0]
    assert known.sum() == 4 * 3 and (known == known[..., :1]).all()
    picture = np.zeros((4, 4), np.uint8)
    picture[1, 2] = 255
    PIL.Image.fromarray(picture).save(tmp_path / "mask.png")
    known = task_of(name="inpaint", mask=str(tmp_path / "mask.png")).operator(SHAPE).known[0]
    np.testing.assert_array_equal(known, np.broadcast_to(picture[..., None] > 0, SHAPE))
    vector = task_of(name="inpaint", mask="left").operator((4,)).known[0]
    np.testing.assert_array_equal(vector, [False, False, True, True])


@pytest.mark.parametrize(
    ("name", "shape"),
    [("inpaint", SHAPE), ("superres", (2, 2, 3)), ("deblur", SHAPE), ("colorize", (4, 4, 1)), ("compress", (12,))],
)
def test_every_inverse_problem_has_its_operator_and_its_defaults(name, shape):
    task = task_of(name=name)
    assert task.operator(SHAPE).measured_shape == shape
    assert (task.noise, task.method, task.measured) == (0.05, "moment_matching", False)
    assert task.steps is None and task.scale is None  # the method's own


def test_a_mask_is_known_by_its_pixels(tmp_path):
    task = task_of(name="inpaint", mask=str(tmp_path / "mask.png"))
    for rows in (1, 3):
        mask = np.zeros((4, 4), np.uint8)
        mask[:rows] = 255
        PIL.Image.fromarray(mask).save(tmp_path / "mask.png")
        (known,) = task.read(MODEL)
        np.testing.assert_array_equal(known[..., 0], mask > 0)
    assert task_of(name="superres").read(MODEL) == ()


# --- Edits and latents ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_each_device_has_its_part_of_the_batch(tmp_path):
    found = []

    class Spied(Exact):
        def eps_fn(self, params, **options):
            def eps_fn(u, t):
                jax.debug.inspect_array_sharding(
                    u, callback=lambda sharding: found.append(sharding.shard_shape(u.shape))
                )
                return LAW.eps_fn(self.sde, SHAPE)(u, t)

            return eps_fn

    model = Spied(**{field.name: getattr(MODEL, field.name) for field in dataclasses.fields(MODEL)})
    performed(tmp_path, model=model, name="edit")
    assert {shape[0] for shape in found} == {SETTINGS.batch_size // 8}


def test_an_edit_keeps_what_the_noise_leaves(tmp_path):
    settings = change(sampler=samplers.gaussian_fitted())  # stochastic: a draw of the posterior given x + sigma noise
    for sigma in (0.3, 5.0):
        figures = performed(tmp_path, settings, name="edit", start_noise=sigma)[1]
        assert figures["edit_change_rmse"] == pytest.approx(expected_change(sigma), rel=0.1)


def expected_change(sigma):
    """Root mean square of x' - x, where x' is drawn given x + sigma noise: twice the posterior's variance."""
    values = np.linalg.eigvalsh(LAW.covs[0])
    return 127.5 * np.sqrt(2 * np.mean(values * sigma**2 / (values + sigma**2)))


@pytest.mark.slow
def test_reconstructions_are_the_data_and_the_ends_of_interpolations(tmp_path):
    again, figures, _ = performed(tmp_path, name="reconstruct")
    assert figures["reconstruct_rmse"] < 2  # of 255, in 16 steps forwards and 16 backwards
    assert again["latent"].shape == (16, 4, 4, 2, 3)
    between, ends, folder = performed(tmp_path, name="interpolate", between=1)
    assert between["x"].shape == (24, *SHAPE)
    paths = between["x"].reshape(8, 3, *SHAPE).astype(int)
    assert np.abs(paths[:, 0] - again["x"][::2]).max() <= 1 and np.abs(paths[:, 2] - again["x"][1::2]).max() <= 1
    assert np.abs(paths[:, 1] - paths[:, 0]).mean() > 10
    assert ends["interpolate_end_rmse"] == pytest.approx(figures["reconstruct_rmse"], abs=0.2)
    np.testing.assert_allclose(between["latent"], again["latent"], atol=1e-5)
    assert folder.name == "step_3_sampler16_interpolate"


# --- Mistakes -------------------------------------------------------------------------------------------


def checked(settings=SETTINGS, model=MODEL, **options):
    return lambda: tasks.check(model, task_of(**options), settings, Devices.all())


def with_examples(path=None, settings=SETTINGS, model=MODEL, **options):
    task = task_of(**options)
    return lambda: tasks.examples(model, task, settings, path, lambda: DATA)


VECTORS = small.mlp()
WRONG = {
    "an option of another task": (
        lambda: task_of(name="inpaint", factor=2),
        "`task.factor` has no effect with task.name = 'inpaint': leave it unset",
    ),
    "an option of another method": (
        lambda: task_of(name="deblur", method="pigdm", steps=3),
        "`task.steps` is 3; it must be None for method = pigdm",
    ),
    "a share without a random mask": (
        lambda: task_of(name="inpaint", share=0.3),
        "`task.share` is 0.3; it must be None without mask = random",
    ),
    "an input to draw": (
        lambda: task_of(input="x.png"),
        "`task.input` is 'x.png'; it must be None to draw: choose --config.task.name",
    ),
    "a factor that does not divide": (
        checked(name="superres", factor=3),
        "`task.factor` is 3; it must be 2 or more and a divisor of 4, 4",
    ),
    "vectors": (
        checked(model=VECTORS, name="deblur"),
        "`task.name` does not fit data of shape (2,); they must be (*S, C) with axes S for deblurring, such as "
        "(H, W, C)",
    ),
    "rows of vectors": (
        checked(model=VECTORS, name="inpaint", mask="upper"),
        "`task.mask` is 'upper'; it must be box, left, right or random for data that are no pictures",
    ),
    "measured projections": (
        lambda: task_of(name="compress", measured=True),
        "`task.measured` is True; it must be False to compress: its measurements are not read from files",
    ),
    "no mask file": (
        checked(name="inpaint", mask="lowr"),
        "`task.mask` is 'lowr'; it must be box, left, right, upper, lower, random, or a picture file, white where "
        "known",
    ),
    "noise below the end": (
        checked(name="edit", start_noise=0.001),
        "`task.start_noise` is 0.001; it must be between 0.002 and 80, the noise at T",
    ),
    "PNG files of points": (
        checked(change(save_pngs=True), model=small.mlp(), name="inpaint"),
        "`sampling.save_pngs` is True; it must be False for data that are not pictures",
    ),
    "measured arrays": (
        checked(
            model=dataclasses.replace(MODEL, statistics=Statistics(kind="array", mean=(0.0,) * 3, std=(1.0,) * 3)),
            name="colorize",
            measured=True,
        ),
        "`task.measured` is True; it must be False to colorize arrays, whose channels are standardized one by one",
    ),
    "a stochastic sampler": (
        checked(change(sampler=samplers.SAMPLERS["ancestral"](), name="ancestral"), name="reconstruct"),
        "`sampling.name` is 'ancestral'; it must be gaussian_fitted, ddim, dpmpp_2m, dpmpp_3m, unipc, heun or "
        "probability_flow: a latent needs one without noise",
    ),
    "an odd batch": (
        checked(change(batch_size=12), name="deblur"),
        "`sampling.batch_size` is 12; it must be a multiple of 8 (8 devices): the nearest are 8 and 16",
    ),
    "examples that are not there": (
        with_examples(settings=change(indices="23:25"), name="edit"),
        "`sampling.indices` is '23:25'; it must be below 24, the size of the test split",
    ),
    "half a pair": (
        with_examples(settings=change(num_samples=1), name="interpolate"),
        "`sampling.num_samples` is 1; it must be 2 or more for this task",
    ),
    "measured test data": (
        with_examples(name="superres", measured=True),
        "`task.measured` is True; it must be False without a task.input: the test split is not measured yet",
    ),
    "a label without classes": (
        with_examples(settings=change(label=1), name="edit"),
        "`sampling.label` is 1; it must be None for a model without classes",
    ),
    "no file": (
        with_examples("nowhere.png", name="edit"),
        "`task.input` is 'nowhere.png'; it must be a file that exists",
    ),
}


@pytest.mark.parametrize(("act", "message"), WRONG.values(), ids=WRONG)
@pytest.mark.eight_devices
def test_what_does_not_fit_is_named(act, message):
    with pytest.raises(UserError) as caught:
        act()
    assert str(caught.value) == message


def test_guidance_of_examples_from_a_file_needs_a_label(tmp_path):
    np.save(tmp_path / "x.npy", X)
    classes = dataclasses.replace(MODEL, network=MODEL.network.clone(num_classes=3), label_dropout=0.1)

    def examples(**changes):
        return with_examples(str(tmp_path / "x.npy"), change(guidance=2.0, **changes), classes, name="edit")()

    with pytest.raises(UserError) as caught:
        examples()
    want = "`sampling.guidance` is 2.0; it must be None without a condition to guide to: give a label"
    assert str(caught.value) == want
    assert set(examples(label=1).condition.label) == {1}
