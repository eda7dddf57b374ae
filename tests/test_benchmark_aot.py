"""What `benchmarks.aot` reads off optimized HLO, on a program written by hand."""

import pytest

from benchmarks import aot

HLO = """\
HloModule jit_step

%fused (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %inner = f32[8]{0} multiply(%p, %p)
}

%body (s: (s32[], f32[8])) -> (s32[], f32[8]) {
  %s = (s32[], f32[8]{0}) parameter(0)
  %f = f32[8]{0} fusion(%s), kind=kLoop, calls=%fused, metadata={op_name="jit(step)/jvp(NCSNpp)/mul"}, \
backend_config={"window_config":{"estimated_cycles":"10"}}
  %sum = f32[8]{0} all-reduce(%f), to_apply=%add
  ROOT %t = (s32[], f32[8]{0}) tuple(%i, %sum)
}

%async_collective_fusion.1 (p: bf16[4]) -> bf16[64] {
  ROOT %gathered = bf16[64]{0} all-gather(%p), dimensions={0}
}

ENTRY %main (a: f32[8], b: bf16[2,3]) -> f32[8] {
  %a = f32[8]{0:T(256)} parameter(0)
  %loop = (s32[], f32[8]{0}) while(%a), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %back = f32[8]{0} convolution(%a, %a), metadata={op_name="jit(step)/transpose(jvp(NCSNpp))/conv"}, \
backend_config={"window_config":{"estimated_cycles":"100"}}
  %start = (f32[8]{0}, bf16[2,3]{1,0}) all-reduce-start(%a, %b), to_apply=%add
  %done = (f32[8]{0}, bf16[2,3]{1,0}) all-reduce-done(%start)
  %new = f32[8]{0} fusion(%a), calls=%fused, metadata={op_name="jit(step)/update/add"}, \
backend_config={"window_config":{"estimated_cycles":"7"}}
  ROOT %out = f32[8]{0} copy(%new), backend_config={"window_config":{"estimated_cycles":"1"}}
}
"""


def test_kernels_and_cycles_by_part_loops_as_often_as_they_run():
    found = aot.facts(HLO)
    assert found["cycles"] == {"forward": 30, "backward": 100, "update": 7, "other": 1}
    assert found["kernels"] == {"forward": 3, "backward": 1, "update": 1, "other": 1}


def test_collectives_by_type_with_the_bytes_of_their_results():
    assert aot.facts(HLO)["collectives"] == {
        "all-reduce f32": {"count": 4, "bytes": 3 * 32 + 32 + 12},
        "all-gather bf16": {"count": 1, "bytes": 128},
    }


@pytest.mark.parametrize(
    ("types", "size"),
    [("f32[3,4]{1,0:T(8,128)}", 48), ("(bf16[2], u8[5], pred[])", 10), ("f32[]", 4), ("token[]", 0), ("f32[0,4]", 0)],
)
def test_bytes_of_types(types, size):
    assert aot.array_bytes(types) == size


def test_the_roofline_is_the_slower_of_compute_and_memory():
    row = aot.with_roofline({"topology": "v5e:4x4", "flops": 197e9, "bytes": 819e7})
    assert row["roofline_seconds"] == pytest.approx(1e-2) and row["utilization_bound"] == pytest.approx(0.1)
    assert "roofline_seconds" not in aot.with_roofline({"topology": "v5e:4x4", "flops": None, "bytes": None})
