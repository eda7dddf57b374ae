"""Compiled programs: when they are used again, and when they are not."""

import dataclasses
import functools
import gc
import logging
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hold_jax.numerics import programs

X = jnp.arange(3.0)
SCALE = 2.0
WEIGHTS: dict = {}


def scaled(x):
    return SCALE * x


@pytest.fixture
def outer():
    """A function of a function that counts how often it is traced."""

    def outer(inner, settings, x):
        outer.traces += 1
        return settings * inner(x)

    outer.traces = 0
    return outer


def test_one_trace_for_a_function_and_its_settings(outer):
    inner = lambda x: x + 1  # noqa: E731
    for _ in range(3):
        np.testing.assert_array_equal(programs.run(outer, inner, 2.0, X), [2, 4, 6])
    assert outer.traces == 1
    np.testing.assert_array_equal(programs.run(outer, inner, 3.0, X), [3, 6, 9])
    programs.run(outer, inner, 2.0, X[:2])
    assert outer.traces == 3
    partial = functools.partial(jnp.multiply, 2.0)  # of no Python function: not kept
    assert programs.run(outer, partial, 1.0, X)[1] == 2


def test_one_trace_for_a_function_that_is_compiled_already(outer):
    inner = jax.jit(lambda x: x + 1)
    for _ in range(2):
        np.testing.assert_array_equal(programs.run(outer, inner, 2.0, X), [2, 4, 6])
        programs.run(outer, functools.partial(inner), 2.0, X)  # a new function
    assert outer.traces == 3
    alive = weakref.ref(inner)
    del inner
    gc.collect()
    assert alive() is None


def test_a_function_that_is_an_attribute_of_what_it_captures_is_freed(outer):
    class Network:
        def __init__(self):
            self.weight = jnp.float32(2.0)
            self.scaled = lambda x: self.weight * x

    network = Network()
    for weight, traces in ((2.0, 1), (3.0, 2)):
        network.weight = jnp.float32(weight)
        for _ in range(2):
            assert programs.run(outer, network.scaled, 1.0, X)[1] == weight
        assert outer.traces == traces
    alive = weakref.ref(network)
    del network
    gc.collect()
    assert alive() is None


def test_a_changed_variable_is_seen(outer):
    global SCALE
    params = {"w": jnp.float32(2.0)}

    class Network:
        weight = 1.0

    network = Network()
    inner = lambda x: SCALE * params["w"] * network.weight * x  # noqa: E731
    assert programs.run(outer, inner, 1.0, X)[1] == 4
    params = {"w": jnp.float32(3.0)}
    assert programs.run(outer, inner, 1.0, X)[1] == 6
    SCALE = 1.0
    assert programs.run(outer, inner, 1.0, X)[1] == 3
    network.weight = 5.0
    assert programs.run(outer, inner, 1.0, X)[1] == 15
    assert programs.run(outer, inner, 1.0, X)[1] == 15
    assert outer.traces == 4


def test_a_change_deep_inside_a_captured_object_is_seen(outer):
    class Object:
        pass

    network, params = Object(), {"layers": [{"w": jnp.float32(2.0)}, ()]}
    network.layers = (Object(),)
    network.layers[0].scale, network.itself, network.params = jnp.float32(1.0), network, params
    inner = lambda x: network.layers[0].scale * params["layers"][0]["w"] * x  # noqa: E731
    changes = (
        (lambda: None, 2),
        (lambda: setattr(network.layers[0], "scale", jnp.float32(3.0)), 6),
        (lambda: params["layers"][0].update(w=jnp.float32(5.0)), 15),
    )
    for traces, (change, want) in enumerate(changes, 1):
        change()
        for _ in range(2):
            assert programs.run(outer, inner, 1.0, X)[1] == want
        assert outer.traces == traces


@dataclasses.dataclass(frozen=True)
class Frozen:
    params: dict


class Weight:
    """A layer whose attributes are slots."""

    __slots__ = ("w",)

    def __init__(self, w):
        self.w = w

    def times(self, x):
        return self.w * x


def with_default(params):
    return lambda x, p=params, *, q=params: (p["w"] + q["w"]) / 2 * x


def with_comprehension(params):
    global WEIGHTS
    WEIGHTS = params
    return functools.partial(_comprehended)


def _comprehended(x):
    return sum([(lambda: WEIGHTS["w"] * x)() for _ in range(1)])


