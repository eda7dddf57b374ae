"""Bits per dimension of every example once, as direct calls give them, whatever was done before."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training import small
from training.small import quick_compilation  # noqa: F401

from hold_jax import likelihood
from hold_jax.data.dataset import Statistics, array_dataset
from hold_jax.errors import UserError
from hold_jax.loops import likelihood as nll
from hold_jax.loops.likelihood import LikelihoodSettings
from hold_jax.numerics import ode
from hold_jax.runtime.resumable import PartialRows

TEST = small.points(20, "test")  # a ragged tail: 8 + 8 + 4
MODEL = small.mlp(full=True, hidden_layers=1, init_scale=0.1)
EIGHT = small.devices(8)
SETTINGS = LikelihoodSettings(
    num_examples=None,
    batch_size=8,
    probes=1,
    repeats=2,
    importance_weighted=False,
    auxiliary="posterior",
    solver=ode.Solver(rtol=1e-5, atol=1e-5),
    t_min=None,
    seed=3,
)


@pytest.fixture(scope="module")
def params():
    return jax.jit(MODEL.init)(jax.random.key(0))


def run(folder, params, *, model=MODEL, test=TEST, num=20, devices=EIGHT, tick=lambda done: None, **changes):
    nll._compiled.cache_clear()  # the likelihood itself is replaced in some tests
    rows = PartialRows(folder, num)
    settings = dataclasses.replace(SETTINGS, **changes)
    return nll.evaluate_likelihood(model, params, test, settings, devices, rows, tick=tick), rows.array()


@pytest.mark.slow
def test_each_example_has_what_a_direct_call_gives_it(params, tmp_path):
    _, rows = run(tmp_path, params)

    @jax.jit
    def alone(x, index):
        eps_fn = MODEL.eps_fn(params)
        options = dict(probes=1, repeats=2, solver=SETTINGS.solver)
        return likelihood.bits_per_dim(MODEL.sde, eps_fn, x, key=jax.random.key(3), index=index, **options).bpd[0]

    def directly(shift):
        return np.array([alone(TEST.source[i : i + 1], np.array([i + shift], np.int32)) for i in range(20)])

    # A batch shares the steps of the solver, so up to its tolerance; another number is another draw.
    np.testing.assert_allclose(rows[:, 0], directly(0), atol=1e-3)
    assert np.median(np.abs(rows[:, 0] - directly(1))) > 0.1
    np.testing.assert_array_equal((2 * rows[:, 1] - 2) % 6, 0)  # of two draws, six a step and one at the start


@pytest.fixture
def asked(monkeypatch):
    """What the likelihood was asked for; in its place is a number that tells an example's draws and values."""
    found = []

    def of(m, eps_fn, x, *, key, index, **options):
        del eps_fn
        found.append(options | {"x": (x.shape, x.dtype)})
        draw = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i)))(index)
        bpd = draw + jnp.mean(x.reshape(len(x), -1), axis=1)
        return likelihood.Likelihood(bpd, jnp.int32(7 * options["repeats"]), m.order > 1)

    monkeypatch.setattr(likelihood, "bits_per_dim", of)
    return found


def expected(x, seed=3):
    draw = [float(jax.random.uniform(jax.random.fold_in(jax.random.key(seed), i))) for i in range(len(x))]
    return np.array(draw) + x.reshape(len(x), -1).astype(np.float64).mean(axis=1)


@pytest.mark.parametrize(("batch_size", "count"), [(8, 8), (16, 8), (32, 8), (7, 1), (1, 1)])
def test_every_example_counts_once_whatever_fills_the_last_batch(params, tmp_path, asked, batch_size, count):
    found, rows = run(tmp_path, params, batch_size=batch_size, devices=small.devices(count))
    want = expected(TEST.source)
    np.testing.assert_allclose(rows[:, 0], want, atol=1e-6)
    assert found == {
        "bits_per_dim": pytest.approx(want.mean(), abs=1e-6),
        "bits_per_dim_error": pytest.approx(np.sqrt(np.sum((want - want.mean()) ** 2) / 19 / 20), rel=1e-5),
        "bits_per_dim_is_bound": 1.0,
        "likelihood_nfe": 7.0,
        "likelihood_examples": 20,
    }
    assert len(asked) == 1  # one trace


def test_options_arrive_and_vectors_have_no_bins(params, tmp_path, asked):
    changes = dict(probes=3, repeats=5, importance_weighted=True, auxiliary="initial", t_min=0.1, seed=4)
    _, rows = run(tmp_path, params, **changes)
    seed = changes.pop("seed")
    assert asked == [changes | {"bin_width": None, "solver": SETTINGS.solver, "x": ((8, 2), jnp.float32)}]
    np.testing.assert_allclose(rows[:, 0], expected(TEST.source, seed), atol=1e-6)


def test_pictures_lie_on_a_lattice_of_eight_bits_in_the_models_range(params, tmp_path, asked):
    x = np.random.default_rng(0).integers(0, 256, (20, 2, 2, 1), dtype=np.uint8)
    model = dataclasses.replace(MODEL, data_shape=(2, 2, 1))
    _, rows = run(tmp_path, params, model=model, test=array_dataset("pictures", "test", x, None, 0))
    assert asked[0]["bin_width"] == (2 / 255,) and asked[0]["x"] == ((8, 2, 2, 1), jnp.float32)
    np.testing.assert_allclose(rows[:, 0], expected(x / 127.5 - 1), atol=1e-6)


