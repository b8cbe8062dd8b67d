"""Shape functions. Those that PyTorch calls views share memory with their input: a write through one is seen by all."""

from __future__ import annotations

import itertools
import math
from typing import Any

from cermet import dtypes as dt
from cermet.graph.node import Node, broadcast_shapes
from cermet.ops.define import hooks
from cermet.ops.movement import diagonal_, expand, permute, reshape, slice_, windows
from cermet.ops.public import public
from cermet.ops.support import view, wrap_dim

__all__ = ["narrowed", "reshaped", "transposed"]


def reshaped(x: Any, shape: tuple[int, ...], must_view: bool = False) -> Any:
    """``x`` under another shape: a view where its strides allow, else a copy."""
    if type(x) is Node:
        return reshape(x, shape=shape)
    return hooks.reshape(x, shape, must_view)


def narrowed(x: Any, dim: int, start: int, size: int, step: int = 1) -> Any:
    """A view of ``size`` elements from ``start`` along one dimension."""
    shape = list(x.shape)
    starts, steps = [0] * len(shape), [1] * len(shape)
    starts[dim], steps[dim], shape[dim] = start, step, size
    return view(slice_, x, starts=tuple(starts), steps=tuple(steps), sizes=tuple(shape))


def transposed(x: Any, a: int, b: int) -> Any:
    """A view with two dimensions exchanged."""
    order = list(range(len(x.shape)))
    order[a], order[b] = b, a
    return view(permute, x, dims=tuple(order))


def _renames(fn: Any) -> Any:
    """Mark a view whose in-place form changes the tensor's own shape instead of its elements (decorator)."""
    fn.in_place_view = True
    return fn


