"""The machine code of products' inner loops, for machines that are not at hand too: the instructions wanted, and nothing kept on the stack."""

from __future__ import annotations

import re

import llvmlite.binding as llvm
import pytest

from cermet import dtypes as dt
from cermet.compiler.kernels.contraction import ContractionSpec, plan
from cermet.compiler.llvm import jit
from cermet.compiler.llvm.target import Target, named

WANTED = {"x86-64-v3": r"vfmadd\S*p[sd]\s.*%ymm", "x86-64-v4": r"vfmadd\S*p[sd]\s.*%zmm", "aarch64": r"fmla\tv\d+\.[24][sd]"}
STACK = {"x86-64-v3": r"\(%rsp", "x86-64-v4": r"\(%rsp", "aarch64": r"\[sp"}


def assembly(target: Target, shape: tuple[int, int, int], dtype: dt.DType, flipped: bool) -> str:
    m, n, k = shape
    spec = ContractionSpec(dtype, dtype, dtype, m, n, k, (), (1, m) if flipped else (k, 1), (1, k) if flipped else (n, 1), (n, 1))
    out = []
    for launch in plan(spec, target).launches:
        machine = jit._machine(target, jit.FULL)
        with llvm.create_context() as context, llvm.parse_assembly(str(launch.build()), context) as parsed:
            jit._optimise(parsed, machine, jit.FULL)
            out.append(machine.emit_assembly(parsed))
    return "\n".join(out)


def inner_loops(text: str, multiply: str) -> list[list[str]]:
    """The instructions between a label and the next jump back to it, where many of them multiply."""
    lines, labels, out = text.splitlines(), {}, []
    for number, line in enumerate(lines):
        if label := re.match(r"(\.L\w+):", line):
            labels[label[1]] = number
        jump = re.match(r"\s+(?:j\w+|b\.?\w*|cbn?z|tbn?z)\s.*?(\.L\w+)\s*$", line)
        if jump and jump[1] in labels:
            body = lines[labels[jump[1]] : number + 1]
            if not any(re.match(r"\.L\w+:", x) for x in body[1:]) and sum(bool(re.search(multiply, x)) for x in body) >= 4:
                out.append(body)
    return out


@pytest.mark.parametrize("name", list(WANTED))
@pytest.mark.parametrize("dtype", [dt.float32, dt.float64], ids=str)
@pytest.mark.parametrize(
    ("shape", "flipped"), [((512, 512, 512), False), ((512, 512, 512), True), ((64, 64, 64), False), ((500, 8, 300), False), ((7, 900, 300), False)],
    ids=str,
)  # fmt: skip
def test_inner_loops_keep_everything_in_registers(name: str, dtype: dt.DType, shape: tuple[int, int, int], flipped: bool) -> None:
    text = assembly(named(name), shape, dtype, flipped)
    loops = inner_loops(text, WANTED[name])
    assert loops, "no inner loop of multiply-adds was found"
    for body in loops:
        spilled = [x for x in body if re.search(STACK[name], x)]
        assert not spilled, "\n".join(body)
