"""One run of a function under capture: which state it reads and writes, and with which numbers it computes.

State is found, not declared. What was there before the run (a parameter, its gradient, a buffer, an optimizer's moment) is *outside*: the
first touch gives it a stand-in, a placeholder node on the capture's tape, and all that the function does to it happens to an overlay. So
the run itself changes nothing outside, another thread sees nothing of it, and a failure leaves everything as it was. What the function
makes is *inside*.
"""

from __future__ import annotations

from typing import Any

from cermet.capture.errors import CaptureError
from cermet.capture.watch import SLOTS
from cermet.frontend import core
from cermet.frontend.core import Alias, Storage, TensorBase
from cermet.frontend.gradients import Accumulate, GradFn
from cermet.graph.node import Meta, Node
from cermet.lazy import evaluate as ev
from cermet.lazy.number import Number
from cermet.lazy.record import Tape, describe_location, local, record, user_location
from cermet.ops.leaf import placeholder
from cermet.random import _MASK, _signed

__all__ = ["Cell", "Recorder"]


class Cell:
    """A piece of state outside, as an input of the captured program.

    Attributes:
        kind: "arg" (holder: number of the argument), "handle" (a tensor that shares its memory with nobody), "storage" (what a tensor and
            its views share), "grad" (the gradient that an accumulator holds) or "arggrad" (the same of an argument).
        node: its stand-in. value: its node as it was. scalar: whether its value is a Python number.
    """

    __slots__ = ("holder", "kind", "meta", "node", "scalar", "value")

    def __init__(self, kind: str, holder: Any, node: Node, value: Node) -> None:
        self.kind = kind
        self.holder = holder
        self.node = node
        self.value: Any = value
        self.meta: Meta = node.meta
        self.scalar = isinstance(value.buffer, bool | int | float)


class _Outside:
    """One object that was there before: what its slots hold, as they were and as the function left them."""

    __slots__ = ("before", "cell", "now", "obj")

    def __init__(self, obj: Any, before: dict[str, Any]) -> None:
        self.obj = obj
        self.cell: Any = None
        self.before = before
        self.now = dict(before)


