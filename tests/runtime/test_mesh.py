import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training import small

from hold_jax.errors import UserError
from hold_jax.runtime.mesh import Devices


def test_all_is_every_device():
    assert Devices.all().mesh.devices.tolist() == jax.devices()


@pytest.mark.parametrize(("axis", "shape", "shard"), [(0, (16, 3), (2, 3)), (1, (3, 16), (3, 2))])
@pytest.mark.eight_devices
def test_put_spreads_the_batch_axis(axis, shape, shard):
    x = np.arange(48.0).reshape(shape)
    placed = small.devices(8).put({"x": x}, axis=axis)["x"]
    np.testing.assert_array_equal(placed, x)
    assert {s.data.shape for s in placed.addressable_shards} == {shard}


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((3, 3, 256, 128), (None, None, "data")),  # input channels
        ((5, 3, 3, 256, 128), (None, None, None, "data")),  # of a stack as of each
        ((512, 64), ("data",)),
        ((3, 3, 250, 256), (None, None, None, "data")),  # input channels do not divide
        ((3, 3, 250, 250), ()),
        ((2**14,), ("data",)),
        ((2**14 - 8,), ()),  # small
    ],
)
@pytest.mark.eight_devices
def test_large_arrays_are_spread_along_the_channels_that_divide(shape, spec):
    assert tuple(small.devices(8).spread(shape).spec) == spec
    assert small.devices(1).spread(shape) == small.devices(1).replicated


@pytest.mark.eight_devices
def test_init_makes_one_copy_a_device():
    made = small.devices(8).init(lambda a: {"a": a + 1}, jnp.zeros(3))["a"]
    assert made.sharding.is_fully_replicated and len(made.addressable_shards) == 8
    np.testing.assert_array_equal(made, np.ones(3))


@pytest.mark.parametrize(
    ("size", "parts", "nearest"),
    [
        (12, 1, "multiple of 8 (8 devices): the nearest are 8 and 16"),
        (7, 1, "multiple of 8 (8 devices): the nearest are 8"),
        (0, 1, "multiple of 8 (8 devices): the nearest are 8"),
        (-3, 1, "multiple of 8 (8 devices): the nearest are 8"),
        (40, 4, "multiple of 32 (8 devices x 4 accumulation steps): the nearest are 32 and 64"),
    ],
)
@pytest.mark.eight_devices
def test_a_batch_that_does_not_divide_is_named_with_the_nearest(size, parts, nearest):
    with pytest.raises(UserError) as caught:
        small.devices(8).require_divides("training.batch_size", size, parts)
    assert str(caught.value) == f"`training.batch_size` is {size}; it must be a {nearest}"


def test_a_batch_that_divides_passes():
    small.devices(8).require_divides("b", 32, 4)
    small.devices(1).require_divides("b", 7)


@pytest.mark.parametrize(
    ("platform", "capability", "have"),
    [
        ("cpu", "flags: avx2", False),
        ("cpu", "flags: avx512_bf16 amx", True),
        ("tpu", None, True),
        ("gpu", "7.5", False),
        ("gpu", "8.0", True),
        ("gpu", "9.0", True),
        ("gpu", "gfx90a", True),
    ],
)
def test_which_devices_have_bfloat16(tmp_path, monkeypatch, platform, capability, have):
    device = types.SimpleNamespace(platform=platform)
    if platform == "cpu":
        (tmp_path / "cpuinfo").write_text(capability)
        monkeypatch.setattr("hold_jax.runtime.mesh._CPU_FLAGS", tmp_path / "cpuinfo")
    elif capability:
        device.compute_capability = capability
    mesh = types.SimpleNamespace(devices=np.array([device], object))
    assert Devices(mesh).have_bfloat16() is have


def test_rows_of_a_process_stay_side_by_side(monkeypatch):
    made = []
    scattered = [types.SimpleNamespace(process_index=i % 2, id=i) for i in range(6)]
    monkeypatch.setattr(jax, "devices", lambda: scattered)
    monkeypatch.setattr("hold_jax.runtime.mesh.Mesh", lambda devices, axes: made.append(devices.tolist()))
    Devices.all()
    assert [(d.process_index, d.id) for d in made[0]] == [(0, 0), (0, 2), (0, 4), (1, 1), (1, 3), (1, 5)]
