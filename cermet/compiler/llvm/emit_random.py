"""Random words in lanes: Philox-4x32-10 (Salmon et al., 2011), single words of a block and words of running streams.

Blocks are computed in 64-bit lanes, for the products need them. Upper halves hold whatever the arithmetic left there until a word is handed
out: a product takes the lower half of its operand anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cermet.compiler.llvm.builder import I32, I64, LaneBuilder, vector
from cermet.compiler.loops.ir import PAIR_FIRST, PAIR_TURNED, RUNNING

__all__ = ["philox", "round_keys", "running_word", "running_words", "third_word"]

Keys = Sequence[tuple[Any, Any]]
_LOW = 0xFFFFFFFF
_QUARTER = 1 << 30


def third_word(attr: int) -> int:
    """The third word of the counter, which tells the families of blocks apart."""
    return {RUNNING: 1, PAIR_FIRST: 2, PAIR_TURNED: 2}.get(attr, 0)


def round_keys(b: LaneBuilder, key: Any) -> list[tuple[Any, Any]]:
    """The two halves of the key in each of the ten rounds."""
    low, half = b.i(_LOW, key), b.i(32, key)
    w0, w1 = b.i(0x9E3779B9, key), b.i(0xBB67AE85, key)
    out = [(b.and_(key, low), b.lshr(key, half))]
    for _ in range(9):
        k0, k1 = out[-1]
        out.append((b.and_(b.add(k0, w0), low), b.and_(b.add(k1, w1), low)))
    return out


def _block(b: LaneBuilder, keys: Keys, counter: Any, third: int) -> list[Any]:
    """The four words of a block, each the lower half of its 64-bit lane."""
    low, half = b.i(_LOW, counter), b.i(32, counter)
    m0, m1 = b.i(0xD2511F53, counter), b.i(0xCD9E8D57, counter)
    c0, c1, c2, c3 = counter, b.lshr(counter, half), b.i(third, counter), b.i(0, counter)
    for k0, k1 in keys:
        p0, p1 = b.mul(b.and_(c0, low), m0), b.mul(b.and_(c2, low), m1)
        c0, c1, c2, c3 = b.xor(b.xor(b.lshr(p1, half), c1), k0), p1, b.xor(b.xor(b.lshr(p0, half), c3), k1), p0
    return [c0, c1, c2, c3]


def philox(b: LaneBuilder, keys: Keys, counter: Any, third: int = 0) -> list[Any]:
    """The four words of a block as int64 values below 2**32."""
    words = _block(b, keys, counter, third)
    return [b.and_(c, b.i(_LOW, c)) for c in words]


def running_word(b: LaneBuilder, keys: Keys, number: Any, attr: int) -> Any:
    """Word ``number`` of a running stream (see `ir`), for any numbers: a block for each lane."""
    words = philox(b, keys, b.lshr(number, b.i(2, number)), third_word(attr))
    odd = b.icmp("ne", b.and_(number, b.i(1, number)), b.i(0, number))
    high = b.icmp("ne", b.and_(number, b.i(2, number)), b.i(0, number))
    if attr == RUNNING:
        return b.select(high, b.select(odd, words[3], words[2]), b.select(odd, words[1], words[0]))
    word = b.select(high, words[2], words[0]) if attr == PAIR_FIRST else b.select(high, words[3], words[1])
    if attr == PAIR_FIRST:
        return word
    return b.select(odd, b.and_(b.sub(word, b.i(_QUARTER, word)), b.i(_LOW, word)), word)


def _words(w: LaneBuilder, keys: Keys, start: Any, third: int) -> Any:
    """The words of consecutive blocks, one a lane of ``w``, in a row, 32 bits each."""
    blocks = w.lanes
    at = w.add(w.splat(start), w.ramp(I64))
    at = w.and_(at, w.i((1 << 62) - 1, at))  # the numbers wrap round
    c0, c1, c2, c3 = [_halves(w, c) for c in _block(w, keys, at, third)]
    # Lower halves of the even words, and those of the odd ones moved up: one blend of each two.
    lower = [k // 2 * 2 + k % 2 * 2 * blocks for k in range(2 * blocks)]
    low, high = w.shuffle(c0, c1, lower), w.shuffle(c2, c3, lower)
    mixed = [k // 4 * 2 + k % 2 + (k // 2 % 2) * 2 * blocks for k in range(4 * blocks)]
    return w.shuffle(low, high, mixed)


def _halves(w: LaneBuilder, x: Any) -> Any:
    to = vector(I32, 2 * w.lanes)
    return w.line(to, f"bitcast {x.type} {x.get_reference()} to {to}")


def _places(attr: int, first: int, lanes: int) -> list[int]:
    """Which words, counted from the first block's, the lanes get whose numbers begin ``first`` words into it."""
    if attr == RUNNING:
        return [first + k for k in range(lanes)]
    return [first + k & ~1 if attr == PAIR_FIRST else first + k | 1 for k in range(lanes)]


