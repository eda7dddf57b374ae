"""What a compiler made of a program, read from the text of its optimized HLO."""

import collections
import functools
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_REDUCTIONS = ("reduce", "reduce-window", "select-and-scatter", "scatter")
_SIZES = {"f64": 8, "s64": 8, "u64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "s8": 1, "u8": 1, "pred": 1}
_ARRAY = re.compile(rf"\b({'|'.join(_SIZES)})\[([\d,]*)\](\{{[^}}]*\}})?")
# Operations that name, order or call and move no bytes themselves.
_FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call", "conditional", "after-all")


class Instruction(NamedTuple):
    """One line of HLO: name = type operation(rest; `operands` are the types of the operands."""

    name: str
    type: str
    operation: str
    rest: str
    operands: tuple[str, ...] = ()

    @property
    def dtype(self) -> str:
        """The element type, of a tuple the first one's."""
        return _dtype(self.type)

    def called(self, *attributes: str) -> list[str]:
        """The names of the computations in these attributes."""
        found = re.findall(rf"\b(?:{'|'.join(attributes)})=\{{?(%?[\w.\-]+(?:, ?%?[\w.\-]+)*)", self.rest)
        return [name.strip().removeprefix("%") for names in found for name in names.split(",") if "=" not in name]


def computations(text: str) -> dict[str, list[Instruction]]:
    """The instructions of each computation; the entry is named ENTRY."""
    found: dict[str, list[Instruction]] = {}
    rows: list[Instruction] = []
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) (?:\(.*)?\{\s*$", line)
        if head:
            rows = found.setdefault("ENTRY" if head[1] else head[2], [])
            continue
        row = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$", line)
        if row:
            rows.append(Instruction(row[1], row[2], row[3], row[4]))
    return {name: _with_operands(rows) for name, rows in found.items()}


def _with_operands(rows: list[Instruction]) -> list[Instruction]:
    types = {row.name: row.type for row in rows}

    def operands(row: Instruction) -> tuple[str, ...]:
        names = re.findall(r"(?:^|[ (])%?([\w.\-]+)(?=[,)]|$)", row.rest.split(")")[0])
        return tuple(types.get(name, "") for name in names)

    return [row._replace(operands=operands(row)) for row in rows]


def instructions(text: str) -> list[Instruction]:
    """Every instruction, those of fusions and loops too."""
    return [row for rows in computations(text).values() for row in rows]


class Executed(NamedTuple):
    """An instruction, how often the program runs it, and whether it is part of a fusion."""

    row: Instruction
    times: int
    fused: bool


def executed(bodies: dict[str, list[Instruction]]) -> Iterator[Executed]:
    """Every instruction that runs; a loop whose number of passes is not known counts as one pass."""

    def visit(name: str, times: int, fused: bool) -> Iterator[Executed]:
        for row in bodies.get(name, []):
            yield Executed(row, times, fused)
            if row.operation == "while":
                trips = re.search(r'known_trip_count"?:\{"n":"(\d+)"', row.rest)
                for body in row.called("body"):
                    yield from visit(body, times * int(trips[1] if trips else 1), fused)
            elif row.operation == "fusion":
                for body in row.called("calls"):
                    yield from visit(body, times, True)
            elif row.operation in ("call", "conditional", "async-start"):
                names = ("to_apply", "calls", "branch_computations", "true_computation", "false_computation")
                for body in row.called(*names):
                    yield from visit(body, times, fused)

    return visit("ENTRY", 1, False)


# --- What must not be there ---------------------------------------------------------------------


def bfloat16_sums(text: str) -> list[str]:
    """The reductions on a device whose adder is bfloat16; those between devices: `collectives`."""
    bodies = computations(text)
    found = []
    for row in instructions(text):
        if row.operation in _REDUCTIONS:
            adders = [inner for name in row.called("to_apply", "scatter") for inner in bodies.get(name, [])]
            found += [f"{row.operation} {row.type}" for a in adders if a.operation == "add" and a.dtype == "bf16"]
    return found


def host_traffic(text: str) -> list[str]:
    """The instructions that send to the host, receive from it or call it."""
    rows = instructions(text)
    transfers = [row.name for row in rows if row.operation in ("send", "recv", "infeed", "outfeed")]
    return transfers + [row.name for row in rows if row.operation == "custom-call" and "callback" in row.rest]


# --- What it costs ------------------------------------------------------------------------------


def products(text: str) -> collections.Counter[str]:
    """How often each kind of product occurs: types of the factors and precision, as "f32*f32 highest"."""
    return collections.Counter(_kind(row) for row in instructions(text) if _is_product(row))


def _kind(row: Instruction) -> str:
    stated = re.search(r'operand_precision"?[=:][\[{]"?(\w+)', row.rest)
    factors = "*".join(_dtype(operand) or "?" for operand in row.operands[:2])
    return f"{factors} {stated[1].lower() if stated else 'default'}"


def cost(text: str) -> dict[str, Any]:
    """What one run of the program on one device takes.

    Loops count as often as their known number of passes, which `cost_analysis()` does not do.

    Returns:
      flops: of convolutions and matrix products by kind, as in `products`: a multiplication and an addition are two,
        and zeros of padding do not count.
      bytes: that kernels read from and write to the main memory, an upper bound: a kernel reads all of each operand,
        or the slices that it takes. Nothing in a memory on the chip, nothing of collectives.
      kernels, cycles: how many, and the TPU compiler's `estimated_cycles`, by part of a training step (`part_of`).
      collectives: for each kind and type, as "all-reduce f32", how many and the bytes of their results on a device.
    """
    bodies = computations(text)
    size = 0
    flops: collections.Counter[str] = collections.Counter()
    kernels: collections.Counter[str] = collections.Counter()
    cycles: collections.Counter[str] = collections.Counter()
    moved: dict[str, dict[str, int]] = {}
    channels: set[str] = set()
    for row, times, fused in executed(bodies):
        kind = row.operation.removesuffix("-start")
        if _is_product(row):
            flops[_kind(row)] += times * _flops(row)
        channel = re.search(r"channel_id=(\d+)", row.rest)
        # A TPU runs a collective beside several fusions, each of which contains it.
        if kind in COLLECTIVES and not (channel and channel[1] in channels):
            channels |= {channel[1]} if channel else set()
            entry = moved.setdefault(f"{kind} {row.dtype}", {"count": 0, "bytes": 0})
            entry["count"] += times
            entry["bytes"] += times * array_bytes(row.type)
        if fused:
            continue
        part = part_of(row.rest)
        kernels[part] += times * (row.operation in ("fusion", "convolution", "dot", "custom-call", "copy"))
        estimate = re.search(r'estimated_cycles"?:"?(\d+)', row.rest)
        cycles[part] += times * int(estimate[1] if estimate else 0)
        if kind not in (*COLLECTIVES, *_FREE, "async") and not row.operation.endswith(("-done", "-update")):
            size += times * _traffic(row, bodies)
    counted = {"flops": dict(flops), "bytes": size, "kernels": dict(+kernels), "cycles": dict(+cycles)}
    return counted | {"collectives": moved}


def part_of(rest: str) -> str:
    """The part of a training step that an instruction belongs to, by the name of the operation it was made from."""
    name = re.search(r'op_name="([^"]*)"', rest)
    name = name[1] if name else ""
    if "/update/" in name or "/collect/" in name:
        return "update"
    if "/gather/" in name:
        return "gather"
    if "NCSNpp" in name or "MLP" in name:
        return "backward" if "transpose(jvp" in name else "forward"
    return "other"


def array_bytes(types: str, memory: str | None = None) -> int:
    """Bytes of every array in a piece of HLO text such as `(f32[3,4]{1,0}, bf16[2])`.

    Args:
      types: the text.
      memory: "main" leaves out arrays in a memory on the chip, whose layout has a memory space, as `{0:S(1)}`.
    """
    found = [m for m in _ARRAY.finditer(types) if memory is None or "S(" not in (m[3] or "")]
    return sum(_SIZES[m[1]] * math.prod(_dims(m[2])) for m in found)


def _traffic(row: Instruction, bodies: dict[str, list[Instruction]]) -> int:
    main = functools.partial(array_bytes, memory="main")
    if row.operation in ("slice", "dynamic-slice", "gather"):
        return 2 * main(row.type)
    if row.operation == "copy-start":  # (result, operand, flag)
        result = _ARRAY.search(row.type)
        return sum(map(main, row.operands)) + main(result[0] if result else "")
    read = list(map(main, row.operands))
    if row.operation == "fusion":
        for body in row.called("calls"):
            taken = _slices(bodies.get(body, []))
            read = [taken.get(i, size) if size else 0 for i, size in enumerate(read)]
    return sum(read) + main(row.type)


def _slices(rows: list[Instruction]) -> dict[int, int]:
    """Bytes that a fusion takes of those operands that it only slices."""
    numbers = {row.name: int(row.rest.split(")")[0]) for row in rows if row.operation == "parameter"}
    taken: dict[int, int] = {}
    whole: set[int] = set()
    for row in rows:
        for name in re.findall(r"%([\w.\-]+)", row.rest.split(")")[0]):
            number = numbers.get(name)
            if number is not None and row.operation in ("slice", "dynamic-slice", "gather"):
                taken[number] = taken.get(number, 0) + array_bytes(row.type)
            elif number is not None:
                whole.add(number)
    return {number: size for number, size in taken.items() if number not in whole}


def _is_product(row: Instruction) -> bool:
    """Whether it is a convolution, a matrix product or, on a GPU, a call of cuDNN or cuBLAS."""
    if row.operation == "custom-call":
        return bool(re.search(r'custom_call_target="__cu(?:dnn\$conv|blas\$)', row.rest))
    return row.operation in ("convolution", "dot")


def _flops(row: Instruction) -> int:
    left, right = (_shape(operand) for operand in row.operands[:2])
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", row.rest)
    if labels is None:  # a matrix product
        contracted = re.search(r'lhs_contracting_dim(?:ension)?s"?[=:][{\[]"?([\d,"]*)', row.rest)
        dims = [int(n) for n in re.findall(r"\d+", contracted[1])] if contracted else []
        return 2 * math.prod(_shape(row.type)) * math.prod(left[dim] for dim in dims)
    result = _shape(row.type)
    # The labels and the window are those of the forward convolution, also where cuDNN computes one of its gradients.
    if "convBackwardFilter" in row.rest:
        right, result = result, right
    elif "convBackwardInput" in row.rest:
        left, result = result, left
    sizes = [
        dict(zip(label, dims, strict=True)) for label, dims in zip(labels.groups(), (left, right, result), strict=True)
    ]
    data, kernel, out = sizes
    pairs = 1
    for axis in sorted(set(labels[2]) & set("0123456789")):
        pairs *= _pairs(_window(row.rest, int(axis)), data[axis], kernel[axis], out[axis])
    return 2 * out["b"] * out["f"] * kernel["i"] * pairs


def _window(rest: str, axis: int) -> dict[str, int]:
    """Stride, padding before the first pixel and dilations along an axis, from `window={size=3x3 pad=1_1x1_1 ...}`."""
    window = re.search(r"window=\{([^}]*)\}", rest)
    entries = dict(item.split("=") for item in window[1].split()) if window else {}
    found = {
        name: int(entries[name].split("x")[axis]) for name in ("stride", "lhs_dilate", "rhs_dilate") if name in entries
    }
    return found | ({"pad": int(entries["pad"].split("x")[axis].split("_")[0])} if "pad" in entries else {})


def _pairs(window: dict[str, int], data: int, kernel: int, out: int) -> int:
    """How many pairs of an output and a tap of the kernel meet a pixel, not a zero of padding or dilation."""
    step = window.get("lhs_dilate", 1)
    outputs, taps = np.arange(out)[:, None], np.arange(kernel)[None]
    place = outputs * window.get("stride", 1) - window.get("pad", 0) + taps * window.get("rhs_dilate", 1)
    return int(np.sum((place >= 0) & (place <= (data - 1) * step) & (place % step == 0)))


def _shape(type_: str) -> tuple[int, ...]:
    found = _ARRAY.search(type_)
    return _dims(found[2]) if found else ()


def _dims(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(",") if n)


def _dtype(type_: str) -> str:
    found = re.search(r"[a-z]\w*(?=\[)", type_)
    return found[0] if found else ""
