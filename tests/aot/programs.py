"""The programs of the package at toy size, each as a jitted function and abstract arguments."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from training.small import sample_settings

from hold_jax import kernels, likelihood, losses, samplers, sde
from hold_jax.condition import Condition
from hold_jax.evaluation.classifier import Classifier
from hold_jax.evaluation.inception_network import Inception
from hold_jax.loops.draw import make_draw
from hold_jax.model import Model
from hold_jax.nn import NCSNpp
from hold_jax.numerics import draws
from hold_jax.parameterization import gaussian, log_noise
from hold_jax.runtime.mesh import Devices
from hold_jax.training.fingerprint import fingerprints
from hold_jax.training.optimizer import adam
from hold_jax.training.state import init_state
from hold_jax.training.step import Program, mean_loss

SHAPE = (8, 8, 1)
PER_DEVICE = 8
Compilable = tuple[Any, tuple[Any, ...]]


def network(dtype: Any = jnp.float32, **options: Any) -> Model:
    """A small network with every kind of layer of the CIFAR-10 one."""
    net = NCSNpp(
        1,
        channels=16,
        channel_multipliers=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(4,),
        dtype=dtype,
        **options,
    )
    dropped = 0.1 if options.get("num_classes") else 0.0
    return Model(sde.hold(order=3), net, SHAPE, gaussian, log_noise, 0.5, dropped)


OPTIMIZER = adam(1e-3, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0, clip_norm=1.0)


def exact(u: jax.Array, t: jax.Array) -> jax.Array:
    """A plain function of the shape of an `eps_fn`, differentiable, without a network: compiles in seconds."""
    sigma = jnp.broadcast_to(kernels.effective_noise(sde.hold(order=3), t), u.shape[:1])
    return u[..., -1:, :] * kernels.append_dims(sigma, u)


def on(sharding: Any, tree: Any) -> Any:
    """Abstract arrays with a sharding."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree)


def batch_of(devices: Devices, calls: tuple[int, ...] = ()) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch of 8 examples a device, as a data set has them."""
    size, sharding = PER_DEVICE * devices.mesh.size, devices.batch(len(calls))
    x = jax.ShapeDtypeStruct((*calls, size, *SHAPE), np.uint8, sharding=sharding)
    return {"x": x, "label": jax.ShapeDtypeStruct((*calls, size), np.int32, sharding=sharding)}


def state_of(model: Model, devices: Devices) -> Any:
    """The abstract train state."""
    return on(devices.replicated, jax.eval_shape(functools.partial(init_state, model, OPTIMIZER, 0)))


def step(
    devices: Devices, dtype: Any = jnp.float32, accumulation_steps: int = 1, steps_per_call: int = 1, **options: Any
) -> Compilable:
    """The training step as the trainer runs it."""
    program = Program.make(
        network(dtype, dropout=0.1, **options),
        losses.bcsm_loss,
        OPTIMIZER,
        devices,
        seed=0,
        ema_decay=0.99,
        accumulation_steps=accumulation_steps,
        steps_per_call=steps_per_call,
    )
    calls = (steps_per_call,) if steps_per_call > 1 else ()
    return program.step, (program.abstract(), batch_of(devices, calls))


def test_loss(devices: Devices) -> Compilable:
    """The loss of a batch without dropout."""
    model = network()

    def loss(params: Any, batch: dict[str, jax.Array]) -> jax.Array:
        return mean_loss(model, losses.bcsm_loss, params, batch, jax.random.key(0), train=False)

    return devices.jit(loss, out_shardings=devices.replicated), (state_of(model, devices).params, batch_of(devices))


def guided(devices: Devices) -> Compilable:
    """Sampling of classes with classifier-free guidance, as `main.py` draws."""
    model = network(num_classes=2)
    settings = dataclasses.replace(
        sample_settings(), batch_size=PER_DEVICE * devices.mesh.size, guidance=2.0, classes="uniform", frames=0
    )
    index = jax.ShapeDtypeStruct((settings.batch_size,), np.int32)
    return make_draw(model, settings, devices), (state_of(model, devices).ema, index, Condition())


def sampler(devices: Devices, name: str) -> Compilable:
    """One sampler, of any function in place of the network."""

    def draw(key: jax.Array) -> jax.Array:
        one = samplers.SAMPLERS[name]()
        shape = (PER_DEVICE * devices.mesh.size, *SHAPE)
        options = {"num_steps": 20, "grid": "log", "sharding": devices.batch()}
        return samplers.sample(one, sde.hold(order=3), exact, key=key, shape=shape, **options).x

    key = on(devices.replicated, jax.eval_shape(lambda: jax.random.key(0)))
    return jax.jit(draw, out_shardings=devices.replicated), (key,)


def encode(devices: Devices) -> Compilable:
    """Data to latents."""

    def latent(x: jax.Array) -> jax.Array:
        one = samplers.SAMPLERS["unipc"]()
        key = jax.random.key(0)
        return samplers.encode(one, sde.hold(order=3), exact, x, key=key, num_steps=20, grid="log").u

    return jax.jit(latent, out_shardings=devices.replicated), (_data(devices),)


def bits(devices: Devices) -> Compilable:
    """The likelihood, by the adaptive solver."""

    def of(x: jax.Array) -> jax.Array:
        return likelihood.bits_per_dim(sde.hold(order=3), exact, x, key=jax.random.key(0)).bpd

    return jax.jit(of, out_shardings=devices.replicated), (_data(devices),)


def _data(devices: Devices) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((PER_DEVICE * devices.mesh.size, *SHAPE), jnp.float32, sharding=devices.batch())


def initial_state(devices: Devices) -> Compilable:
    """The state at step 0."""
    new_state = draws.together(functools.partial(init_state, network(), OPTIMIZER, 0))
    return jax.jit(new_state, out_shardings=devices.replicated), ()


def marks(devices: Devices) -> Compilable:
    """Fingerprints of the state."""
    return jax.jit(fingerprints), (state_of(network(), devices),)


def features(devices: Devices, module: Any, shape: tuple[int, ...], dtype: Any) -> Compilable:
    """A network of features."""
    size = PER_DEVICE * devices.mesh.size
    x = jax.ShapeDtypeStruct((size, *shape), dtype, sharding=devices.batch())
    params = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, *shape), dtype)))["params"]
    apply = devices.jit(lambda p, x: module.apply({"params": p}, x), out_shardings=devices.replicated)
    return apply, (on(devices.replicated, params), x)


PROGRAMS: dict[str, Callable[[Devices], Compilable]] = {
    "step float32": step,
    "step bfloat16": functools.partial(step, dtype=jnp.bfloat16),
    "step accumulated": functools.partial(step, dtype=jnp.bfloat16, accumulation_steps=2),
    "step several": functools.partial(step, steps_per_call=2, num_classes=2),
    "step remat": functools.partial(step, dtype=jnp.bfloat16, remat=True),
    "test loss": test_loss,
    "guided": guided,
    "encode": encode,
    "likelihood": bits,
    "initial state": initial_state,
    "fingerprints": marks,
    "classifier": functools.partial(features, module=Classifier(10), shape=(28, 28, 1), dtype=jnp.float32),
    "inception": functools.partial(features, module=Inception(), shape=(32, 32, 3), dtype=jnp.uint8),
} | {name: functools.partial(sampler, name=name) for name in samplers.SAMPLERS}
"""Each maker takes the mesh."""