def running_words(b: LaneBuilder, keys_of: Callable[[int], Keys], first: Any, attrs: Sequence[int]) -> list[Any]:
    """As `running_word` for consecutive numbers from the scalar ``first`` on, for several words at once: only the blocks that they lie in.

    ``keys_of`` gives the rounds' keys in so many lanes.
    """
    lanes, third, one = b.lanes, third_word(attrs[0]), b.with_lanes(1)
    start, within = one.lshr(first, one.i(2, first)), one.and_(one.trunc_int(first, 32), one.i(3, one.trunc_int(first, 32)))
    if lanes <= 8:
        w = b.with_lanes(1 << ((lanes + 2) // 4).bit_length())
        found = _shifted(b, _words(w, keys_of(w.lanes), start, third), within, attrs)
    else:
        found = _perhaps_whole(b, keys_of(lanes // 4), start, within, attrs)
    return [b.zext(word, 64) for word in found]


def _shifted(b: LaneBuilder, words: Any, within: Any, attrs: Sequence[int]) -> list[Any]:
    """The lanes' words where their numbers begin anywhere in the first block."""
    at = b.splat(within)
    odd = b.icmp("ne", b.and_(at, b.i(1, at)), b.i(0, at))
    upper = b.icmp("ne", b.and_(at, b.i(2, at)), b.i(0, at))
    out = []
    for attr in attrs:
        moved = [_turned(b, b.shuffle(words, None, _places(attr, k, b.lanes)), attr, k) for k in range(4)]
        out.append(b.select(upper, b.select(odd, moved[3], moved[2]), b.select(odd, moved[1], moved[0])))
    return out


def _turned(b: LaneBuilder, word: Any, attr: int, first: int) -> Any:
    """A quarter turn back where the number is odd."""
    if attr != PAIR_TURNED:
        return word
    turns = ", ".join(f"i32 {-_QUARTER if (first + k) % 2 else 0}" for k in range(b.lanes))
    return b.line(word.type, f"add {word.type} {word.get_reference()}, <{turns}>")


def _perhaps_whole(b: LaneBuilder, keys: Keys, start: Any, within: Any, attrs: Sequence[int]) -> list[Any]:
    """Whole blocks where the numbers begin one, as they mostly do; else the blocks after those too, and words from both."""
    w, one = b.with_lanes(b.lanes // 4), b.with_lanes(1)
    third = third_word(attrs[0])
    words = _words(w, keys, start, third)
    whole = [_turned(b, b.shuffle(words, None, _places(attr, 0, b.lanes)), attr, 0) for attr in attrs]
    aligned = one.icmp("eq", within, one.i(0, within))
    builder = b.ir
    before = builder.block
    inside, after = builder.append_basic_block("begun"), builder.append_basic_block("words")
    b.effect(f"br i1 {aligned.get_reference()}, label {after.get_reference()}, label {inside.get_reference()}")
    builder.position_at_end(inside)
    more = _words(w, keys, one.add(start, one.i(w.lanes, start)), third)
    both = b.shuffle(words, more, list(range(2 * b.lanes)))
    parts = _shifted(b, both, within, attrs)
    b.effect(f"br label {after.get_reference()}")
    builder.position_at_end(after)
    ends = f"[ {{}}, {before.get_reference()} ], [ {{}}, {inside.get_reference()} ]"
    return [
        b.line(x.type, f"phi {x.type} " + ends.format(x.get_reference(), y.get_reference()))
        for x, y in zip(whole, parts, strict=True)
    ]
