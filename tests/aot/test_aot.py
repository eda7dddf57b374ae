"""The package's programs compiled for TPUs and H100s, and what their optimized HLO promises."""

import jax
import pytest
from aot.programs import PROGRAMS

from benchmarks import hlo, topologies
from hold_jax.samplers import SAMPLERS

pytestmark = pytest.mark.slow

ONE = ("h100:1x1x1", "v5e:2x2@1")
MANY = ("h100:1x1x8", "v5e:2x2", "v5e:4x4", "v4:2x2x4")
# What a mesh changes: the reductions of the step, and the spread of a batch.
SHARDED = ("step bfloat16", "step accumulated", "guided", "initial state")
# Inception takes a minute and more: once for each compiler.
EVERYWHERE = [name for name in PROGRAMS if name not in SAMPLERS]
# Bytes of temporary arrays on one device, at the toy size of `programs`.
TEMPORARY = 96 << 20
TEMPORARY_OF = {"inception": 2 << 30}


def compiled(program, topology):
    """The executable."""
    if not topologies.available(topology):
        pytest.skip(f"no compiler for {topology}; to get it: {topologies.HOW}")
    function, args = PROGRAMS[program](topologies.devices(topology))
    return function.trace(*args).lower(lowering_platforms=(topologies.platform(topology),)).compile()


def cases(programs, places):
    return pytest.mark.parametrize(("program", "topology"), [(p, t) for t in places for p in programs])


def check(program, topology):
    found = compiled(program, topology)
    text = found.as_text()
    assert "f64[" not in text
    assert hlo.host_traffic(text) == []
    assert hlo.bfloat16_sums(text) == []
    assert found.memory_analysis().temp_size_in_bytes < TEMPORARY_OF.get(program, TEMPORARY)
    return text


@cases([*EVERYWHERE, *SAMPLERS], ONE)
def test_it_compiles_without_float64_host_traffic_or_bfloat16_sums(program, topology):
    text = check(program, topology)
    kinds = hlo.products(text)
    assert not hlo.cost(text)["collectives"]
    assert "gemm_fusion" not in text  # by Triton: each in many tilings, minutes where float32 factors are whole
    assert "dynamic-slice-fusion" not in text  # an address in the middle of an array, which cuBLAS may refuse
    bfloat16 = program in ("step bfloat16", "step accumulated", "step remat")
    # Float32 factors are never rounded. In a bfloat16 step XLA for GPUs casts bfloat16 factors of a float32 result to
    # float32: the 28 convolutions' kernel gradients, and the gradients of queries and keys of three attentions. TF32
    # holds bfloat16 numbers exactly, so these products cost time and no digits.
    rounded = sum(n for kind, n in kinds.items() if kind.startswith("f32*f32") and not kind.endswith("highest"))
    cast = 34 if topology.startswith("h100") else 6
    assert rounded <= (cast if bfloat16 else 0), kinds
    if program in ("step float32", "test loss", "guided", "classifier", "inception"):
        assert kinds and {kind.split()[0] for kind in kinds} == {"f32*f32"}
    if bfloat16:
        flops = hlo.cost(text)["flops"]
        assert sum(count for kind, count in flops.items() if "bf16" in kind) > sum(flops.values()) / 2, flops


@cases(SHARDED, MANY)
def test_a_mesh_adds_float32_sums_of_gradients_and_gathers_of_parameters(program, topology):
    found = hlo.cost(check(program, topology))["collectives"]
    if program.startswith("step"):
        # With accumulation or without, gradients are summed in float32. The state is spread, parameters are gathered;
        # kernels that the network casts to bfloat16 may be cast before they are sent, which gives the same numbers.
        sums, gathers = {"all-reduce f32", "reduce-scatter f32"}, {"all-gather f32", "all-gather bf16"}
        assert sums & set(found), found
        assert set(found) <= sums | gathers, found
    if program == "initial state":
        assert not found


def test_the_reader_sees_a_bfloat16_sum_and_a_call_of_the_host():
    # The checks above can fail: a sum of bfloat16 numbers in their own type, and a callback.
    topology = "v5e:2x2@1"
    if not topologies.available(topology):
        pytest.skip(f"no compiler for {topology}; to get it: {topologies.HOW}")
    place = topologies.devices(topology).replicated
    x = jax.ShapeDtypeStruct((64, 256), jax.numpy.bfloat16, sharding=place)

    def sums(x):
        return jax.lax.reduce(x, jax.numpy.bfloat16(0), jax.lax.add, (0,))

    def says(x):
        jax.debug.callback(lambda value: None, sums(x))
        return x

    def text(function):
        return jax.jit(function).trace(x).lower(lowering_platforms=("tpu",)).compile().as_text()

    assert hlo.bfloat16_sums(text(sums))
    assert not hlo.host_traffic(text(sums)) and hlo.host_traffic(text(says))
