"""What users hold: the Tensor class. Its functions come from the op records; here stand identity, gradients, observation and operators."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from cermet import dtypes as dt
from cermet.devices import Device
from cermet.frontend import core, layout, memo, writing
from cermet.frontend.autograd import backward
from cermet.frontend.core import TensorBase, apply, check_writable, fn_of, new_tensor, node_of, write
from cermet.frontend.gradients import Accumulate, GradFn, Pick, add_hook
from cermet.lazy import evaluate as ev
from cermet.ops import indexing
from cermet.ops.define import hooks
from cermet.ops.public import Entry

__all__ = ["Size", "Tensor"]

_indexed = Entry(indexing.getitem)


class Size(tuple[int, ...]):
    """A shape: a tuple of ints with ``numel()``."""

    __slots__ = ()

    def numel(self) -> int:
        """Number of elements."""
        n = 1
        for s in self:
            n *= s
        return n

    def __repr__(self) -> str:
        return f"cermet.Size({list(self)})"

    def __getitem__(self, index: Any) -> Any:
        out = tuple.__getitem__(self, index)
        return Size(out) if isinstance(index, slice) else out


class RemovableHandle:
    """Removes a hook: ``handle.remove()``, or as a context manager."""

    def __init__(self, remove: Callable[[], Any]) -> None:
        self.remove = remove

    def __enter__(self) -> RemovableHandle:
        return self

    def __exit__(self, *_: Any) -> None:
        self.remove()


class Tensor(TensorBase):
    """A multi-dimensional array of one dtype that records what is done to it, and is computed when somebody looks.

    Made by `cermet.tensor`, `cermet.zeros` and the like, and by every op.
    """

    __slots__ = ()

    if TYPE_CHECKING:
        # Methods derived from the op records (`cermet.frontend.attach`).
        def __getattr__(self, name: str) -> Any: ...

    def __new__(cls, data: Any = None, *_: Any, **__: Any) -> Any:
        if data is None:
            data = np.zeros((0,), np.float32)
        source = data if isinstance(data, TensorBase) else hooks.to_tensor(data, dtype=dt.get_default_dtype(), like=None)
        t = object.__new__(cls)
        t._node = node_of(source)
        t._fn = None
        t._alias = None
        t._grad = None
        return t

    # -------------------------------------------------------------------------------------------- what it is

    @property
    def shape(self) -> Size:
        """Sizes of the dimensions."""
        return Size(self._node.meta.shape)

    @property
    def dtype(self) -> dt.DType:
        return self._node.meta.dtype

    @property
    def device(self) -> Device:
        return self._node.meta.device

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return self._node.meta.ndim

    def dim(self) -> int:
        """Number of dimensions."""
        return self._node.meta.ndim

    def size(self, dim: int | None = None) -> Any:
        """The shape, or the size of one dimension."""
        return self.shape if dim is None else self._node.meta.shape[dim]

    def numel(self) -> int:
        """Number of elements."""
        return self._node.meta.numel

    nelement = numel

    def element_size(self) -> int:
        """Bytes of one element."""
        return self.dtype.itemsize

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        return self._node.meta.nbytes

    def __len__(self) -> int:
        if self.ndim == 0:
            raise TypeError("len() of a 0-dimensional tensor")
        return self._node.meta.shape[0]

    __hash__ = object.__hash__  # by identity, and without a Python frame: optimizers look states up by parameter

    # -------------------------------------------------------------------------------------------- gradients

    @property
    def requires_grad(self) -> bool:
        """Whether gradients are recorded for what is done to this tensor."""
        return fn_of(self) is not None

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        self.requires_grad_(value)

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Make this leaf collect gradients, or stop it.

        Raises:
            RuntimeError: for a dtype that is not floating, or when stopping one that operations made (use ``detach()``).
        """
        fn = fn_of(self)
        if requires_grad:
            if fn is None:
                if self.dtype.kind != "f":
                    raise RuntimeError(f"only floating tensors can require grad, this one is {self.dtype}; convert with .float()")
                self._fn = Accumulate(self._node.meta)
                if self._alias is not None and not self._alias.chain:
                    self._alias.history.fn = self._fn
        elif fn is not None:
            if type(fn) is not Accumulate:
                raise RuntimeError(
                    "requires_grad can be switched off only for leaves; use .detach() for a result without gradient"
                )
            self._fn = None
            if self._alias is not None:
                self._alias.history.fn = None
        return self

    @property
    def is_leaf(self) -> bool:
        """Whether this tensor was made by the user rather than recorded with a gradient."""
        return not isinstance(fn_of(self), GradFn | Pick)

    @property
    def grad_fn(self) -> Any:
        """The gradient function, None for a leaf."""
        fn = fn_of(self)
        return None if type(fn) is Accumulate else fn

    @property
    def grad(self) -> Any:
        """The accumulated gradient of a leaf (or of a tensor with ``retain_grad()``); None before the first backward."""
        fn = self._fn
        return fn.grad if type(fn) is Accumulate else self._grad

    @grad.setter
    def grad(self, value: Any) -> None:
        if value is not None and tuple(value.shape) != tuple(self.shape):
            raise RuntimeError(f"a gradient of shape {list(value.shape)} was assigned to a tensor of shape {list(self.shape)}")
        if type(self._fn) is Accumulate:
            self._fn.grad = value
        else:
            self._grad = value

    def backward(
        self, gradient: Any = None, retain_graph: bool | None = None, create_graph: bool = False, inputs: Any = None
    ) -> None:
        """Add gradients to the leaves this tensor was computed from; see `cermet.autograd.backward`."""
        backward([self], None if gradient is None else [gradient], retain_graph, create_graph, inputs)

    def retain_grad(self) -> None:
        """Keep the gradient of a result, as of a leaf, in ``grad`` when backward passes it."""
        fn = fn_of(self)
        if fn is None:
            raise RuntimeError(
                "retain_grad(): no gradient flows to this tensor; call requires_grad_() on it, or on what it is computed from, first"
            )
        if type(fn) is not Accumulate and not self.__dict__.get("_retains"):
            self._retains = True
            me = weakref.ref(self)

            def keep(g: Any) -> None:
                t = me()
                if t is not None:
                    t._grad = g if t._grad is None else t._grad + g

            add_hook(fn, keep)

    @property
    def retains_grad(self) -> bool:
        return bool(self.__dict__.get("_retains", False))

    def register_hook(self, hook: Callable[[Any], Any]) -> RemovableHandle:
        """Call ``hook(gradient)`` when this tensor's gradient is complete; a returned tensor replaces it."""
        fn = fn_of(self)
        if fn is None:
            raise RuntimeError(
                "register_hook(): no gradient flows to this tensor; call requires_grad_() on it, or on what it is computed from, first"
            )
        return RemovableHandle(add_hook(fn, hook))

    def register_post_accumulate_grad_hook(self, hook: Callable[[Any], Any]) -> RemovableHandle:
        """Call ``hook(tensor)`` after a gradient was added to this leaf's ``grad``."""
        fn = fn_of(self)
        if type(fn) is not Accumulate:
            raise RuntimeError("post accumulate grad hooks are for leaves that require grad")
        if fn.post_hooks is None:
            fn.post_hooks = {}
        token = object()
        fn.post_hooks[token] = (hook, weakref.ref(self))
        hooks = fn.post_hooks
        return RemovableHandle(lambda: hooks.pop(token, None))

    def detach(self) -> Tensor:
        """The same memory, apart from its gradients."""
        return core.detached(self)

    def detach_(self) -> Tensor:
        """Cut this tensor from its history."""
        fn_of(self)
        self._fn = None
        if self._alias is not None:
            self._alias.history.fn = None
        return self

    @property
    def data(self) -> Tensor:
        """The same memory, apart from its gradients; assigning replaces the value."""
        return core.detached(self)

    @data.setter
    def data(self, value: Any) -> None:
        # PyTorch lets the tensor take on another storage, shape and dtype; it stays the same leaf.
        self._node = node_of(value)
        self._alias = None
        if type(self._fn) is Accumulate:
            self._fn.meta = self._node.meta

    # -------------------------------------------------------------------------------------------- observation

    def _array(self) -> Any:
        """The value as a read-only NumPy array that shares memory; evaluates."""
        return ev.array_of(node_of(self))

    def numpy(self, *, force: bool = False) -> Any:
        """A NumPy array of the value (a copy: writing to it does not change the tensor).

        Raises:
            RuntimeError: for a tensor that requires grad, unless ``force``.
        """
        if fn_of(self) is not None and not force:
            raise RuntimeError(
                "numpy() of a tensor with gradients, which an array cannot carry; call .detach().numpy(), or .numpy(force=True)"
            )
        return self._array().copy()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        a = self._array()
        return a.astype(dtype) if dtype is not None else a.copy()

    def item(self) -> Any:
        """The value of a tensor of one element, as a Python number."""
        node = node_of(self)
        if node.meta.numel != 1:
            raise RuntimeError(f"item() needs a tensor of one element, this one has shape {list(self.shape)}")
        return ev.number_of(node)

    def tolist(self) -> Any:
        """The value as nested Python lists."""
        a = self._array()
        return (a.astype(np.float64) if self.dtype.kind == "f" else a).tolist()

    def __bool__(self) -> bool:
        if self._node.meta.numel != 1:
            raise RuntimeError(
                f"the truth of a tensor of shape {list(self.shape)} is not defined; use .any() or .all() (or .item() for one element)"
            )
        return bool(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __complex__(self) -> complex:
        return complex(self.item())

    def __index__(self) -> int:
        if self.dtype.kind == "f":
            raise TypeError(f"a tensor of {self.dtype} is no index; cast it with .long() or int()")
        return int(self.item())

    def __contains__(self, value: Any) -> bool:
        return bool((self == value).any())

    def __iter__(self) -> Iterator[Any]:
        if self.ndim == 0:
            raise TypeError("iteration over a 0-dimensional tensor")
        return iter([self[k] for k in range(self.shape[0])])

    def __repr__(self) -> str:
        from cermet.frontend.printing import tensor_repr

        return tensor_repr(self)

    def __format__(self, spec: str) -> str:
        if self.ndim == 0 and spec:
            return format(self.item(), spec)
        return object.__format__(self, spec) if spec else repr(self)

    def __deepcopy__(self, memo: Any) -> Any:
        if not self.is_leaf:
            raise RuntimeError("only leaf tensors can be deep-copied; use .detach().clone()")
        if id(self) in memo:
            return memo[id(self)]
        t = object.__new__(type(self))
        t._node, t._alias, t._grad = node_of(self), None, None
        t._fn = None
        if type(self._fn) is Accumulate:
            t._fn = Accumulate(t._node.meta)
            g = self._fn.grad
            t._fn.grad = None if g is None else new_tensor(node_of(g))
        memo[id(self)] = t
        t.__dict__.update({k: v for k, v in self.__dict__.items() if k != "_retains"})
        return t

    def __reduce_ex__(self, protocol: Any) -> Any:
        return (_rebuild, (type(self), self._array().copy(), self.dtype, self.requires_grad and self.is_leaf))

    # -------------------------------------------------------------------------------------------- indexing

    def __getitem__(self, index: Any) -> Any:
        if type(index) is int:
            shape = node_of(self).meta.shape
            if shape and -shape[0] <= index < shape[0]:
                return memo.row(self, index)
        return memo.call(_indexed, (self, index), {})

    def __setitem__(self, index: Any, value: Any) -> None:
        indexing.setitem(self, index, value)

    # -------------------------------------------------------------------------------------------- in place

    def _write(self, value: Any) -> Tensor:
        """Make ``value``, broadcast and cast to this tensor's shape and dtype, its new value."""
        m = node_of(self).meta
        check_writable(self)
        if not isinstance(value, TensorBase):
            value = hooks.to_tensor(value, dtype=m.dtype, like=self)
        if value._node.meta.dtype is not m.dtype:
            if dt.category(value.dtype) > dt.category(m.dtype):
                raise RuntimeError(
                    f"an in-place result of {value.dtype} can't be stored in a tensor of {m.dtype}; use the out-of-place form, or .to()"
                )
            value = value.to(m.dtype)
        if value._node.meta.shape != m.shape:
            from cermet.graph.node import broadcast_shapes
            from cermet.ops.movement import expand

            shape = tuple(value.shape)
            if len(shape) > len(m.shape) or broadcast_shapes(shape, m.shape) != m.shape:
                raise RuntimeError(f"a result of shape {list(shape)} doesn't fit in place into a tensor of shape {list(m.shape)}")
            value = apply(expand, (value,), (m.shape,))
        write(self, value)
        return self


def _rebuild(cls: Any, array: Any, dtype: Any, requires_grad: bool) -> Any:
    t = hooks.to_tensor(array, dtype=dtype, like=None)
    out = object.__new__(cls)
    out._node, out._fn, out._alias, out._grad = t._node, None, None, None
    if requires_grad:
        out.requires_grad_()
    return out


for _name, _method in (layout.METHODS | writing.METHODS).items():
    setattr(Tensor, _name, _method)
core.tensor_type = Tensor
core.evaluate_hook[0] = ev.evaluate
