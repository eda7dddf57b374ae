"""What a compiler made of a program, read from its optimized HLO."""

import collections
import re
from typing import NamedTuple

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_REDUCTIONS = ("reduce", "reduce-window", "select-and-scatter", "scatter")


class Instruction(NamedTuple):
    """One line of HLO: name = type operation(rest."""

    name: str
    type: str
    operation: str
    rest: str

    @property
    def dtype(self) -> str:
        """The element type, of a tuple the first one's."""
        found = re.search(r"[a-z]\w*(?=\[)", self.type)
        return found[0] if found else ""


def computations(text: str) -> dict[str, list[Instruction]]:
    """The instructions of each computation."""
    found: dict[str, list[Instruction]] = {}
    rows: list[Instruction] = []
    for line in text.splitlines():
        head = re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line)
        if head:
            rows = found.setdefault(head[1], [])
            continue
        row = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$", line)
        if row:
            rows.append(Instruction(*row.groups()))
    return found


def instructions(text: str) -> list[Instruction]:
    """Every instruction, those of fusions and loops too."""
    return [row for rows in computations(text).values() for row in rows]


def bfloat16_sums(text: str) -> list[str]:
    """The reductions on a device whose adder is bfloat16; those between devices: `collectives`."""
    bodies = computations(text)
    found = []
    for row in instructions(text):
        body = re.search(r"(?:to_apply|scatter)=%?([\w.\-]+)", row.rest)
        if row.operation in _REDUCTIONS and body:
            adds = [inner for inner in bodies.get(body[1], []) if inner.operation == "add"]
            found += [f"{row.operation} {row.type}" for inner in adds if inner.dtype == "bf16"]
    return found


def host_traffic(text: str) -> list[str]:
    """The instructions that send to the host, receive from it or call it."""
    rows = instructions(text)
    transfers = [row.name for row in rows if row.operation in ("send", "recv", "infeed", "outfeed")]
    return transfers + [row.name for row in rows if row.operation == "custom-call" and "callback" in row.rest]


def collectives(text: str) -> collections.Counter[str]:
    """How often each collective occurs, as "all-reduce f32"."""
    rows = [(row.operation.removesuffix("-start"), row.dtype) for row in instructions(text)]
    return collections.Counter(f"{name} {dtype}" for name, dtype in rows if name in COLLECTIVES)


def products(text: str) -> collections.Counter[str]:
    """How often each kind of product occurs: types of the factors and precision, as "f32*f32 highest".

    Products are convolutions, dots and, on a GPU, calls of cuDNN and cuBLAS.
    """
    found: collections.Counter[str] = collections.Counter()
    for rows in computations(text).values():
        types = {row.name: row.dtype for row in rows}
        for row in rows:
            called = row.operation == "custom-call" and re.search(r'custom_call_target="__cu(?:dnn|blas)', row.rest)
            if row.operation in ("convolution", "dot") or called:
                operands = re.findall(r"%([\w.\-]+)", row.rest.split(")")[0])[:2]
                stated = re.search(r'operand_precision"?[=:][\[{]"?(\w+)', row.rest)
                precision = stated[1].lower() if stated else "default"
                found[f"{'*'.join(types.get(name, '?') for name in operands)} {precision}"] += 1
    return found
