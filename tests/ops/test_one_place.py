"""An op is named in one place, its record: no list of op names is kept by hand elsewhere."""

from __future__ import annotations

import ast
from pathlib import Path

import cermet  # loads all records
from cermet.ops.define import REGISTRY
from cermet.ops.public import PUBLIC

PACKAGE = Path(cermet.__file__).parent
NAMES = set(REGISTRY) | {name for _, name in PUBLIC}
# The compiler may name its primitives: each needs code of its own there. Anything beyond these is an op.
PRIMITIVE = {
    op.name for op in REGISTRY.values() if op.kind in ("leaf", "movement", "reduce", "gather", "scatter", "scan", "sort")
}
COMPILED = set(REGISTRY) - PRIMITIVE
# Python's own operator methods; and the rooms that speak of the loop IR, whose operations share names with ops.
ALLOWED = ("frontend/attach.py", "compiler/loops/", "compiler/llvm/")
# Lists that stand now, and why: {"file": "reason"}. One that has gone must go from here too.
KNOWN = {
    "lazy/number.py": "operators of Python's numbers",
    "capture/arithmetic.py": "operators of Python's numbers",
    "nn/init.py": "names of nonlinearities are the arguments of calculate_gain",
}
# So many op names in one display are a list of ops, not an accident.
MANY = 4


def listed(node: ast.AST) -> list[str]:
    """The texts of a list, tuple, set or dict display, or of a text that is split."""
    if isinstance(node, ast.List | ast.Tuple | ast.Set):
        items: list[ast.expr | None] = [*node.elts]
    elif isinstance(node, ast.Dict):
        items = [*node.keys]
    else:
        return []
    return [i.value for i in items if isinstance(i, ast.Constant) and isinstance(i.value, str)]


def test_no_list_of_ops_outside_the_records() -> None:
    found = []
    stale = set(KNOWN)
    for path in sorted(PACKAGE.rglob("*.py")):
        where = path.relative_to(PACKAGE).as_posix()
        if where.startswith(("ops/", *ALLOWED)):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        exported = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__"}
        for node in ast.walk(tree):
            counted = COMPILED if where.startswith("compiler/") else NAMES
            names = [n for n in listed(node) if n in counted] if id(node) not in exported else []
            if len(names) >= MANY and where in KNOWN:
                stale.discard(where)
            elif len(names) >= MANY:
                found.append(f"{where}:{node.lineno} lists the ops {', '.join(names[:8])}")
    assert not found, "\n  ".join(["", *found, "say it in the op's record (cermet/ops), and derive it from there"])
    assert not stale, f"take these out of KNOWN: {sorted(stale)}"


def test_public_functions_are_documented() -> None:
    missing = [name for (_, name), record in PUBLIC.items() if not (record.fn.__doc__ or "").strip()]
    assert not missing, f"public functions without a docstring: {missing}"