def _listed(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(args[0]) if len(args) == 1 and isinstance(args[0], tuple | list) else args


def _resolved(x: Any, sizes: tuple[Any, ...], name: str) -> tuple[int, ...]:
    """A target shape with its -1 worked out."""
    shape = [int(s.__index__()) for s in _listed(sizes)]
    n = math.prod(x.shape)
    unknown = [k for k, s in enumerate(shape) if s == -1]
    if len(unknown) > 1 or any(s < -1 for s in shape):
        raise RuntimeError(f"{name}: a shape may hold -1 once and no other negative size, got {shape}")
    if unknown:
        rest = math.prod([s for s in shape if s != -1])
        if rest == 0 or n % rest:
            raise RuntimeError(f"{name}: shape {shape} does not fit {n} elements of a tensor of shape {list(x.shape)}")
        shape[unknown[0]] = n // rest
    elif math.prod(shape) != n:
        raise RuntimeError(f"{name}: shape {shape} has {math.prod(shape)} elements, the tensor of shape {list(x.shape)} has {n}")
    return tuple(shape)


@public(name="reshape")
def reshape_(input: Any, *shape: Any) -> Any:
    """The same elements in row-major order under another shape (one size may be -1): a view where strides allow it, else a copy.

    Raises:
        RuntimeError: when the number of elements does not fit.
    """
    return reshaped(input, _resolved(input, shape, "reshape"))


@public(name="view")
def view_(input: Any, *shape: Any) -> Any:
    """As `reshape`, but always a view; ``view(dtype)`` converts bits of the same width.

    Raises:
        RuntimeError: when strides do not allow a view.
    """
    if len(shape) == 1 and type(shape[0]) is dt.DType:
        return _bits(input, shape[0])
    return reshaped(input, _resolved(input, shape, "view"), must_view=True)


def _bits(x: Any, dtype: dt.DType) -> Any:
    if dtype is x.dtype:
        return view(reshape, x, shape=tuple(x.shape))
    if dtype.itemsize != x.dtype.itemsize:
        raise RuntimeError(f"view: {x.dtype} and {dtype} differ in width; only dtypes of one width share their bits")
    return hooks.to_tensor(x.numpy(force=True).view(dtype.numpy), dtype=dtype, like=None)


@public()
def reshape_as(input: Any, other: Any) -> Any:
    """The input under the shape of another tensor."""
    return reshaped(input, _resolved(input, tuple(other.shape), "reshape_as"))


@public()
def view_as(input: Any, other: Any) -> Any:
    """A view of the input under the shape of another tensor."""
    return reshaped(input, _resolved(input, tuple(other.shape), "view_as"), must_view=True)


@public()
def flatten(input: Any, start_dim: int = 0, end_dim: int = -1) -> Any:
    """Dimensions ``start_dim`` to ``end_dim`` made one.

    Raises:
        RuntimeError: when the start lies behind the end.
    """
    shape = tuple(input.shape)
    if not shape:
        return reshaped(input, (1,))
    a, b = wrap_dim(start_dim, len(shape), "flatten"), wrap_dim(end_dim, len(shape), "flatten")
    if a > b:
        raise RuntimeError(f"flatten: start_dim {start_dim} lies behind end_dim {end_dim}")
    if a == b:
        return input
    return reshaped(input, (*shape[:a], math.prod(shape[a : b + 1]), *shape[b + 1 :]))


@public()
def unflatten(input: Any, dim: int, sizes: Any) -> Any:
    """Dimension ``dim`` split into ``sizes`` (one may be -1)."""
    shape = tuple(input.shape)
    d = wrap_dim(dim, len(shape), "unflatten")
    sizes = [int(s) for s in sizes]
    known = math.prod([s for s in sizes if s != -1])
    if sizes.count(-1) > 1 or (-1 in sizes and (known == 0 or shape[d] % known)) or (-1 not in sizes and known != shape[d]):
        raise RuntimeError(f"unflatten: sizes {sizes} do not multiply to {shape[d]}, the size of dimension {dim}")
    return reshaped(input, (*shape[:d], *[shape[d] // known if s == -1 else s for s in sizes], *shape[d + 1 :]))


@public()
def ravel(input: Any) -> Any:
    """All elements in one dimension: a view where strides allow it."""
    return reshaped(input, (math.prod(input.shape),))


@public()
@_renames
def squeeze(input: Any, dim: Any = None) -> Any:
    """A view without the dimensions of size 1, or without those of ``dim`` that have size 1."""
    shape = tuple(input.shape)
    if dim is None:
        return view(reshape, input, shape=tuple([s for s in shape if s != 1]))
    dims = {wrap_dim(d, len(shape), "squeeze") for d in (dim if isinstance(dim, tuple | list) else (dim,))}
    return view(reshape, input, shape=tuple([s for k, s in enumerate(shape) if k not in dims or s != 1]))


@public()
@_renames
def unsqueeze(input: Any, dim: int) -> Any:
    """A view with a new dimension of size 1 at ``dim``."""
    shape = tuple(input.shape)
    d = wrap_dim(dim, len(shape) + 1, "unsqueeze")
    return view(reshape, input, shape=(*shape[:d], 1, *shape[d:]))


@public(aliases=("swapaxes", "swapdims"))
@_renames
def transpose(input: Any, dim0: int, dim1: int) -> Any:
    """A view with two dimensions exchanged."""
    n = len(input.shape)
    return (
        transposed(input, wrap_dim(dim0, n, "transpose"), wrap_dim(dim1, n, "transpose")) if n else view(permute, input, dims=())
    )


@public(name="permute")
def permute_(input: Any, *dims: Any) -> Any:
    """A view with the dimensions in another order.

    Raises:
        RuntimeError: unless every dimension is named once.
    """
    n = len(input.shape)
    wanted = _listed(dims)
    order = tuple([wrap_dim(d, n, "permute") for d in wanted])
    if sorted(order) != list(range(n)):
        raise RuntimeError(f"permute: dims {wanted} do not name each of the {n} dimensions once")
    return view(permute, input, dims=order)


@public()
@_renames
def t(input: Any) -> Any:
    """A view of the transposed matrix; vectors and scalars as they are.

    Raises:
        RuntimeError: for more than two dimensions.
    """
    n = len(input.shape)
    if n > 2:
        raise RuntimeError(f"t: expected at most two dimensions, got shape {list(input.shape)}; use .mT or .transpose()")
    return view(permute, input, dims=tuple(reversed(range(n))))


@public(name="H", prop=True)
def big_h(input: Any) -> Any:
    """A view of the transposed matrix (the adjoint of a real one).

    Raises:
        RuntimeError: for other numbers of dimensions than 0 or 2.
    """
    if len(input.shape) not in (0, 2):
        raise RuntimeError(f"H: expected a matrix, got shape {list(input.shape)}; use .mT for batches")
    return t(input)


@public(name="T", prop=True)
def big_t(input: Any) -> Any:
    """A view with the dimensions in reverse order."""
    return view(permute, input, dims=tuple(reversed(range(len(input.shape)))))


@public(name="mT", prop=True)
def matrix_t(input: Any) -> Any:
    """A view with the last two dimensions exchanged."""
    n = len(input.shape)
    if n < 2:
        raise RuntimeError(f"mT: expected at least two dimensions, got shape {list(input.shape)}")
    return transposed(input, n - 2, n - 1)


public(name="mH", prop=True)(matrix_t)
public(name="adjoint")(matrix_t)


@public(aliases=("moveaxis",))
def movedim(input: Any, source: Any, destination: Any) -> Any:
    """A view with dimensions moved to other places, the rest in order.

    Raises:
        RuntimeError: for lists of different lengths or with repetitions.
    """
    n = len(input.shape)
    listed = [s if isinstance(s, tuple | list) else (s,) for s in (source, destination)]
    src, dst = ([wrap_dim(d, n, "movedim") for d in dims] for dims in listed)
    if len(src) != len(dst) or len(set(src)) != len(src) or len(set(dst)) != len(dst):
        raise RuntimeError(f"movedim: source {source} and destination {destination} must name as many dimensions, each once")
    rest = iter([d for d in range(n) if d not in src])
    order = tuple([src[dst.index(k)] if k in dst else next(rest) for k in range(n)])
    return view(permute, input, dims=order)


@public(name="expand")
def expand_(input: Any, *sizes: Any) -> Any:
    """A view with dimensions of size 1 repeated and new ones added in front; -1 keeps a size.

    Raises:
        RuntimeError: for sizes that do not fit.
    """
    shape = tuple(input.shape)
    wanted = [int(s) for s in _listed(sizes)]
    lead = len(wanted) - len(shape)
    if lead < 0:
        raise RuntimeError(f"expand: {len(wanted)} sizes for a tensor of {len(shape)} dimensions")
    for k, s in enumerate(wanted):
        old = shape[k - lead] if k >= lead else None
        if s == -1 and old is not None:
            wanted[k] = old
        elif s < 0 or (old is not None and old not in (1, s)):
            raise RuntimeError(f"expand: a tensor of shape {list(shape)} does not expand to {wanted}: dimension {k} does not fit")
    return view(expand, input, shape=tuple(wanted))


@public()
def expand_as(input: Any, other: Any) -> Any:
    """A view expanded to the shape of another tensor."""
    return expand_(input, tuple(other.shape))


@public()
def broadcast_to(input: Any, size: Any) -> Any:
    """A view repeated along dims of size 1, and new ones in front, to fill a shape."""
    return expand_(input, tuple(size))


@public(method=False)
def broadcast_tensors(*tensors: Any) -> tuple[Any, ...]:
    """Views of all tensors in their common shape."""
    xs = _listed(tensors)
    shape = broadcast_shapes(*[tuple(x.shape) for x in xs])
    return tuple([expand_(x, shape) for x in xs])


@public(name="broadcast_shapes", method=False)
def broadcast_shapes_(*shapes: Any) -> Any:
    """The common shape of several.

    Raises:
        RuntimeError: when they do not broadcast.
    """
    try:
        return broadcast_shapes(*[(s,) if isinstance(s, int) else tuple(s) for s in shapes])
    except ValueError as e:
        raise RuntimeError(f"broadcast_shapes: {e}") from None


# ------------------------------------------------------------------------------------------------ parts


@public()
def narrow(input: Any, dim: int, start: Any, length: int) -> Any:
    """A view of ``length`` elements from ``start`` along ``dim``.

    Raises:
        RuntimeError: when they leave the dimension.
    """
    d = wrap_dim(dim, len(input.shape), "narrow")
    n, a = input.shape[d], int(start)
    if not -n <= a <= n:
        raise IndexError(f"narrow: start {a} is out of range for a dimension of size {n}")
    a = a + n if a < 0 else a
    if length < 0 or a + length > n:
        raise RuntimeError(f"narrow: start {a} and length {length} leave dimension {d} of size {n}")
    return narrowed(input, d, a, int(length))


@public()
def select(input: Any, dim: int, index: Any) -> Any:
    """A view of one index along ``dim``, without that dimension.

    Raises:
        IndexError: for an index that is out of range.
    """
    if len(input.shape) == 0:
        raise IndexError("select: this tensor is a single number without dimensions; use it as it is")
    d = wrap_dim(dim, len(input.shape), "select")
    shape, k = tuple(input.shape), int(index)
    if not -shape[d] <= k < shape[d]:
        raise IndexError(f"select: index {k} does not exist in dimension {d} of size {shape[d]}")
    part = narrowed(input, d, k % shape[d], 1)
    return view(reshape, part, shape=(*shape[:d], *shape[d + 1 :]))


@public()
def unbind(input: Any, dim: int = 0) -> tuple[Any, ...]:
    """Views of all indices along ``dim``."""
    d = wrap_dim(dim, len(input.shape), "unbind")
    return tuple([select(input, d, k) for k in range(input.shape[d])])


@public()
def split(tensor: Any, split_size_or_sections: Any = None, dim: int = 0, *, split_size: Any = None) -> tuple[Any, ...]:
    """Views of parts along ``dim``: of one size (the last may be smaller), or of the sizes in a list.

    Raises:
        RuntimeError: when the sizes do not add up.
    """
    sizes = split_size if split_size_or_sections is None else split_size_or_sections
    d = wrap_dim(dim, len(tensor.shape), "split")
    n = tensor.shape[d]
    if isinstance(sizes, tuple | list):
        if sum(sizes) != n or min(sizes, default=0) < 0:
            raise RuntimeError(f"split: sizes {list(sizes)} must add up to {n}, the size of dimension {d}")
    else:
        if sizes < 0 or (sizes == 0 and n):
            raise RuntimeError(f"split: split_size={sizes}; give a size of 1 or more")
        sizes = [min(sizes, n - k) for k in range(0, n, sizes)] if n else [0]
    out, at = [], 0
    for size in sizes:
        out.append(narrowed(tensor, d, at, int(size)))
        at += size
    return tuple(out)


@public()
def split_with_sizes(input: Any, split_sizes: Any, dim: int = 0) -> tuple[Any, ...]:
    """Views of parts of the given sizes along ``dim``."""
    return split(input, list(split_sizes), dim)


@public()
def chunk(input: Any, chunks: int, dim: int = 0) -> tuple[Any, ...]:
    """Views of at most ``chunks`` parts of equal size (the last may be smaller) along ``dim``."""
    if chunks < 1:
        raise RuntimeError(f"chunk: chunks must be positive, got {chunks}")
    d = wrap_dim(dim, len(input.shape), "chunk")
    n = input.shape[d]
    if n == 0:
        return tuple([narrowed(input, d, 0, 0) for _ in range(chunks)])
    return split(input, -(-n // chunks), d)


@public()
def tensor_split(input: Any, indices_or_sections: Any, dim: int = 0) -> tuple[Any, ...]:
    """Views of parts along ``dim``: that many, as equal as possible, or cut at a list of indices."""
    d = wrap_dim(dim, len(input.shape), "tensor_split")
    n = input.shape[d]
    if hasattr(indices_or_sections, "tolist"):
        indices_or_sections = indices_or_sections.tolist()
    if isinstance(indices_or_sections, int):
        k = indices_or_sections
        if k <= 0:
            raise RuntimeError(f"tensor_split: the number of sections must be positive, got {k}")
        sizes = [n // k + (1 if i < n % k else 0) for i in range(k)]
        cuts = [sum(sizes[:i]) for i in range(1, k)]
    else:
        cuts = list(indices_or_sections)
    edges = [0, *[max(0, min(c + n if c < 0 else c, n)) for c in cuts], n]
    return tuple([narrowed(input, d, a, max(b - a, 0)) for a, b in itertools.pairwise(edges)])


def _dim_split(name: str, dim_of: Any) -> Any:
    def fn(input: Any, indices_or_sections: Any) -> tuple[Any, ...]:
        n = len(input.shape)
        least = {"hsplit": 1, "vsplit": 2, "dsplit": 3}[name]
        if n < least:
            raise RuntimeError(f"{name}: expected at least {least} dimensions, got shape {list(input.shape)}")
        d = dim_of(n)
        if isinstance(indices_or_sections, int) and input.shape[d] % indices_or_sections:
            raise RuntimeError(
                f"{name}: dimension {d} of size {input.shape[d]} does not split into {indices_or_sections} equal parts"
            )
        return tensor_split(input, indices_or_sections, d)

    fn.__name__ = fn.__qualname__ = name
    fn.__doc__ = "Views of parts along a dimension; see `tensor_split`."
    return public()(fn)


hsplit = _dim_split("hsplit", lambda n: 0 if n == 1 else 1)
vsplit = _dim_split("vsplit", lambda n: 0)
dsplit = _dim_split("dsplit", lambda n: 2)

# ------------------------------------------------------------------------------------------------ diagonals, windows


@public()
def diagonal(input: Any, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Any:
    """A view of the elements whose indices along two dims differ by ``offset``, as a new last dimension.

    Raises:
        RuntimeError: when both dims are one.
    """
    n = len(input.shape)
    a, b = wrap_dim(dim1, n, "diagonal"), wrap_dim(dim2, n, "diagonal")
    if a == b:
        raise RuntimeError(f"diagonal: dim1 {dim1} and dim2 {dim2} are one dimension")
    return view(diagonal_, input, offset=int(offset), dim1=a, dim2=b)


@public()
def diag_embed(input: Any, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Any:
    """Zeros with the input's last dimension on a diagonal of two new dims."""
    from cermet.ops.movement import put_diagonal
    from cermet.ops.support import zeros_like_value

    shape = tuple(input.shape)
    n = len(shape) + 1
    a, b = wrap_dim(dim1, n, "diag_embed"), wrap_dim(dim2, n, "diag_embed")
    if a == b:
        raise RuntimeError(f"diag_embed: dim1 {dim1} and dim2 {dim2} are one dimension")
    size = shape[-1] + abs(offset)
    rest = iter(shape[:-1])
    full = tuple([size if k in (a, b) else next(rest) for k in range(n)])
    return put_diagonal(zeros_like_value(input, full), input, offset=int(offset), dim1=a, dim2=b)


@public()
def diag(input: Any, diagonal: int = 0) -> Any:
    """Of a vector: the matrix with it on a diagonal. Of a matrix: that diagonal.

    Raises:
        RuntimeError: for other numbers of dimensions.
    """
    n = len(input.shape)
    if n == 1:
        return diag_embed(input, diagonal)
    if n != 2:
        raise RuntimeError(f"diag: expected a vector or a matrix, got shape {list(input.shape)}")
    return diagonal_(input, offset=int(diagonal), dim1=0, dim2=1)


@public()
def diagflat(input: Any, offset: int = 0) -> Any:
    """The matrix with all elements of the input on a diagonal."""
    return diag_embed(reshape(input, shape=(math.prod(input.shape),)), offset)


@public(name="unfold")
def unfold_(input: Any, dimension: int, size: int, step: int) -> Any:
    """A view of all windows of ``size`` elements, ``step`` apart, along a dimension; the place in the window is a new last
    dimension.

    Raises:
        RuntimeError: for a window larger than the dimension, or a step that is not positive.
    """
    n = len(input.shape)
    if n == 0:
        return view(reshape, input, shape=(1,))
    d = wrap_dim(dimension, n, "unfold")
    if step <= 0 or size < 0 or size > input.shape[d]:
        raise RuntimeError(f"unfold: windows of {size} in steps of {step} do not fit dimension {d} of size {input.shape[d]}")
    return view(windows, input, dim=d, size=int(size), step=int(step), dilation=1)


@public()
def numel(input: Any) -> int:
    """Number of elements."""
    return math.prod(input.shape)