HOLDERS = {
    "partial": lambda p: functools.partial(lambda p, x: p["w"] * x, p),
    "partial by name": lambda p: functools.partial(lambda x, p: p["w"] * x, p=p),
    "captured partial": lambda p: (lambda f: lambda x: f(x))(functools.partial(lambda p, x: p["w"] * x, p)),
    "partial inside": lambda p: (lambda d: lambda x: d["f"](x))({"f": functools.partial(lambda p, x: p["w"] * x, p)}),
    "defaults": with_default,
    "function inside": with_comprehension,
    "frozen": lambda p: (lambda f: lambda x: f.params["w"] * x)(Frozen(p)),
    "float": lambda p: (lambda c: lambda x: c["of"]["w"] * x)({"of": p}),
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_a_change_is_seen_whatever_holds_it(outer, holder):
    convert = float if holder == "float" else jnp.float32
    params = {"w": convert(2.0)}
    inner = HOLDERS[holder](params)
    for traces, value in enumerate((2.0, 5.0), 1):
        params["w"] = convert(value)
        for _ in range(2):
            assert programs.run(outer, inner, 1.0, X)[1] == value
        assert outer.traces == traces


@pytest.mark.parametrize("holder", ["method", "object"])
def test_a_change_of_what_a_method_belongs_to_is_seen(outer, holder):
    layer = Weight(jnp.float32(2.0))
    inner = (lambda times: lambda x: times(x))(
        layer.times if holder == "method" else functools.partial(Weight.times, layer)
    )
    for traces, value in enumerate((2.0, 5.0), 1):
        layer.w = jnp.float32(value)
        for _ in range(2):
            assert programs.run(outer, inner, 1.0, X)[1] == value
        assert outer.traces == traces


class Odd:
    """An object whose attributes fail when they are read."""

    __slots__ = "a"

    def __getattr__(self, name):
        raise RuntimeError(name)

    @property
    def __dict__(self):
        raise RuntimeError("__dict__")


class Table(dict):
    def values(self):
        raise RuntimeError("values")


class Number(float):
    __hash__ = None


ODD = {
    "mock": mock.MagicMock, "fails": Odd, "table": lambda: Table(a=Odd()), "deep": lambda: [Odd()],
    "no hash": lambda: Number(2.0), "number": lambda: np.float32(2.0), "nan": lambda: float("nan"),
}  # fmt: skip


@pytest.mark.parametrize("held", ODD)
def test_whatever_a_function_holds_it_is_compiled_once(outer, held):
    one = ODD[held]()
    config = {"of": one}
    inner = lambda x: x + (config["of"] is None) + (one is None)  # noqa: E731
    for _ in range(3):
        if held in ("number", "nan"):
            config["of"] = ODD[held]()  # another object, the same number
        np.testing.assert_array_equal(programs.run(outer, inner, 1.0, X), X)
    assert outer.traces == 1


def test_a_float_of_the_same_value_and_a_longer_list_are_no_change(outer):
    config, scores = {"of": {"scale": 2.0}}, [0.1]
    inner = lambda x: config["of"]["scale"] * x + 0 * len(scores)  # noqa: E731
    for i in range(3):
        config["of"]["scale"] = 1.5 + 0.5 * (i < 9)
        scores.append(i / 7)
        programs.run(outer, inner, 1.0, X)
    assert outer.traces == 1


def test_a_changed_parameter_of_an_nnx_network_is_seen(outer):
    network = nnx.Linear(1, 1, rngs=nnx.Rngs(0))
    inner = lambda x: network(x[:, None])[:, 0]  # noqa: E731
    for value in (2.0, 3.0):
        nnx.update(network, {"kernel": jnp.full((1, 1), value)})
        for _ in range(2):
            np.testing.assert_array_equal(programs.run(outer, inner, 1.0, X), value * X)
    assert outer.traces == 2


def test_what_a_function_changes_while_it_is_traced_is_no_change(outer):
    class Count:
        n = 0

    log, count = [], Count()

    def inner(x):
        log.append(x)
        count.n += 1
        return count.n * x

    for _ in range(3):
        np.testing.assert_array_equal(programs.run(outer, inner, 1.0, X), X)
        np.testing.assert_array_equal(programs.run(outer, inner, 1.0, X[:2]), 2 * X[:2])
    assert len(log) == outer.traces == count.n == 2
    count.n = 5
    np.testing.assert_array_equal(programs.run(outer, inner, 1.0, X), 6 * X)


def test_what_changes_elsewhere_in_what_a_function_holds_is_no_change(outer):
    # A logger reaches all others; containers of others may grow, in other threads too.
    log, table = logging.getLogger("a.network"), {"file": 0}

    def inner(x):
        log.debug("traced")
        return x + 0 * len(table)

    for i in range(4):
        logging.getLogger(f"worker.{i}").isEnabledFor(10 + i)
        table[f"file {i}"] = i
        programs.run(outer, inner, 1.0, X)
    assert outer.traces == 1
    table |= {str(i): i for i in range(300_000)}
    began = time.perf_counter()
    programs.run(outer, inner, 1.0, X)
    assert outer.traces == 1 and time.perf_counter() - began < 1


def test_a_call_in_another_thread_finds_the_program(outer):
    inner = lambda x: x + 1  # noqa: E731
    programs.run(outer, inner, 1.0, X)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: programs.run(outer, inner, 1.0, X), range(40)))
    assert outer.traces == 1


