"""What `benchmarks.hlo` reads off HLO, on a program written by hand and on convolutions that XLA counts."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks import aot, hlo

HLO = """\
HloModule jit_step

%fused (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %inner = f32[8]{0} multiply(%p, %p)
}

%sliced (p: f32[16]) -> f32[4] {
  %q = f32[16]{0} parameter(0)
  ROOT %part = f32[4]{0} slice(%q), slice={[4:8]}
}

%body (s: (s32[], f32[8])) -> (s32[], f32[8]) {
  %s = (s32[], f32[8]{0}) parameter(0)
  %v = f32[8]{0} get-tuple-element(%s), index=1
  %f = f32[8]{0} fusion(%v), kind=kLoop, calls=%fused, metadata={op_name="jit(step)/jvp(NCSNpp)/mul"}, \
backend_config={"window_config":{"estimated_cycles":"10"}}
  %sum = f32[8]{0} all-reduce(%f), to_apply=%add
  ROOT %t = (s32[], f32[8]{0}) tuple(%i, %sum)
}

%async_collective_fusion.1 (p: bf16[4]) -> bf16[64] {
  ROOT %gathered = bf16[64]{0} all-gather(%p), channel_id=1, dimensions={0}
}

%async_collective_fusion.2 (p: bf16[4]) -> bf16[64] {
  ROOT %gathered = bf16[64]{0} all-gather(%p), channel_id=1, dimensions={0}
}

ENTRY %main (a: f32[8], b: bf16[2,3]) -> f32[8] {
  %a = f32[8]{0:T(256)} parameter(0)
  %b = bf16[2,3]{1,0} parameter(1)
  %loop = (s32[], f32[8]{0}) while(%a), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %back = f32[8]{0} convolution(%a, %a), metadata={op_name="jit(step)/transpose(jvp(NCSNpp))/conv"}, \
backend_config={"window_config":{"estimated_cycles":"100"}}
  %start = (f32[8]{0}, bf16[2,3]{1,0}) all-reduce-start(%a, %b), to_apply=%add
  %done = (f32[8]{0}, bf16[2,3]{1,0}) all-reduce-done(%start)
  %new = f32[8]{0} fusion(%a), calls=%fused, metadata={op_name="jit(step)/update/add"}, \
backend_config={"window_config":{"estimated_cycles":"7"}}
  %stack = f32[16]{0} parameter(2)
  %one = f32[4]{0} fusion(%stack), calls=%sliced, metadata={op_name="jit(step)/gather/slice"}, \
backend_config={"window_config":{"estimated_cycles":"5"}}
  %gathered = bf16[64]{0} fusion(%b), calls=%async_collective_fusion.1
  %again = bf16[64]{0} fusion(%b), calls=%async_collective_fusion.2
  ROOT %out = f32[8]{0:S(1)} copy(%new), backend_config={"window_config":{"estimated_cycles":"1"}}
}
"""


def test_kernels_and_cycles_by_part_loops_as_often_as_they_run():
    found = hlo.cost(HLO)
    assert found["cycles"] == {"forward": 30, "backward": 100, "update": 7, "gather": 5, "other": 1}
    assert found["kernels"] == {"forward": 3, "backward": 1, "update": 1, "gather": 1, "other": 3}


def test_collectives_by_type_with_the_bytes_of_their_results():
    assert hlo.cost(HLO)["collectives"] == {
        "all-reduce f32": {"count": 4, "bytes": 3 * 32 + 32 + 12},
        "all-gather bf16": {"count": 1, "bytes": 128},
    }


def test_bytes_of_kernels_slices_alone_and_nothing_on_the_chip():
    # 3 fusions of the loop, each 32 read and 32 written; the convolution 64 and 32; the sliced fusion 16 and 16 (of an
    # operand of 64); the gathering ones 12 and 128; the update 32 and 32; the copy 32, its result is on the chip.
    assert hlo.cost(HLO)["bytes"] == 3 * 64 + 96 + 32 + 2 * 140 + 64 + 32


@pytest.mark.parametrize(
    ("types", "size"),
    [("f32[3,4]{1,0:T(8,128)}", 48), ("(bf16[2], u8[5], pred[])", 10), ("f32[]", 4), ("token[]", 0), ("f32[0,4]", 0)],
)
def test_bytes_of_types(types, size):
    assert hlo.array_bytes(types) == size


def _conv(stride, padding, dilation=1):
    numbers = ("NHWC", "HWIO", "NHWC")
    options = {"lhs_dilation": (dilation, dilation), "dimension_numbers": numbers, "precision": "highest"}
    return lambda x, k: jax.lax.conv_general_dilated(x, k, (stride, stride), padding, **options)


@pytest.mark.parametrize(
    "conv", [_conv(1, "SAME"), _conv(2, "SAME"), _conv(2, "VALID"), _conv(1, [(2, 2), (2, 2)], dilation=2)]
)
def test_flops_of_a_convolution_and_its_gradients_are_xlas_count(conv):
    x, k = jnp.zeros((2, 8, 8, 4)), jnp.zeros((3, 3, 4, 6))
    y = jax.eval_shape(conv, x, k)
    lowered = jax.jit(lambda x, k, y: jax.vjp(conv, x, k)[1](y)).lower(x, k, y)
    assert sum(hlo.cost(lowered.as_text("hlo"))["flops"].values()) == lowered.cost_analysis()["flops"]


def test_flops_of_a_matrix_product_are_twice_its_multiplications():
    a, b = jnp.zeros((5, 7, 8)), jnp.zeros((5, 8, 9))
    lowered = jax.jit(lambda a, b: jnp.einsum("kij,kjl->kil", a, b, precision="highest")).lower(a, b)
    assert hlo.cost(lowered.as_text("hlo"))["flops"] == {"f32*f32 highest": 2 * 5 * 7 * 8 * 9}


def test_the_roofline_is_the_slower_of_compute_and_memory():
    def bound(flops, size):
        row = aot.with_roofline({"topology": "v5e:4x4", "flops": flops, "bytes": size})
        return row["roofline_seconds"], row["utilization_bound"]

    assert bound({"bf16*bf16 default": 197e9}, 819e7) == pytest.approx((1e-2, 0.1))
    assert bound({"bf16*bf16 default": 197e9}, 0) == pytest.approx((1e-3, 1))
    assert bound({"f32*f32 highest": 197e9}, 0) == pytest.approx((6e-3, 1 / 6))
    assert "roofline_seconds" not in aot.with_roofline({"topology": "local", "flops": {}, "bytes": 0})


def test_an_early_reading_is_of_the_program_not_of_what_tracing_compiled(tmp_path):
    def dump(number):
        stem = tmp_path / f"module_{number}.cpu_after_optimizations"
        stem.with_name(f"{stem.name}.txt").write_text(HLO)
        stem.with_name(f"{stem.name}-memory-usage-report.txt").write_text(f"Total bytes used: {number}\n")

    dump(1)
    assert aot._read_early(tmp_path) is None
    (tmp_path / "row.json").write_text("{}")
    assert aot._read_early(tmp_path) is None
    dump(2)
    assert aot._read_early(tmp_path)["all_bytes"] == 2
