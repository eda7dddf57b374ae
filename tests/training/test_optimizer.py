import math

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from training import small

from hold_jax.errors import UserError
from hold_jax.training.optimizer import adam, halflife_decay, learning_rate_schedule, update_ema

RATE = 0.3


@pytest.mark.parametrize("warmup", [0, 1, 4])
@pytest.mark.parametrize("kind", ["constant", "cosine"])
def test_learning_rate_at_every_step(warmup, kind):
    schedule = learning_rate_schedule(learning_rate=RATE, warmup_steps=warmup, schedule=kind, num_steps=20)
    for k in range(21):
        if k < warmup:
            want = RATE * (k + 1) / warmup
        elif kind == "constant":
            want = RATE
        else:
            want = RATE * (1 + math.cos(math.pi * (k - warmup) / (20 - warmup))) / 2
        assert float(schedule(jnp.int32(k))) == pytest.approx(want, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_a_ramp_in_images_is_edm_s(batch_size):
    schedule = learning_rate_schedule(
        learning_rate=RATE,
        warmup_steps=5000,
        schedule="constant",
        num_steps=20,
        warmup_images=10,
        batch_size=batch_size,
    )
    for k in range(21):
        assert float(schedule(jnp.int32(k))) == pytest.approx(RATE * min(k * batch_size / 10, 1), rel=1e-6)


@pytest.mark.parametrize(("clip_norm", "weight_decay"), [(0.0, 0.0), (0.5, 0.0), (0.5, 0.1)])
def test_adam_is_the_published_one(clip_norm, weight_decay):
    b1, b2, eps, rate = 0.8, 0.9, 1e-3, 0.1
    rng = np.random.default_rng(0)
    x = {"a": rng.standard_normal(3), "b": rng.standard_normal((2, 2))}
    params = {k: jnp.asarray(v, jnp.float32) for k, v in x.items()}
    transformation = small.optimizer(rate, b1=b1, b2=b2, eps=eps, clip_norm=clip_norm, weight_decay=weight_decay)
    state = transformation.init(params)
    m, v = ({k: 0.0 * a for k, a in x.items()} for _ in range(2))
    for step in range(1, 4):
        gradient = {k: rng.standard_normal(a.shape) for k, a in x.items()}
        updates, state = transformation.update({k: jnp.float32(g) for k, g in gradient.items()}, state, params)
        params = optax.apply_updates(params, updates)
        norm = math.sqrt(sum((g**2).sum() for g in gradient.values()))
        scale = min(1.0, clip_norm / norm) if clip_norm else 1.0
        for k, g in gradient.items():
            g = scale * g
            m[k], v[k] = b1 * m[k] + (1 - b1) * g, b2 * v[k] + (1 - b2) * g**2
            direction = (m[k] / (1 - b1**step)) / (np.sqrt(v[k] / (1 - b2**step)) + eps)
            x[k] = x[k] - rate * (direction + weight_decay * x[k])
            np.testing.assert_allclose(params[k], x[k], rtol=2e-5, atol=1e-6)


def test_what_has_no_gradient_does_not_decay():
    """Fourier frequencies stay as they were drawn, packed beside a weight or alone."""
    transformation = adam(0.1, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.5, clip_norm=0.0)
    params = {"frequencies": jnp.arange(1.0, 4.0), "packed": jnp.arange(1.0, 5.0)}
    gradient = {"frequencies": jnp.zeros(3), "packed": jnp.array([1.0, 0.0, -1.0, 0.0])}
    state, now = transformation.init(params), params
    for _ in range(3):
        updates, state = transformation.update(gradient, state, now)
        now = optax.apply_updates(now, updates)
    np.testing.assert_array_equal(now["frequencies"], params["frequencies"])
    np.testing.assert_array_equal(now["packed"][1::2], params["packed"][1::2])
    assert float(now["packed"][0]) < 1 - 3 * 0.1  # Adam's three steps, and the decay


@pytest.mark.parametrize("decay", [0.0, 0.4, 0.9999])
def test_ema_remembers_longer_as_the_run_goes_on(decay):
    rng = np.random.default_rng(0)
    want = rng.standard_normal(5)
    ema = {"w": jnp.float32(want)}
    for step in range(12):
        new = rng.standard_normal(5)
        rate = min(decay, (1 + step) / (10 + step))
        want = rate * want + (1 - rate) * new
        ema = update_ema(ema, {"w": jnp.float32(new)}, jnp.int32(step), decay)
        np.testing.assert_allclose(ema["w"], want, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 8, 100])
def test_after_a_half_life_in_images_half_of_the_weight_is_left(batch_size):
    decay = halflife_decay(800, 0, batch_size)
    ema = jnp.float32(1.0)
    for step in range(800 // batch_size):
        ema = update_ema(ema, jnp.float32(0.0), np.int32(step), lambda k: np.asarray(decay(k)))
    assert float(ema) == pytest.approx(0.5, rel=1e-4)


def test_the_half_life_grows_with_the_images_seen():
    # EDM's loop, in its own terms, at its own numbers: batches of 512, half a million images, 5 %.
    decay = halflife_decay(500_000, 0.05, 512)
    for step in (0, 1, 100, 19_531, 19_532, 390_624):
        halflife = max(min(500_000, step * 512 * 0.05), 1e-8)
        assert float(decay(jnp.int32(step))) == pytest.approx(0.5 ** (512 / halflife), rel=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 0.0}, "`learning_rate` is 0.0; it must be positive"),
        ({"warmup_steps": -1}, "`warmup_steps` is -1; it must be 0 or more"),
        ({"schedule": "cosin"}, "`schedule` is 'cosin' (did you mean 'cosine'?); it must be one of: constant, cosine"),
        ({"schedule": "cosine", "warmup_steps": 9}, "`warmup_steps` is 9; it must be below num_steps = 9"),
        (
            {"schedule": "cosine", "warmup_images": 9},
            "`warmup_images / batch_size` is 9; it must be below num_steps = 9",
        ),
    ],
)
def test_bad_schedules_are_named(change, message):
    with pytest.raises(UserError) as caught:
        learning_rate_schedule(**dict(learning_rate=1.0, warmup_steps=0, schedule="constant", num_steps=9) | change)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"b1": 1.0}, r"`b1` is 1.0; it must be in \(0, 1\)"),
        ({"b2": -0.1}, "`b2` is -0.1"),
        ({"eps": 0.0}, "`eps` is 0.0"),
        ({"clip_norm": -1.0}, "`clip_norm` is -1.0; it must be 0 or more"),
        ({"weight_decay": -1.0}, "`weight_decay` is -1.0; it must be 0 or more"),
    ],
)
def test_bad_options_of_adam_are_named(change, message):
    with pytest.raises(UserError, match=message):
        small.optimizer(**change)
