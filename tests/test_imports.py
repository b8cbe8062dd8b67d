"""Who may import whom, how large a file may grow, and what importing Cermet costs.

The tests named ``process`` start Python anew and measure; the others only read the sources, and `make check` runs those alone.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "cermet"

# Rooms from top to bottom (docs/notes/contracts.md). An import goes down, or stays in its room. "" is cermet/__init__.py.
LAYERS = (
    ("cli", "__main__"),
    ("",),
    # Names that PyTorch's users expect, gathered from the rooms below.
    ("amp", "autograd", "cuda", "fft", "func", "linalg", "special", "utils"),
    ("debug", "distributed", "export", "serve", "summary"),
    ("capture",),
    ("data", "distributions", "io", "nn", "optim"),
    ("frontend",),
    ("lazy",),
    ("compiler",),
    ("ops",),
    ("graph",),
    ("runtime",),
    ("config", "devices", "dtypes", "random"),
)

# Rooms on one layer do not know each other, but for these.
NEIGHBOURS = {
    ("cuda", "amp"): "cuda.amp has amp's names for one device",
    ("optim", "nn"): "optim.swa_utils averages a Module",
    ("devices", "config"): "leaves",
    ("random", "config"): "leaves",
    ("random", "devices"): "leaves",
    ("random", "dtypes"): "leaves",
}

# The same inside cermet/compiler; what is named in no row (compiler/__init__.py and its plain modules) stands above all of these.
COMPILER_LAYERS = (("passes",), ("schedule",), ("kernels",), ("llvm", "reference"), ("loops",))

# (room, what it must not know), narrower than the layers.
STRANGERS = (
    ("cermet.compiler.kernels", ("cermet.ops", "cermet.graph")),
    ("cermet.compiler.llvm", ("cermet.ops", "cermet.graph")),
    ("cermet.compiler.loops", ("cermet.ops", "cermet.graph", "cermet.runtime")),
)

# What may be imported when Cermet is; anything else of other people's is imported where it is used.
REQUIRED = {"llvmlite", "ml_dtypes", "numpy"}
# Only these write machine code.
KNOWS_LLVM = ("cermet.compiler", "cermet.runtime", "cermet.export")

MOST_LINES = 600
# A file that is larger, and why it is still one room: {"cermet/room/file.py": "reason"}.
LARGE: dict[str, str] = {}

IMPORT_SECONDS = 0.25


class Import(NamedTuple):
    """One module imported by another; ``deferred`` when it happens inside a function."""

    source: str
    target: str
    where: str
    deferred: bool
    typing: bool


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = {module_name(path): path for path in FILES}


def is_typing_guard(node: ast.AST) -> bool:
    test = node.test if isinstance(node, ast.If) else None
    name = test.id if isinstance(test, ast.Name) else test.attr if isinstance(test, ast.Attribute) else ""
    return name == "TYPE_CHECKING"


def walk(node: ast.AST, deferred: bool = False, typing: bool = False) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, deferred, typing
        inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from walk(child, deferred or inside, typing or is_typing_guard(child))


def imports_of(name: str, path: Path) -> Iterator[Import]:
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node, deferred, typing in walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        where = f"{path.relative_to(ROOT)}:{node.lineno}"
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        else:
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([node.module] if node.module else [])])
            # `from cermet import config` imports cermet.config; `from cermet.dtypes import DType` imports cermet.dtypes.
            targets = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base for alias in node.names]
        for target in dict.fromkeys(targets):
            yield Import(name, target, where, deferred, typing)


IMPORTS = [found for name, path in MODULES.items() for found in imports_of(name, path)]
INTERNAL = [found for found in IMPORTS if found.target.split(".")[0] == "cermet"]


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def rank(name: str, layers: tuple[tuple[str, ...], ...]) -> int | None:
    """The row in which a room stands, 0 at the top; None for a room in no row."""
    return next((row for row, names in enumerate(layers) if name in names), None)


def under(module: str, rooms: tuple[str, ...]) -> bool:
    return any(module == name or module.startswith(name + ".") for name in rooms)


def complain(found: list[str], advice: str) -> None:
    assert not found, "\n  ".join(["", *found, advice])


def test_layers_every_room_has_a_place() -> None:
    rooms = {room(name) for name in MODULES}
    complain(
        sorted(f"cermet/{name} is in no layer" for name in rooms if rank(name, LAYERS) is None),
        "give it a place in LAYERS and in docs/notes/contracts.md",
    )


def test_layers_imports_go_down() -> None:
    found = []
    for one in INTERNAL:
        source, target = room(one.source), room(one.target)
        if source == target:
            continue
        high, low = rank(source, LAYERS), rank(target, LAYERS)
        if high is None or low is None or high < low or (high == low and (source, target) in NEIGHBOURS):
            continue
        relation = "above" if high > low else "beside"
        found.append(f"{one.where}: {one.source} imports {one.target}, which stands {relation} it")
    complain(found, "an import goes down: move what is shared into a lower room, or let the upper room hand it in")


def test_layers_inside_the_compiler() -> None:
    found = []
    for one in INTERNAL:
        source, target = one.source.split("."), one.target.split(".")
        if source[1:2] != ["compiler"] or target[1:2] != ["compiler"] or source[2:3] == target[2:3]:
            continue
        high = rank(source[2], COMPILER_LAYERS) if len(source) > 2 else None
        low = rank(target[2], COMPILER_LAYERS) if len(target) > 2 else None
        if high is None or (low is not None and high < low):
            continue
        found.append(f"{one.where}: {one.source} imports {one.target}")
    complain(found, "inside the compiler: passes > schedule > kernels > llvm, reference > loops")


def test_layers_strangers() -> None:
    found = [
        f"{one.where}: {one.source} imports {one.target}"
        for one in INTERNAL
        for name, unknown in STRANGERS
        if under(one.source, (name,)) and under(one.target, unknown)
    ]
    complain(found, "see STRANGERS")


def test_layers_no_cycle_while_importing() -> None:
    """Modules that import each other while being imported work by luck of order."""
    edges: dict[str, set[str]] = {name: set() for name in MODULES}
    for one in INTERNAL:
        if not one.deferred and not one.typing and one.target in MODULES and one.target != one.source:
            edges[one.source].add(one.target)
    state: dict[str, int] = {}
    for start in edges:
        trail: list[str] = []
        stack = [(start, iter(sorted(edges[start])))] if start not in state else []
        while stack:
            name, rest = stack[-1]
            if state.get(name) is None:
                state[name] = 1
                trail.append(name)
            follower = next(rest, None)
            if follower is None:
                state[name] = 2
                trail.pop()
                stack.pop()
            elif state.get(follower) == 1:
                pytest.fail("import cycle: " + " -> ".join([*trail[trail.index(follower) :], follower]))
            elif follower not in state:
                stack.append((follower, iter(sorted(edges[follower]))))


def test_layers_third_parties_are_few() -> None:
    known = set(sys.stdlib_module_names) | REQUIRED | {"cermet"}
    found = [
        f"{one.where}: {one.source} imports {one.target}"
        for one in IMPORTS
        if one.target.split(".")[0] not in known and not one.deferred and not one.typing
    ]
    complain(
        found,
        f"only {', '.join(sorted(REQUIRED))} may be imported with Cermet; import others inside the function that needs them",
    )


def test_layers_llvm_is_the_compilers() -> None:
    found = [
        f"{one.where}: {one.source} imports {one.target}"
        for one in IMPORTS
        if one.target.split(".")[0] == "llvmlite" and not under(one.source, KNOWS_LLVM)
    ]
    complain(found, f"only {', '.join(KNOWS_LLVM)} know LLVM")


def test_files_are_rooms_not_halls() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    found = [f"{name} has {lines} lines" for name, lines in lengths.items() if lines > MOST_LINES and name not in LARGE]
    complain(found, f"more than {MOST_LINES} lines ask to be two files (or name the file in LARGE with the reason)")
    stale = [name for name in LARGE if lengths.get(name, 0) <= MOST_LINES]
    complain(stale, "these are no longer large: take them out of LARGE")


def test_project_version_is_told_once() -> None:
    """``cermet.__version__``, where it is written out, is the project's."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id == "__version__" for to in node.targets):
            assert ast.literal_eval(node.value) == declared
    assert (PACKAGE / "py.typed").exists()


