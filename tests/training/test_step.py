import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from training import small
from training.small import quick_compilation  # noqa: F401

from hold_jax.data import Statistics
from hold_jax.training.step import make_train_step, mean_loss

STEPS, BATCH = 3, 16
MODEL, LEAN = small.mlp(order=3, full=True), small.mlp()
# Without clipping a gradient that is too large shows in the optimizer's moments.
OPTIMIZER = small.optimizer(clip_norm=0.0)


def batches(steps=STEPS, batch_size=BATCH):
    return small.host_batches(small.points(), batch_size, steps)


def take_steps(count, loss=small.FULL_LOSS, steps_per_call=1):
    """States after every call and all metrics, on `count` devices; the compiled step and the donated states."""
    devices = small.devices(count)
    step = jax.jit(
        make_train_step(MODEL, loss, OPTIMIZER, ema_decay=0.5, steps_per_call=steps_per_call),
        donate_argnums=0,
        out_shardings=devices.replicated,
    )
    state = devices.init(functools.partial(small.init_state, MODEL, OPTIMIZER, 0))
    states, metrics, donated, compiled_in = [small.to_host(state)], [], [], []
    host = batches()
    for start in range(0, STEPS, steps_per_call):
        if steps_per_call == 1:
            batch = devices.put(host[start])
        else:
            group = host[start : start + steps_per_call]
            batch = devices.put({name: np.stack([b[name] for b in group]) for name in group[0]}, axis=1)
        # A copy: JAX does not donate what NumPy arrays, here those of `to_host`, may share memory with.
        donated.append(jax.device_put(state, devices.replicated, may_alias=False))
        with small.compilations() as found:
            state, values = step(donated[-1], batch)
        compiled_in.append(len(found))
        states.append(small.to_host(state))
        metrics.append(small.to_host(values))
    return {
        "states": states,
        "metrics": {name: np.concatenate([m[name] for m in metrics]) for name in metrics[0]},
        "compiled_in": compiled_in,
        "donated": donated,
        "state": state,
    }


@pytest.fixture(scope="module")
def on_eight():
    traces = []

    def counted(*args, **options):
        traces.append(None)
        return small.FULL_LOSS(*args, **options)

    return take_steps(8, counted) | {"traces": traces}


@pytest.mark.slow
def test_one_device_gives_the_numbers_of_eight(on_eight):
    on_one = take_steps(1)
    for name in ("loss", "grad_norm", "param_norm"):
        np.testing.assert_allclose(on_one["metrics"][name], on_eight["metrics"][name], rtol=3e-6)
    # The first update shows the gradient itself: mu = (1 - b1) g, nu = (1 - b2) g^2.
    assert small.largest_error(on_one["states"][1].opt_state, on_eight["states"][1].opt_state) < 3e-6
    for one, eight in zip(on_one["states"], on_eight["states"], strict=True):
        assert small.largest_error(one, eight) < 2e-5


@pytest.mark.eight_devices
def test_batch_is_spread_and_state_is_copied(on_eight):
    devices = small.devices(8)
    batch = devices.put(batches(1)[0])
    assert {s.data.shape for s in batch["x"].addressable_shards} == {(BATCH // 8, 2)}
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(on_eight["state"]))


def test_one_trace_and_one_compilation(on_eight):
    assert len(on_eight["traces"]) == 1
    assert on_eight["compiled_in"] == [1] + [0] * (STEPS - 1)


def test_donated_states_are_gone(on_eight):
    for old in on_eight["donated"]:
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(on_eight["state"]))


@pytest.mark.slow
def test_several_steps_a_call_are_the_same_steps_bitwise():
    """Compiled as users do: without most optimizations jaxlib 0.11 rounds the two programs differently."""
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        single, scanned = take_steps(8), take_steps(8, steps_per_call=STEPS)
    finally:
        jax.config.update("jax_disable_most_optimizations", True)
    small.assert_bitwise(scanned["states"][-1], single["states"][-1])
    small.assert_bitwise(scanned["metrics"], single["metrics"])


def test_step_counts_and_key_stays(on_eight):
    assert [int(s.step) for s in on_eight["states"]] == list(range(STEPS + 1))
    assert len({s.key.tobytes() for s in on_eight["states"]}) == 1