class Recorder:
    """What one captured run touches. The methods without underscore are called by what is watched and by `Number`.

    Attributes:
        cells: inputs found, in order. by_node: stand-in -> its cell. outside, inside: by id of the object.
        guards: (operation, number, number, outcome) of comparisons that decided something.
        draws: generators drawn from, each with the count so far. optimizers: those stepped, with stand-ins of their groups.
    """

    def __init__(self, outer: Tape, args: list[Any]) -> None:
        self.outer = outer
        self.tape = Tape()
        self.tape.grad = outer.grad
        self.tape.eager = False
        self.tape.most_nodes = self.tape.most_bytes = 1 << 62
        self.tape.capture = self
        self.cells: list[Cell] = []
        self.by_node: dict[Node, Cell] = {}
        self.outside: dict[int, _Outside] = {}
        self.inside: dict[int, Any] = {}
        self.args = {id(t): k for k, t in reversed(list(enumerate(args)))}
        self.provenance: dict[int, Accumulate] = {}
        self.guards: dict[Any, tuple[str, Any, Any, bool]] = {}
        self.numbers: dict[Any, Number] = {}
        self.draws: list[list[Any]] = []
        self.optimizers: dict[int, tuple[Any, list[dict[str, Any]]]] = {}

    # ------------------------------------------------------------------------------------------------------ state

    def read(self, obj: Any, cls: type, name: str) -> Any:
        """A slot of an object, as the function shall see it."""
        found = self.outside.get(id(obj))
        if found is None:
            if id(obj) in self.inside:
                return SLOTS[cls][name].__get__(obj)
            found = self._touch(obj, cls)
        try:
            return found.now[name]
        except KeyError:
            raise AttributeError(name) from None

    def write(self, obj: Any, cls: type, name: str, value: Any) -> None:
        """Put a value into a slot; what was there before the run only gets it in its overlay."""
        found = self.outside.get(id(obj))
        if found is None and id(obj) not in self.inside:
            try:
                SLOTS[cls][name].__get__(obj)
            except AttributeError:  # it is being made
                self.inside[id(obj)] = obj
            else:
                found = self._touch(obj, cls)
        if found is None:
            SLOTS[cls][name].__set__(obj, value)
        else:
            found.now[name] = value

    def _touch(self, obj: Any, cls: type) -> _Outside:
        if cls is GradFn:
            raise CaptureError(
                f"backward at {describe_location(user_location())} reaches what was computed before the compiled function: its values "
                "are no inputs. Compute them inside, .detach() what comes from outside, or call backward outside"
            )
        before = {}
        for name, slot in SLOTS[cls].items():
            try:
                before[name] = slot.__get__(obj)
            except AttributeError:
                continue
        found = self.outside[id(obj)] = _Outside(obj, before)
        if cls is TensorBase:
            self._touch_tensor(obj, found)
        elif cls is Storage:
            found.cell = self.cell("storage", obj, before["node"])
            found.now["node"] = found.cell.node
        elif cls is Accumulate and before["grad"] is not None:
            self.provenance[id(before["grad"])] = obj
        return found

    def _touch_tensor(self, t: Any, found: _Outside) -> None:
        now, alias = found.now, found.before["_alias"]
        number = self.args.get(id(t))
        if number is not None:
            now["_alias"] = None
            found.cell = self.cell("arg", number, self._current(t, alias, found.before["_node"]))
            now["_node"] = found.cell.node
        elif alias is None:
            owner = self.provenance.get(id(t))
            kind, holder = ("handle", t) if owner is None else self.accumulator(owner)
            found.cell = self.cell(kind, holder, found.before["_node"])
            now["_node"] = found.cell.node
        else:
            own = now["_alias"] = Alias(alias.storage, alias.history, alias.chain)
            own.version = -1
            core._sync(t)  # through the storage, whose stand-in it then views

    def _current(self, t: Any, alias: Any, node: Node) -> Node:
        """The node of a tensor outside, brought up to date outside."""
        if alias is None or alias.version == SLOTS[Storage]["version"].__get__(alias.storage):
            return node
        local.tape = self.outer
        try:
            return core.node_of(t)
        finally:
            local.tape = self.tape

    def accumulator(self, owner: Accumulate) -> tuple[str, Any]:
        """Kind and holder of the gradient in an accumulator."""
        for state in list(self.outside.values()):
            number = self.args.get(id(state.obj))
            if number is not None and state.before.get("_fn") is owner:
                return "arggrad", number
        return "grad", owner

    def cell(self, kind: str, holder: Any, node: Node) -> Cell:
        """A new input with the value of ``node``, which is computed now where it is pending."""
        if node.buffer is None:
            local.tape = self.outer
            try:
                ev.buffer_of(node)
            finally:
                local.tape = self.tape
        m = node.meta
        stand_in = record(self.tape, placeholder.call_for((m, ""), ()), (), None)
        cell = Cell(kind, holder, stand_in, node)
        self.cells.append(cell)
        self.by_node[stand_in] = cell
        return cell

    def observed(self, node: Node) -> None:
        """Somebody looks at a value that is not there yet."""
        made = describe_location(node.where)
        raise CaptureError(
            f"the value of a tensor of shape {list(node.meta.shape)}{f' (made at {made})' if made else ''} is looked at at "
            f"{describe_location(user_location())}, inside a compiled function, which has no values while it is captured. Choose between "
            "values with cermet.where(condition, a, b), return what is to be printed or stored and look at it outside, or take the "
            "function that looks out of cermet.compile"
        )

    # ---------------------------------------------------------------------------------------------------- numbers

    def source(self, kind: str, args: tuple[Any, ...], value: Any, internal: bool = True) -> Number:
        """A number that a replay reads anew."""
        key = (kind, *[a if isinstance(a, int | str | None) else id(a) for a in args])
        found = self.numbers.get(key)
        if found is None:
            found = self.numbers[key] = Number(self, kind, args, value, internal)
        return found

    def combine(self, op: str, args: tuple[Any, ...], value: Any) -> Number:
        """The number that an operation on numbers gives; the same one for the same operands."""
        key = (op, *[id(a) if type(a) is Number else (type(a), repr(a)) for a in args])
        found = self.numbers.get(key)
        if found is None:
            internal = all(a.internal for a in args if type(a) is Number)
            found = self.numbers[key] = Number(self, op, args, value, internal)
        return found

    def guard(self, op: str, a: Any, b: Any, outcome: bool) -> bool:
        """A comparison decides something: replays hold only while it comes out like this."""
        key = (op, id(a), id(b) if type(b) is Number else repr(b))
        self.guards[key] = (op, a, b, outcome)
        return outcome

    def number_at(self, tensor: Any) -> Any:
        """The number in a tensor of one element, read anew by replays; numbers that are equal now must stay so."""
        node = core.node_of(tensor)
        if node.buffer is not None:
            return node.buffer if isinstance(node.buffer, bool | int | float) else tensor.item()
        cell = self.by_node.get(node)
        if cell is None or cell.kind == "arg":
            return tensor.item()
        value = cell.value.buffer
        if not cell.scalar:
            from cermet.lazy.values import stored_array

            value = stored_array(cell.value).item()
        number = self.source("cell", (cell,), value)
        for other in list(self.numbers.values()):
            if other is number:
                break
            if other.op == "cell" and other.value == value and type(other.value) is type(value):
                self.guard("eq", number, other, True)
                return other
        return number

    def groups(self, optimizer: Any) -> list[dict[str, Any]]:
        """The parameter groups of an optimizer, with numbers that replays read anew."""
        known = self.optimizers.get(id(optimizer))
        if known is None:
            known = self.optimizers[id(optimizer)] = (optimizer, [self._group(g) for g in optimizer.param_groups])
        return known[1]

    def let_go(self) -> None:
        """Forget values and objects: what an entry keeps of this run must hold no memory of the state as it was."""
        for cell in self.cells:
            cell.value = None
        for number in self.numbers.values():
            number.home = None
        self.outside.clear()
        self.inside.clear()

    def _group(self, group: dict[str, Any]) -> dict[str, Any]:
        out = dict(group)
        for key, value in group.items():
            if type(value) in (int, float):
                out[key] = self.source("option", (group, key, None), value)
            elif type(value) in (tuple, list) and value and all(type(v) in (int, float) for v in value):
                out[key] = tuple([self.source("option", (group, key, k), v) for k, v in enumerate(value)])
        return out

    def draw(self, generator: Any, count: int | None) -> Any:
        """(key, first counter) of a draw from a generator, whose state replays read and move on."""
        if count is None:
            raise CaptureError(
                f"the state of a random generator is read or set at {describe_location(user_location())}, inside a compiled function: "
                "that would happen once, not in each call. Do it outside"
            )
        number = next((k for k, d in enumerate(self.draws) if d[0] is generator), len(self.draws))
        if number == len(self.draws):
            self.draws.append([generator, 0, generator.state_numbers()])
        found = self.draws[number]
        seed, offset = found[2]
        place = found[1]
        found[1] += count
        key = self.source("draw", (number, None), _signed(seed))
        return key, self.source("draw", (number, place), _signed((offset + place) & _MASK))
