"""Small kernels that obey the kernel ABI, compiled once, for the tests of the runtime."""

from __future__ import annotations

import pytest

IR = """
; args: out, in, n per block, addend (float32): out[i] = in[i] + addend for the elements of the blocks
define void @add(ptr %args, i64 %begin, i64 %end, ptr %scratch) {
entry:
  %out = load ptr, ptr %args
  %in.at = getelementptr i64, ptr %args, i64 1
  %in = load ptr, ptr %in.at
  %per.at = getelementptr i64, ptr %args, i64 2
  %per = load i64, ptr %per.at
  %s.at = getelementptr i64, ptr %args, i64 3
  %s = load float, ptr %s.at
  %first = mul i64 %begin, %per
  %last = mul i64 %end, %per
  br label %look
look:
  %i = phi i64 [ %first, %entry ], [ %i1, %body ]
  %more = icmp slt i64 %i, %last
  br i1 %more, label %body, label %out.block
body:
  %p = getelementptr float, ptr %in, i64 %i
  %x = load float, ptr %p
  %y = fadd float %x, %s
  %q = getelementptr float, ptr %out, i64 %i
  store float %y, ptr %q
  %i1 = add i64 %i, 1
  br label %look
out.block:
  ret void
}

; args: out (one float64 per block), in (float32), n: block b writes the sum of in[(b * 7 + i) % n] for i < n, in that order,
; with a running sum kept in scratch: every block reads everything the launch before wrote
define void @reduce(ptr %args, i64 %begin, i64 %end, ptr %scratch) {
entry:
  %out = load ptr, ptr %args
  %in.at = getelementptr i64, ptr %args, i64 1
  %in = load ptr, ptr %in.at
  %n.at = getelementptr i64, ptr %args, i64 2
  %n = load i64, ptr %n.at
  br label %look
look:
  %b = phi i64 [ %begin, %entry ], [ %b1, %end.block ]
  %more = icmp slt i64 %b, %end
  br i1 %more, label %start, label %leave
start:
  store double 0.0, ptr %scratch
  %shift = mul i64 %b, 7
  br label %inner
inner:
  %i = phi i64 [ 0, %start ], [ %i1, %body ]
  %again = icmp slt i64 %i, %n
  br i1 %again, label %body, label %end.block
body:
  %j0 = add i64 %i, %shift
  %j = urem i64 %j0, %n
  %p = getelementptr float, ptr %in, i64 %j
  %x = load float, ptr %p
  %xd = fpext float %x to double
  %old = load volatile double, ptr %scratch
  %new = fadd double %old, %xd
  store volatile double %new, ptr %scratch
  %i1 = add i64 %i, 1
  br label %inner
end.block:
  %sum = load double, ptr %scratch
  %q = getelementptr double, ptr %out, i64 %b
  store double %sum, ptr %q
  %b1 = add i64 %b, 1
  br label %look
leave:
  ret void
}

; args: out (5 int64), then five arguments that are copied there
define void @copy(ptr %args, i64 %begin, i64 %end, ptr %scratch) {
entry:
  %out = load ptr, ptr %args
  br label %look
look:
  %i = phi i64 [ 0, %entry ], [ %i1, %look ]
  %i1 = add i64 %i, 1
  %p = getelementptr i64, ptr %args, i64 %i1
  %x = load i64, ptr %p
  %q = getelementptr i64, ptr %out, i64 %i
  store i64 %x, ptr %q
  %more = icmp slt i64 %i1, 5
  br i1 %more, label %look, label %leave
leave:
  ret void
}

; args: out (float32), in (float32): out[0] = in[0] * in[1], for denormals
define void @multiply(ptr %args, i64 %begin, i64 %end, ptr %scratch) {
  %out = load ptr, ptr %args
  %in.at = getelementptr i64, ptr %args, i64 1
  %in = load ptr, ptr %in.at
  %x = load float, ptr %in
  %in1 = getelementptr float, ptr %in, i64 1
  %y = load float, ptr %in1
  %z = fmul float %x, %y
  store float %z, ptr %out
  ret void
}

; args: out (int64 per block), rounds: keeps busy for rounds steps per block and counts the calls of each block
define void @busy(ptr %args, i64 %begin, i64 %end, ptr %scratch) {
entry:
  %out = load ptr, ptr %args
  %rounds.at = getelementptr i64, ptr %args, i64 1
  %rounds = load i64, ptr %rounds.at
  br label %look
look:
  %b = phi i64 [ %begin, %entry ], [ %b1, %count ]
  %more = icmp slt i64 %b, %end
  br i1 %more, label %start, label %leave
start:
  store i64 0, ptr %scratch
  br label %inner
inner:
  %i = load volatile i64, ptr %scratch
  %i1 = add i64 %i, 1
  store volatile i64 %i1, ptr %scratch
  %again = icmp slt i64 %i1, %rounds
  br i1 %again, label %inner, label %count
count:
  %q = getelementptr i64, ptr %out, i64 %b
  %old = load i64, ptr %q
  %new = add i64 %old, 1
  store i64 %new, ptr %q
  %b1 = add i64 %b, 1
  br label %look
leave:
  ret void
}
"""


class Kernels:
    """Addresses of the kernels, and the engine that owns them."""

    def __init__(self) -> None:
        import llvmlite.binding as llvm

        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        machine = llvm.Target.from_default_triple().create_target_machine(opt=2, jit=True)
        self.engine = llvm.create_mcjit_compiler(llvm.parse_assembly(IR), machine)
        self.engine.finalize_object()
        for name in ("add", "reduce", "copy", "multiply", "busy"):
            setattr(self, name, self.engine.get_function_address(name))


@pytest.fixture(scope="session")
def kernels() -> Kernels:
    return Kernels()