def test_ema_follows_its_formula(on_eight):
    states = on_eight["states"]
    for k in range(STEPS):
        rate = min(0.5, (1 + k) / (10 + k))
        want = jax.tree.map(
            lambda ema, new, rate=rate: rate * ema.astype(np.float64) + (1 - rate) * new.astype(np.float64),
            states[k].ema,
            states[k + 1].params,
        )
        assert small.largest_error(states[k + 1].ema, want) < 1e-6
    assert small.largest_error(states[-1].ema, states[-1].params) > 1e-3


@pytest.mark.slow
def test_accumulation_is_the_mean_over_the_parts():
    devices, parts = small.devices(8), 4
    transformation = optax.sgd(1.0)
    start = small.fresh_state(LEAN, transformation)
    batch = batches(1, 8 * parts)[0]
    step = jax.jit(make_train_step(LEAN, small.LOSS, transformation, ema_decay=0.0, accumulation_steps=parts))
    state, metrics = step(jax.device_put(start, devices.replicated), devices.put(batch))

    key = jax.random.fold_in(start.key, 0)
    part_of = jax.jit(jax.value_and_grad(functools.partial(mean_loss, LEAN, small.LOSS, train=True)))
    # Part j is every fourth example from the j-th.
    each = [
        part_of(start.params, {n: jnp.asarray(a[j::parts]) for n, a in batch.items()}, jax.random.fold_in(key, j))
        for j in range(parts)
    ]
    value, gradient = jax.tree.map(lambda *a: np.mean(np.stack(a).astype(np.float64), axis=0), *each)
    np.testing.assert_allclose(metrics["loss"][0], value, rtol=3e-6)
    np.testing.assert_allclose(metrics["grad_norm"][0], optax.global_norm(gradient), rtol=3e-6)
    moved = jax.tree.map(lambda a, b: np.asarray(a, np.float64) - np.asarray(b, np.float64), start.params, state.params)
    for got, want in zip(jax.tree.leaves(moved), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-6)


def test_every_step_has_keys_of_its_own():
    def loss(sde, eps_fn, x, key, **_):
        del sde, eps_fn
        return jax.random.uniform(key, x.shape[:1])

    transformation = optax.sgd(0.0)
    step = jax.jit(make_train_step(LEAN, loss, transformation, ema_decay=0.0))
    start = state = small.fresh_state(LEAN, transformation)
    batch = jax.tree.map(jnp.asarray, batches(1)[0])
    found = []
    for _ in range(3):
        state, metrics = step(state, batch)
        found.append(float(metrics["loss"][0]))
    assert len(set(found)) == 3
    for k, value in enumerate(found):
        key_loss, _ = jax.random.split(jax.random.fold_in(start.key, k))
        np.testing.assert_allclose(value, jax.random.uniform(key_loss, (BATCH,)).mean() / 2, rtol=1e-6)


@pytest.mark.slow
def test_dropout_acts_in_training_alone():
    model = small.unet(dropout=0.5)
    params = jax.jit(model.init)(jax.random.key(0))
    batch = {"x": jnp.zeros((4, 8, 8, 1), jnp.uint8), "label": jnp.zeros(4, jnp.int32)}

    def loss(sde, eps_fn, x, key, **_):
        del x, key  # nothing but dropout is random
        u = jnp.ones((4, 8, 8, 2, 1))
        return jnp.sum(jnp.square(eps_fn(u, jnp.float32(sde.T / 2))), axis=(1, 2, 3, 4))

    values = {}
    for train in (True, False):
        of_key = jax.jit(functools.partial(mean_loss, model, loss, train=train))
        values[train] = [float(of_key(params, batch, jax.random.key(i))) for i in (0, 1, 0)]
    assert values[True][0] != values[True][1] and values[True][0] == values[True][2]
    assert len(set(values[False])) == 1


CLASSES = {rate: small.mlp(num_classes=8, label_dropout=rate) for rate in (0.0, 0.5)}