def test_vectors_that_are_standardized_have_the_bits_of_their_own_units(params, tmp_path, asked):
    """Twice as wide a law has a density of half, one bit more for each dimension."""
    statistics = Statistics(mean=(1000.0, -3.0), std=(2.0, 2.0))
    test = dataclasses.replace(TEST, source=(2 * TEST.source + (1000, -3)).astype(np.float32))
    _, rows = run(tmp_path, params, model=dataclasses.replace(MODEL, statistics=statistics), test=test)
    np.testing.assert_allclose(rows[:, 0], expected(TEST.source) + 1, atol=1e-4)


def test_integers_have_bits_of_the_lattice_whatever_their_units(params, tmp_path, asked):
    """Standardized values lie on a lattice of spacing sigma_data / std in each coordinate."""
    statistics = Statistics(mean=(1000.0, -3.0), std=(2.0, 8.0), integers=True)
    x = np.round(50 * TEST.source)
    model = dataclasses.replace(MODEL, statistics=statistics, sigma_data=0.5)
    _, rows = run(tmp_path, params, model=model, test=dataclasses.replace(TEST, source=x, integers=True))
    assert asked[0]["bin_width"] == (0.25, 0.0625)
    np.testing.assert_allclose(rows[:, 0], expected(0.5 * (x - (1000, -3)) / (2, 8)), rtol=1e-5)


def test_a_value_of_the_first_order_is_no_bound(params, tmp_path, asked):
    assert run(tmp_path, params, model=small.mlp(order=1))[0]["bits_per_dim_is_bound"] == 0.0


def test_labels_reach_the_network(tmp_path, monkeypatch):
    model = small.mlp(num_classes=8)
    params = jax.jit(model.init)(jax.random.key(0))
    u, t = jnp.ones((20, 2, 2)), jnp.float32(1.0)

    def of(m, eps_fn, x, *, index, **options):
        return likelihood.Likelihood(eps_fn(u[: len(x)], t)[:, 0, 0], jnp.int32(1), True)

    monkeypatch.setattr(likelihood, "bits_per_dim", of)
    _, rows = run(tmp_path, params, model=model)
    want = jax.jit(lambda params: model.eps_fn(params, condition={"label": jnp.asarray(TEST.labels)})(u, t)[:, 0, 0])(
        params
    )
    np.testing.assert_allclose(rows[:, 0], want, atol=1e-5)
    assert len(np.unique(TEST.labels)) > 3 and np.ptp(want) > 1e-3


def test_what_was_computed_is_not_computed_again(params, tmp_path, asked):
    done = []
    whole, rows = run(tmp_path / "a", params, tick=done.append)
    assert done == [0, 8, 16, 20]
    folder = tmp_path / "b"
    run(folder, params)
    (folder / "000000016-000000020.npy").unlink()
    (folder / "000000008-000000016.npy").unlink()
    done.clear()
    again, resumed = run(folder, params, tick=done.append)
    assert done == [8, 16, 20]
    assert again == whole and resumed.tobytes() == rows.tobytes()
    asked.clear(), done.clear()
    again, resumed = run(folder, params, tick=done.append)
    assert (asked, done) == ([], [20])
    assert again == whole and resumed.tobytes() == rows.tobytes()


def test_fewer_examples_are_the_first_and_more_go_on_from_them(params, tmp_path, asked):
    want = expected(TEST.source)
    found, rows = run(tmp_path, params, num=11)
    np.testing.assert_allclose(rows[:, 0], want[:11], atol=1e-6)
    assert found["likelihood_examples"] == 11
    assert found["bits_per_dim"] == pytest.approx(want[:11].mean(), abs=1e-6)
    done = []
    found, rows = run(tmp_path, params, tick=done.append)
    assert done == [11, 19, 20] and found["likelihood_examples"] == 20
    np.testing.assert_allclose(rows[:, 0], want, atol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_stops_it_and_what_came_before_is_kept(params, tmp_path, monkeypatch, value):
    def of(m, eps_fn, x, *, index, **options):
        return likelihood.Likelihood(jnp.where(index == 9, value, 1.0), jnp.int32(1), True)

    monkeypatch.setattr(likelihood, "bits_per_dim", of)
    with pytest.raises(
        UserError, match="the likelihood is NaN: either the network's output is NaN, or the solver made"
    ):
        run(tmp_path, params)
    assert PartialRows(tmp_path, 20).count == 8


@pytest.mark.eight_devices
def test_a_batch_that_does_not_divide_is_refused(params, tmp_path, asked):
    with pytest.raises(UserError, match=r"`likelihood.batch_size` is 12; .* the nearest are 8 and 16"):
        run(tmp_path, params, batch_size=12)
    assert not asked


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_examples": 1}, "`likelihood.num_examples` is 1; it must be None, or 2 or more"),
        ({"num_examples": -3}, "`likelihood.num_examples` is -3"),
        ({"batch_size": 0}, "`likelihood.batch_size` is 0; it must be 1 or more"),
        ({"probes": -1}, "`likelihood.probes` is -1; it must be 0 or more"),
        ({"repeats": 0}, "`likelihood.repeats` is 0; it must be 1 or more"),
        ({"auxiliary": "postrior"}, "`likelihood.auxiliary` is 'postrior' (did you mean 'posterior'?)"),
    ],
)
def test_bad_settings_are_named(changes, message):
    with pytest.raises(UserError) as caught:
        dataclasses.replace(SETTINGS, **changes)
    assert str(caught.value).startswith(message)