def test_a_changed_variable_of_a_captured_function_is_seen(outer):
    weight = 2.0

    def network(x, scale):
        return scale * weight * x

    def wrap(inner):
        return lambda x: inner(x)

    def recursive(x, again=True):
        return recursive(wrapped(x), False) if again else x

    wrapped = wrap(wrap(functools.partial(network, scale=1.0)))
    assert programs.run(outer, recursive, 1.0, X)[1] == 2
    weight = 3.0
    assert programs.run(outer, recursive, 1.0, X)[1] == 3
    assert programs.run(outer, recursive, 1.0, X)[1] == 3
    assert outer.traces == 2


def test_a_changed_variable_of_a_called_function_is_seen(outer):
    global SCALE
    inner = lambda x: scaled(x) + 1  # noqa: E731
    for SCALE in (2.0, 5.0):
        assert programs.run(outer, inner, 1.0, X)[1] == SCALE + 1
    assert outer.traces == 2


def test_a_captured_variable_without_a_value_is_none_that_is_read(outer):
    def make(flag):
        if flag:
            scale = 2.0

        def network(x):
            return x * (scale if flag else 1.0)

        return lambda x: network(x)

    inner = make(False)
    for _ in range(2):
        np.testing.assert_array_equal(programs.run(outer, inner, 1.0, X), X)
    assert outer.traces == 1


def test_methods_and_callable_objects_are_traced_at_each_call(outer):
    class Network:
        weight = 2.0

        def __call__(self, x):
            return self.weight * x

    network = Network()
    for inner in (network, network.__call__):
        network.weight = 2.0
        assert programs.run(outer, inner, 1.0, X)[1] == 2
        network.weight = 3.0
        assert programs.run(outer, inner, 1.0, X)[1] == 3
    assert programs.run(outer, lambda x: x, np.array(2.0), X)[1] == 2  # settings that are not hashable


@pytest.mark.slow
def test_a_function_and_what_it_holds_are_freed(outer):
    class Params:
        def __init__(self):
            self.w = jnp.ones(3)

    params = Params()
    alive = weakref.ref(params)
    network = lambda x, params=params: jax.nn.silu(params.w) * x  # noqa: E731
    inner = (lambda network: lambda x: network(x))(network)
    programs.run(outer, inner, 1.0, X)
    programs.run(outer, inner, 2.0, X)
    del params, inner, network
    gc.collect()
    assert alive() is None


@pytest.mark.slow
def test_a_call_that_is_compiled_each_time_is_said_once(outer, caplog):
    timer = {"seconds": 0.0}
    inner = lambda x: x + 0 * len(timer)  # noqa: E731
    for i in range(30):
        timer["seconds"] += 0.1
        programs.run(outer, inner, 1.0, X)
        assert len(caplog.records) == (i >= 7)
        programs.run(outer, inner, float(i), X)  # another call
    assert "a call with <lambda> is compiled for the 8th time" in caplog.text


def test_the_number_of_programs_of_a_function_is_bounded(outer):
    inner = lambda x: x + 1  # noqa: E731
    for i in range(40):
        programs.run(outer, inner, i, X)
    assert len(programs._PROGRAMS[inner]) == 16
    programs.run(outer, inner, 39, X)
    assert outer.traces == 40


def test_inside_transformations():
    outer = lambda inner, settings, x: settings * inner(x)  # noqa: E731
    inner = lambda x: jnp.sin(x)  # noqa: E731
    want = 2 * np.sin(np.asarray(X))
    np.testing.assert_allclose(jax.jit(lambda x: programs.run(outer, inner, 2.0, x))(X), want, rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(lambda x: programs.run(outer, inner, 2.0, x))(X), want, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(lambda: programs.run(outer, inner, 2.0, X))(), want, rtol=1e-6)
    np.testing.assert_allclose(programs.run(outer, inner, 2.0, X), want, rtol=1e-6)

    # What the function holds may be traced, not only the arrays.
    def of_weight(weight):
        return jnp.sum(programs.run(outer, lambda x: weight * x, 2.0, X))

    assert jax.grad(of_weight)(1.0) == jax.jit(jax.grad(of_weight))(1.0) == 6.0
    np.testing.assert_array_equal(jax.vmap(of_weight)(X), [0, 6, 12])
