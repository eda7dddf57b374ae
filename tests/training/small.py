"""Small models, data and settings for the tests of training and of what comes after it."""

import contextlib
import functools
import itertools

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh

from hold_jax import data, losses, sde
from hold_jax.loops.conditions import NONE
from hold_jax.loops.draw import SampleSettings, draw_blocks
from hold_jax.loops.train import TrainSettings
from hold_jax.model import Model
from hold_jax.nn import MLP, NCSNpp
from hold_jax.parameterization import eps, gaussian, log_noise, scaled_time
from hold_jax.runtime.mesh import Devices
from hold_jax.samplers import Strang
from hold_jax.training.optimizer import adam
from hold_jax.training.state import init_state

LOSS = functools.partial(losses.bcsm_loss, time_law=losses.uniform)
FULL_LOSS = functools.partial(losses.bcsm_loss, time_law=losses.log_normal())


def mlp(
    *, order=2, full=False, width=16, hidden_layers=2, sigma_data=1.0, init_scale=1.0, label_dropout=0.0, **options
):
    """A model of points in the plane; `init_scale` 1: the untrained network says something.

    Unless `full`, with `LOSS`, it has what compiles in a third of the time: fewer kernels.
    """
    embedding = "fourier" if full else "positional"
    network = MLP(2, hidden_layers, width, embedding, init_scale=init_scale, **options)
    how = (gaussian, log_noise) if full else (eps, scaled_time)
    return Model(sde.hold(order=order), network, (2,), *how, sigma_data, label_dropout)


def unet(*, dropout=0.0, num_classes=0, **options):
    """A model of 8x8 gray pictures."""
    network = NCSNpp(
        1,
        channels=8,
        channel_multipliers=(1, 1),
        num_res_blocks=1,
        attention_resolutions=(),
        fir=False,
        progressive_input="none",
        init_scale=1.0,
        dropout=dropout,
        num_classes=num_classes,
        **options,
    )
    return Model(sde.hold(order=2), network, (8, 8, 1), eps, scaled_time, 0.5)


def points(num=200, split="train"):
    """A few of the eight Gaussians."""
    return data.load("gaussians8", split=split, size=num)


def optimizer(learning_rate=1e-2, **options):
    """Adam with a constant rate, so that it does not depend on how long the run is meant to be."""
    return adam(learning_rate, **{"b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 0.0, "clip_norm": 1.0} | options)


def train_settings(**changes):
    """20 steps of 16 points; a checkpoint every 5, no pictures."""
    return TrainSettings(
        **dict(
            seed=0,
            batch_size=16,
            num_steps=20,
            accumulation_steps=1,
            steps_per_call=1,
            ema_decay=0.99,
            flip=False,
            log_every=5,
            sample_every=0,
            checkpoint_every=5,
            keep_last=2,
            keep_every=0,
            skip_limit=0,
            profile=0,
        )
        | changes
    )


def sample_settings(**changes):
    """16 samples in 4 steps."""
    return SampleSettings(
        **dict(
            sampler=Strang(),
            num_steps=4,
            grid="karras",
            t_min=None,
            denoise=True,
            num_samples=16,
            batch_size=8,
            frames=0,
            save_pngs=False,
            label=None,
            classes="data",
            guidance=None,
            seed=0,
        )
        | changes
    )


def draw_many(model, params, settings, devices, *, num, conditions=NONE):
    """The first `num` samples, and the frames of the first batch."""
    blocks = list(draw_blocks(model, params, settings, devices, np.arange(num), conditions))
    return np.concatenate([block.x for block in blocks]), blocks[0].frames


def devices(count):
    """The first `count` of the fake devices."""
    return Devices(Mesh(np.array(jax.devices()[:count]), ("data",)))


def fresh_state(model, transformation, seed=0):
    """The state at step 0, made anew."""
    return jax.jit(functools.partial(init_state, model, transformation, seed))()


def host_batches(dataset, batch_size, steps, start=0):
    """Training batches on the host."""
    return list(itertools.islice(data.batches(dataset, batch_size=batch_size, seed=0, start_step=start), steps))


def host_batches_indices(dataset, batch_size, steps):
    """The examples' places in the set, for each training batch."""
    numbered = data.Dataset(dataset.name, "train", np.arange(len(dataset), dtype=np.float32)[:, None], None, (1,), 0)
    return [b["x"][:, 0].astype(int).tolist() for b in host_batches(numbered, batch_size, steps)]


def to_host(tree):
    """Copies of the leaves as NumPy arrays; keys as their words."""

    def copy(leaf):
        is_key = isinstance(leaf, jax.Array) and jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.array(jax.random.key_data(leaf) if is_key else leaf)

    return jax.tree.map(copy, tree)


def assert_bitwise(got, want):
    """Every leaf has the same bytes."""
    got, want = to_host(got), to_host(want)
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (path, a), b in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype and a.tobytes() == b.tobytes(), jax.tree_util.keystr(path)


def largest_error(got, want):
    """The largest error over the leaves, relative to the largest entry of each leaf."""
    errors = [
        np.abs(a - b).max() / max(np.abs(b).max(), 1e-30)
        for a, b in zip(jax.tree.leaves(to_host(got)), jax.tree.leaves(to_host(want)), strict=True)
    ]
    return max(map(float, errors))


def contents(folder):
    """Every file below `folder` and its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@contextlib.contextmanager
def compilations():
    """A list that grows by one with every program compiled in the block."""
    found = []

    def listen(name, seconds, **_):
        if name == "/jax/core/compile/backend_compile_duration":
            found.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture(autouse=True, scope="module")
def quick_compilation(tmp_path_factory):
    """These tests compile much, the same again and again, and compute little."""
    wanted = {
        "jax_disable_most_optimizations": True,
        "jax_compilation_cache_dir": str(tmp_path_factory.getbasetemp() / "compiled"),
        "jax_persistent_cache_min_compile_time_secs": 0.05,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }
    before = {name: jax.config.values.get(name, None) for name in wanted}
    for settings in (wanted, before):
        for name, value in settings.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        if settings is wanted:
            yield
