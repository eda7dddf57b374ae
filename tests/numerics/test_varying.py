"""`jax.shard_map` with its check of what varies (`check_vma`, the default): the numbers are those of plain calls."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from samplers.suite import hold, network

from hold_jax import guidance, inverse, kernels, langevin, likelihood, losses, operators, samplers
from hold_jax.errors import UserError
from hold_jax.numerics import ode

pytestmark = pytest.mark.eight_devices
M = hold(2)
KEY = jax.random.key(0)
X = 0.3 * jax.random.normal(jax.random.key(1), (4, 2))
INDEX = jnp.arange(4)
SHORT = {"num_steps": 2, "denoise": False}


def _gaussian(u, t):
    y, sigma = kernels.sufficient_statistic(M, u, t)
    return kernels.last_noise(M, u, t, kernels.append_dims(0.25 / (0.25 + sigma**2), y) * y)


def _mapped(function):
    """The function of one example on each of four devices."""
    mesh = jax.make_mesh((4,), ("d",), devices=jax.devices()[:4])
    mapped = jax.shard_map(function, mesh=mesh, in_specs=P("d"), out_specs=P("d"))
    return jax.jit(lambda x: mapped(jax.device_put(x, jax.NamedSharding(mesh, P("d")))))


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_every_sampler_traces_from_keys_numbers_and_starts_that_vary(name):
    by_key = lambda key: samplers.sample(name, M, network, key=key[0], shape=(1, 2), **SHORT).u  # noqa: E731
    by_index = lambda i: samplers.sample(name, M, network, key=KEY, shape=(1, 2), index=i, frames=1, **SHORT).u  # noqa: E731
    by_start = lambda u: samplers.sample(name, M, network, key=KEY, start=u, **SHORT).u  # noqa: E731
    for function, x in ((by_key, jax.random.split(KEY, 4)), (by_index, INDEX), (by_start, jnp.ones((4, 2, 2)))):
        assert jax.eval_shape(_mapped(function), x).shape == (4, 2, 2)


@pytest.mark.parametrize("name", ["unipc", "poisson_midpoint", "probability_flow"])
def test_numbered_samples_are_those_of_a_plain_call(name):
    def draw(index):
        return samplers.sample(name, M, network, key=KEY, shape=(len(index), 2), index=index, **SHORT).u

    one_by_one = jnp.concatenate([draw(i[None]) for i in INDEX])
    np.testing.assert_allclose(_mapped(draw)(INDEX), one_by_one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["metropolis", "poisson_midpoint", "strang"])
def test_chains_of_langevin_are_those_of_a_plain_call_from_one_start(method):
    a = langevin.langevin(lambda q: -jnp.sum(q**4), order=3, method=method, step_size=0.2)

    def chain(key):
        steps = jax.random.split(key, 3)
        return jax.lax.scan(lambda state, k: (a.step(k, state)[0], None), a.init(X[0], key), steps)[0].position

    keys = jax.random.split(KEY, 4)
    np.testing.assert_allclose(_mapped(jax.vmap(chain))(keys), jax.vmap(chain)(keys), rtol=1e-5, atol=1e-6)


def test_likelihoods_and_losses_are_those_of_a_plain_call():
    solver = ode.Solver("bosh3", rtol=1e-3, atol=1e-3)
    bits = lambda x: likelihood.bits_per_dim(M, _gaussian, x, key=KEY, probes=0, solver=solver).bpd  # noqa: E731
    loss = lambda x: losses.bcsm_loss(M, _gaussian, x, KEY)  # noqa: E731
    for function in (bits, loss):
        one_by_one = jnp.concatenate([function(x[None]) for x in X])
        np.testing.assert_allclose(_mapped(function)(X), one_by_one, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", inverse.METHODS)
def test_derivatives_of_the_network_are_not_summed_over_the_devices(method):
    operator = operators.linear((2,), np.array([[1.0, 0.5]]))
    u = jnp.ones((1, 2, 2))  # the same on all devices

    def noise(y):
        return inverse.METHODS[method](M, network, operator, y, 0.1)(u, jnp.float32(1.0))

    one_by_one = jnp.concatenate([noise(x[None]) for x in X[:, :1]])
    np.testing.assert_allclose(_mapped(noise)(X[:, :1]), one_by_one, rtol=1e-4, atol=1e-5)


def test_a_classifier_of_labels_that_vary_is_differentiated_on_each_device():
    u = jnp.ones((1, 2, 2))

    def noise(label):
        log_prob = lambda y, sigma: -jnp.sum(jnp.square(y - label[:, None]), axis=-1)  # noqa: E731
        return guidance.classifier(M, network, log_prob)(u, jnp.float32(1.0))

    labels = X[:, 0]
    one_by_one = jnp.concatenate([noise(x[None]) for x in labels])
    np.testing.assert_allclose(_mapped(noise)(labels), one_by_one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("solver", ["heun", "midpoint"])
def test_a_solver_whose_stages_cannot_vary_is_named(solver):
    flow = samplers.ProbabilityFlow(solver, adaptive=False)
    draw = lambda u: samplers.sample(flow, M, network, start=u, **SHORT).u  # noqa: E731
    with pytest.raises(UserError, match=f"`solver` is '{solver}'; it must be another, such as 'tsit5', under"):
        jax.eval_shape(_mapped(draw), jnp.ones((4, 2, 2)))