@pytest.mark.slow
def test_the_null_class_learns_where_labels_are_dropped():
    batch = jax.tree.map(jnp.asarray, batches(1)[0])
    seen = np.unique(batch["label"])
    rows = {}
    for rate, model in CLASSES.items():
        params = jax.jit(model.init)(jax.random.key(0))
        gradient = jax.jit(jax.grad(functools.partial(mean_loss, model, small.LOSS, train=True)))
        table = np.asarray(gradient(params, batch, jax.random.key(1))["embedding"]["labels"]["embedding"])
        rows[rate] = {i for i in range(9) if np.abs(table[i]).max() > 0}
    assert rows[0.0] == set(seen.tolist())
    assert 8 in rows[0.5] and rows[0.5] - {8} < rows[0.0]  # some classes were dropped wherever they stood


def test_labels_are_dropped_in_training_alone_and_anew_at_every_step():
    def loss(sde, eps_fn, x, key, **_):
        del x, key  # nothing but the labels is random
        return jnp.sum(jnp.square(eps_fn(jnp.ones((BATCH, 2, 2)), jnp.float32(sde.T / 2))), axis=(1, 2))

    batch = jax.tree.map(jnp.asarray, batches(1)[0])
    for rate, model in CLASSES.items():
        params = jax.jit(model.init)(jax.random.key(0))
        values = {}
        for train in (True, False):
            of_key = jax.jit(functools.partial(mean_loss, model, loss, train=train))
            values[train] = [float(of_key(params, batch, jax.random.key(i))) for i in (0, 1, 0)]
        assert len(set(values[False])) == 1 and values[True][0] == values[True][2]
        assert (values[True][0] != values[True][1]) == (rate > 0)


@pytest.mark.slow
def test_dropped_labels_do_not_depend_on_the_number_of_devices():
    model = CLASSES[0.5]
    params = jax.jit(model.init)(jax.random.key(0))
    of = jax.jit(functools.partial(mean_loss, model, small.LOSS, train=True))
    values = []
    for count in (1, 8):
        devices = small.devices(count)
        batch = devices.put(batches(1)[0])
        values.append(float(of(jax.device_put(params, devices.replicated), batch, jax.random.key(1))))
    other = float(of(params, jax.tree.map(jnp.asarray, batches(1)[0]), jax.random.key(2)))
    np.testing.assert_allclose(values[1], values[0], rtol=3e-6)
    assert abs(other - values[0]) > 1e-3


@pytest.mark.slow
def test_step_composes_with_vmap_and_pmap():
    step = make_train_step(LEAN, small.LOSS, OPTIMIZER, ema_decay=0.5)
    states = jax.jit(jax.vmap(functools.partial(small.init_state, LEAN, OPTIMIZER)))(jnp.arange(8))
    host = batches(8)
    batch = {name: np.stack([b[name] for b in host]) for name in host[0]}
    by_vmap = jax.jit(jax.vmap(step))(states, batch)
    by_pmap = jax.pmap(step)(states, batch)
    alone = jax.jit(step)(jax.tree.map(lambda a: a[5], states), host[5])
    assert small.largest_error(by_vmap, by_pmap) < 2e-5
    assert small.largest_error(jax.tree.map(lambda a: a[5], by_pmap), alone) < 2e-5


@pytest.mark.slow
@pytest.mark.parametrize("steps_per_call", [1, 3])
def test_a_step_that_is_not_finite_counts_and_changes_nothing_else(steps_per_call):
    good = batches(3)
    poisoned = [good[0], good[1] | {"x": np.full_like(good[1]["x"], np.nan)}, good[2]]

    def run(given):
        step = jax.jit(make_train_step(MODEL, small.LOSS, OPTIMIZER, ema_decay=0.5, steps_per_call=steps_per_call))
        state, found = small.fresh_state(MODEL, OPTIMIZER), []
        for i in range(0, 3, steps_per_call):
            part = given[i : i + steps_per_call]
            batch = part[0] if steps_per_call == 1 else jax.tree.map(lambda *a: np.stack(a), *part)
            state, metrics = step(state, batch)
            found += np.asarray(metrics["loss"]).tolist()
        return state, found

    state, losses = run(poisoned)
    assert int(state.step) == 3 and np.isnan(losses[1]) and np.isfinite([losses[0], losses[2]]).all()
    # The same with the second step left out: the third has its own number, noise and batch, and so it has here.
    step = jax.jit(make_train_step(MODEL, small.LOSS, OPTIMIZER, ema_decay=0.5))
    first, _ = step(small.fresh_state(MODEL, OPTIMIZER), good[0])
    third, metrics = step(first.replace(step=first.step + 1), good[2])
    assert float(metrics["loss"][0]) == pytest.approx(losses[2], rel=1e-6)
    assert small.largest_error(state, third) < 1e-6
    assert small.largest_error(first.params, third.params) > 1e-4


