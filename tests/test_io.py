"""save and load: round trips, whole or not at all, and what must be refused."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cermet as ct
from cermet.io import load, save

safetensors = pytest.importorskip("safetensors")


def assert_same(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert list(a) == list(b)
        for k in a:
            assert_same(a[k], b[k])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b):
            assert_same(x, y)
    elif isinstance(a, ct.Tensor):
        assert a.dtype is b.dtype and a.shape == b.shape and a.requires_grad == b.requires_grad
        assert a.detach()._array().tobytes() == b.detach()._array().tobytes()
    else:
        assert a == b or (a != a and b != b)


@pytest.fixture
def everything(rng: np.random.Generator) -> Any:
    values = ct.tensor(rng.normal(size=(3, 4)).astype(np.float32))
    dtypes = {str(d): values.mul(50).to(d) for d in ct.dtypes.ALL}
    return {
        "model": OrderedDict([("a.weight", values), ("a.bias", values[0]), ("b", values.t())]),
        "optimizer": {"state": {0: {"step": ct.tensor(3.0), "exp_avg": values + 1}}, "param_groups": [{"betas": (0.9, 0.999)}]},
        "dtypes": dtypes, "empty": ct.zeros(0, 3), "none": {}, "leaf": ct.ones(2).requires_grad_(), "epoch": 3, "big": 2**80,
        "numbers": [0.1, float("inf"), float("-inf"), float("nan"), 1e-300, -0.0, True, None], "text": "λ\n\"",
        "size": values.shape, "dtype": ct.float32, "device": ct.device("cpu"), "milestones": Counter({2: 1, 5: 2}), "set": {1, 2},
        (1, "x"): 5, None: 6, 1.5: 7,
    }  # fmt: skip


def test_round_trip(tmp_path: Path, everything: Any) -> None:
    everything["model"]._metadata = OrderedDict([("", {"version": 1})])
    save(everything, tmp_path / "all")
    found = load(tmp_path / "all")
    assert_same(everything, found)
    assert found["model"]._metadata == {"": {"version": 1}}
    buffer = io.BytesIO()
    save(everything, buffer)
    buffer.seek(0)
    assert_same(everything, load(buffer))


def test_one_tensor_and_pending_values(tmp_path: Path) -> None:
    save(ct.ones(2) * 3, tmp_path / "t")
    assert load(tmp_path / "t").tolist() == [3.0, 3.0]


def test_other_readers_find_the_names(tmp_path: Path) -> None:
    save({"a.weight": ct.ones(2), "n": {"b": ct.zeros(1)}}, tmp_path / "x.safetensors")
    with safetensors.safe_open(tmp_path / "x.safetensors", "np") as f:
        assert sorted(f.keys()) == ["a.weight", "n.b"] and f.get_tensor("a.weight").tolist() == [1.0, 1.0]


def test_files_of_others_are_flat_dicts(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"w": np.arange(3, dtype=np.int32)}, tmp_path / "x.safetensors")
    assert_same(load(tmp_path / "x.safetensors"), {"w": ct.tensor(np.arange(3, dtype=np.int32))})


def test_names_that_collide_and_tensors_that_are_shared(tmp_path: Path) -> None:
    w = ct.ones(1000)
    save({"a.b": ct.zeros(1), "a": {"b": ct.ones(1)}, "__metadata__": ct.ones(2), "w1": w, "w2": w}, tmp_path / "x")
    assert os.path.getsize(tmp_path / "x") < 6000
    found = load(tmp_path / "x")
    assert found["a.b"].item() == 0 and found["a"]["b"].item() == 1
    found["w1"].add_(1.0)
    assert found["w2"][0].item() == 1.0


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    save({"a": ct.ones(1)}, path)
    before = path.read_bytes()
    with pytest.raises(TypeError, match=r"cannot save object at \['b'\]\['0'\]"):
        save({"a": ct.zeros(1), "b": [object()]}, path)

    def broken(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        save({"a": ct.zeros(1)}, path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["x"]


def test_refused_structures(tmp_path: Path) -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(ValueError, match="contains itself"):
        save(loop, tmp_path / "x")
    with pytest.raises(TypeError, match="from_numpy"):
        save({"a": np.ones(2)}, tmp_path / "x")
    with pytest.raises(TypeError, match="key"):
        save({ct.ones(1): 1}, tmp_path / "x")
    assert os.listdir(tmp_path) == []


def damaged(data: bytes) -> dict[str, bytes]:
    (n,) = struct.unpack("<Q", data[:8])
    return {
        "has 0 bytes": b"", "begins with b'hello wo'": b"hello world, this is text", "is incomplete": data[: 8 + n // 2],
        "damaged or incomplete": data[:-3], "damaged header": data[:8] + b"{" + b"\0" * (n - 1) + data[8 + n :],
        "is a pickle": pickle.dumps([1, 2, "a long enough text"], 2),
    }  # fmt: skip


def test_damaged_files_say_so(tmp_path: Path) -> None:
    save({"a": ct.ones(5)}, tmp_path / "x")
    for match, data in damaged((tmp_path / "x").read_bytes()).items():
        (tmp_path / "bad").write_bytes(data)
        with pytest.raises(RuntimeError, match=match):
            load(tmp_path / "bad")
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "missing")
    with pytest.raises(ValueError, match="never read"):
        load(tmp_path / "x", weights_only=False)
    with pytest.raises(TypeError, match="'rb'"):
        load(io.StringIO("text"))


def test_an_unknown_structure_says_so(tmp_path: Path) -> None:
    from safetensors.numpy import save as to_bytes

    for structure in ({"t": "missing"}, {"q": []}, {"y": "float7"}):
        (tmp_path / "x").write_bytes(to_bytes({"a": np.ones(1)}, {"cermet.structure": json.dumps(structure)}))
        with pytest.raises(RuntimeError, match="structure"):
            load(tmp_path / "x")


# ----------------------------------------------------------------------------------------------------------- PyTorch's


class Name:
    """Pickles as a name of another module, whether that is there or not."""

    def __init__(self, module: str, name: str) -> None:
        self.text = f"c{module}\n{name}\n".encode()


class Stored:
    def __init__(self, kind: str, key: str, count: int) -> None:
        self.pid = ("storage", Name("torch", kind), key, "cuda:0", count)


class Call:
    def __init__(self, function: Name, *arguments: Any) -> None:
        self.function = function
        self.arguments = arguments


def dumped(x: Any) -> bytes:
    """A pickle of protocol 2, by hand."""
    if isinstance(x, Name):
        return x.text
    if isinstance(x, Stored):
        return dumped(x.pid) + b"Q"
    if isinstance(x, Call):
        return dumped(x.function) + dumped(x.arguments) + b"R"
    if isinstance(x, tuple):
        return b"(" + b"".join(map(dumped, x)) + b"t"
    if isinstance(x, dict):
        return b"}(" + b"".join(dumped(k) + dumped(v) for k, v in x.items()) + b"u"
    return pickle.dumps(x, 2)[2:-1]


def archive(path: Path, x: Any, **files: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("m/data.pkl", b"\x80\x02" + dumped(x) + b".")
        for name, data in files.items():
            z.writestr("m/" + name.replace("_", "/"), data)
    return path


def tensor_call(kind: str, key: str, count: int, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> Call:
    return Call(
        Name("torch._utils", "_rebuild_tensor_v2"),
        Stored(kind, key, count),
        offset,
        size,
        stride,
        False,
        Call(Name("collections", "OrderedDict")),
    )


def test_state_dicts_of_torch(tmp_path: Path) -> None:
    raw = np.arange(12, dtype=np.float32)
    half = np.asarray([1.5, 2.5], dtype=ct.bfloat16.numpy)
    content = {
        "t": tensor_call("FloatStorage", "0", 12, 1, (3, 2), (2, 3)), "bf": tensor_call("BFloat16Storage", "1", 2, 0, (2,), (1,)),
        "p": Call(Name("torch._utils", "_rebuild_parameter"), tensor_call("FloatStorage", "0", 12, 0, (2,), (1,)), True, {}),
        "epoch": 3, "lr": 0.5, "name": "x", "size": Call(Name("torch", "Size"), (1, 2)), "dtype": Name("torch", "float16"),
        "empty": tensor_call("LongStorage", "2", 0, 0, (0, 3), (3, 1)),
    }  # fmt: skip
    found = load(
        archive(tmp_path / "x.pt", content, data_0=raw.tobytes(), data_1=half.tobytes(), data_2=b"", byteorder=b"little")
    )
    assert found["t"].tolist() == np.lib.stride_tricks.as_strided(raw[1:], (3, 2), (8, 12)).tolist()
    assert found["bf"].dtype is ct.bfloat16 and found["bf"].tolist() == [1.5, 2.5]
    assert found["p"].requires_grad and found["p"].tolist() == [0.0, 1.0]
    assert (found["epoch"], found["lr"], found["name"], found["size"], found["dtype"]) == (3, 0.5, "x", (1, 2), ct.float16)
    assert found["empty"].shape == (0, 3)
    swapped = load(
        archive(
            tmp_path / "y.pt",
            content,
            data_0=raw.astype(">f4").tobytes(),
            data_1=half.byteswap().tobytes(),
            data_2=b"",
            byteorder=b"big",
        )
    )
    assert_same(swapped["t"], found["t"])


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (Call(Name("os", "system"), "touch pwned"), r"os\.system"),
        (Call(Name("builtins", "eval"), "1"), r"builtins\.eval"),
        (Call(Name("torch.nn.modules.linear", "Linear")), r"torch\.nn\.modules\.linear\.Linear"),
        (tensor_call("FloatStorage", "0", 4, 2, (3,), (1,)), "outside its storage"),
        (tensor_call("FloatStorage", "0", 4, -1, (1,), (1,)), "outside its storage"),
        (tensor_call("FloatStorage", "0", 4, 3, (2,), (-1,)), "outside its storage"),
        (Call(Name("torch", "float32")), "a call of"),
    ],
)
def test_files_of_torch_that_are_refused(tmp_path: Path, content: Any, match: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(pickle.UnpicklingError, match=match):
        load(archive(tmp_path / "x.pt", content, data_0=np.zeros(4, np.float32).tobytes()))
    assert os.listdir(tmp_path) == ["x.pt"]


def test_attributes_cannot_be_set(tmp_path: Path) -> None:
    for target in (b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nfloat32\n", b"ccollections\nCounter\n"):
        with zipfile.ZipFile(tmp_path / "x.pt", "w") as z:
            z.writestr("m/data.pkl", b"\x80\x02" + target + dumped({"itemsize": 1}) + b"b.")
        with pytest.raises(pickle.UnpicklingError, match="attributes of"):
            load(tmp_path / "x.pt")


def test_zips_of_others(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as z:
        z.writestr("readme.txt", "hello")
    with pytest.raises(RuntimeError, match=r"without a data\.pkl"):
        load(tmp_path / "x.zip")
    whole = archive(tmp_path / "y.pt", {"a": 1}).read_bytes()
    (tmp_path / "y.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RuntimeError, match="damaged or incomplete"):
        load(tmp_path / "y.pt")