def python(code: str, **environment: str) -> Any:
    """What ``code``, run by a fresh Python in the root of the project, prints as JSON."""
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr == "", run.stderr
    return json.loads(run.stdout)


def test_process_import_is_quick(tmp_path: Path) -> None:
    # Processor time: with a warm file cache it is what a clock shows on a machine that does nothing else.
    code = "import json, time; t = time.process_time(); import cermet; print(json.dumps(time.process_time() - t))"
    # An installed package has byte code, whatever the shell that runs the tests says about writing it (empty means unset).
    # NumPy starts threads for its BLAS, which spin a while and count as processor time.
    byte_code = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path), "OPENBLAS_NUM_THREADS": "1"}
    python(code, **byte_code)
    seconds = min(python(code, **byte_code) for _ in range(7))
    assert seconds <= IMPORT_SECONDS, f"importing takes {seconds:.3f} s"


def test_process_import_has_no_side_effects() -> None:
    """Importing starts no threads and no processes, touches no accelerator, changes no signal handlers and writes no files."""
    code = """
import json, os, signal, sys, threading, tempfile

def tasks():
    return len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else threading.active_count()

def handlers():
    return [str(signal.getsignal(number)) for number in sorted(signal.valid_signals())]

HEAVY = "asyncio matplotlib multiprocessing onnx safetensors scipy sklearn torch tqdm".split()

import numpy  # its BLAS may start threads of its own
import ml_dtypes
cache = tempfile.mkdtemp()
os.environ["CERMET_CACHE_DIR"] = os.path.join(cache, "cermet")
before, old, environment = tasks(), handlers(), dict(os.environ)
import cermet
maps = open("/proc/self/maps").read() if os.path.exists("/proc/self/maps") else ""
print(json.dumps({
    "threads": tasks() - before,
    "python_threads": threading.active_count(),
    "handlers": old == handlers(),
    "environment": environment == dict(os.environ),
    "files": os.listdir(cache),
    "accelerator": [name for name in ("libcuda", "libcudart", "libnvidia", "libamdhip") if name in maps],
    "heavy": sorted(set(HEAVY) & set(sys.modules)),
}))
os.rmdir(cache)
"""
    assert python(code) == {
        "threads": 0,
        "python_threads": 1,
        "handlers": True,
        "environment": True,
        "files": [],
        "accelerator": [],
        "heavy": [],
    }


@pytest.mark.parametrize("variable", ["CERMET_EAGER", "CERMET_VERIFY", "CERMET_REFERENCE"])
def test_process_import_under_every_switch(variable: str) -> None:
    environment = {**os.environ, variable: "1"}
    subprocess.run([sys.executable, "-c", "import cermet"], cwd=ROOT, env=environment, check=True, timeout=120)