@pytest.mark.slow
def test_bfloat16_gradients_are_the_float32_ones_rounded_before_the_sum():
    model = small.unet(dtype=jnp.bfloat16)
    network = model.network.clone(channels=64)  # its 3x3 kernels between features are large
    model = dataclasses.replace(model, network=network)
    params = jax.eval_shape(model.init, jax.random.key(0))
    batch = {"x": jax.ShapeDtypeStruct((4, 8, 8, 1), jnp.uint8), "label": jax.ShapeDtypeStruct((4,), jnp.int32)}
    seen = {}

    def keep(gradient):
        seen["types"] = {
            jax.tree_util.keystr(path): str(leaf.dtype) for path, leaf in jax.tree.leaves_with_path(gradient)
        }
        return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), gradient)

    state = jax.eval_shape(functools.partial(small.init_state, model, OPTIMIZER, 0))
    for dtype in ("float32", "bfloat16"):
        step = make_train_step(model, small.LOSS, OPTIMIZER, ema_decay=0.5, gradient_dtype=dtype, collect=keep)
        jax.eval_shape(step, state, batch)
        rounded = {name for name, kind in seen["types"].items() if kind == "bfloat16"}
        if dtype == "float32":
            assert set(seen["types"].values()) == {"float32"}
        else:
            shapes = {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree.leaves_with_path(params)}
            ends = ("conv_in", "head")
            inner = {name for name, shape in shapes.items() if shape[:2] == (3, 3)}
            assert rounded == {name for name in inner if not any(end in name for end in ends)}


def test_gradients_between_devices_may_be_bfloat16_for_data_of_many_channels():
    statistics = Statistics(mean=(0.0,) * 32, std=(1.0,) * 32, kind="array")
    model = small.unet(dtype=jnp.bfloat16)
    network = model.network.clone(channels=64, out_channels=32)
    model = dataclasses.replace(model, network=network, data_shape=(8, 8, 32), statistics=statistics)
    batch = {"x": jax.ShapeDtypeStruct((4, 8, 8, 32), jnp.float32), "label": jax.ShapeDtypeStruct((4,), jnp.int32)}
    state = jax.eval_shape(functools.partial(small.init_state, model, OPTIMIZER, 0))
    step = make_train_step(model, small.LOSS, OPTIMIZER, ema_decay=0.5, gradient_dtype="bfloat16")
    jax.eval_shape(step, state, batch)


class _Labels(nn.Module):
    """A network that puts out a linear function of the augmentation's labels."""

    num_classes: int = 0

    @nn.compact
    def __call__(self, x, noise_cond, condition, train=False):
        seen = None if condition is None else condition.augmentation
        weights = self.param("weights", nn.initializers.ones, (9,))
        zeros = jnp.zeros_like(x[..., :1])
        return zeros if seen is None else zeros + (seen @ weights)[:, None, None, None]


def test_labels_of_the_augmentation_reach_the_network_in_training_alone():
    model = dataclasses.replace(small.unet(), network=_Labels(), augment=1e-9)  # half are mirrored, and no more
    params = {"weights": jnp.ones((9,))}
    half = np.random.default_rng(0).integers(0, 256, (BATCH, 8, 4, 1), dtype=np.uint8)
    batch = {"x": np.concatenate([half, half[:, :, ::-1]], axis=2)}  # which mirroring leaves as they are

    def size(sde, eps_fn, x, key, *, sigma_data):
        return jnp.square(eps_fn(jnp.stack([x, x], axis=-2), jnp.ones(len(x)))).sum(axis=(1, 2, 3, 4))

    def gradient(train):
        of = lambda p: mean_loss(model, size, p, batch, jax.random.key(0), train=train)  # noqa: E731
        return np.asarray(jax.jit(jax.grad(of))(params)["weights"])

    found = gradient(train=True)
    # The square of the label of mirroring, for about half of the pictures.
    assert 2 * 0.2 < found[0] < 2 * 0.8
    np.testing.assert_array_equal(found[1:], 0)
    np.testing.assert_array_equal(gradient(train=False), 0)
