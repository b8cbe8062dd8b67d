"""Knobs and devices."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import threading

import pytest

from cermet import config, devices
from cermet.devices import Device, device


def _python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **env}, capture_output=True, text=True, timeout=120, check=False
    )


def _load_config() -> str:
    # On its own, without the package around it: the variables are read at import.
    return (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('config', {config.__file__!r})\n"
        "config = importlib.util.module_from_spec(spec); sys.modules['config'] = config; spec.loader.exec_module(config)\n"
    )


@pytest.mark.parametrize(
    ("variable", "text", "name", "value"),
    [
        ("CERMET_NUM_THREADS", "3", "num_threads", 3),
        ("CERMET_EAGER", "on", "eager", True),
        ("CERMET_EAGER", "", "eager", False),
        ("CERMET_LOG", "compile, cache", "log", frozenset(("compile", "cache"))),
        ("CERMET_LOG", "all", "log", frozenset(config.LOG_TOPICS)),
        ("CERMET_CPU", "x86-64-v3", "cpu", "x86-64-v3"),
        ("CERMET_DISK_CACHE", "off", "disk_cache", False),
        ("CERMET_DISK_CACHE_BYTES", "64M", "disk_cache_bytes", 64 << 20),
        ("CERMET_PENDING_BYTES", "2GiB", "pending_bytes", 2 << 30),
        ("CERMET_CACHE_DIR", "/tmp/elsewhere", "cache_dir", "/tmp/elsewhere"),
        ("CERMET_SPIN_US", "0", "spin_us", 0),
    ],
)
def test_environment(variable: str, text: str, name: str, value: object) -> None:
    result = _python(_load_config() + f"print(repr(config.{name} == {value!r}))", **{variable: text})
    assert result.stdout.strip() == "True", result


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("CERMET_NUM_THREADS", "zero"),
        ("CERMET_NUM_THREADS", "0"),
        ("CERMET_EAGER", "perhaps"),
        ("CERMET_LOG", "compiler"),
        ("CERMET_DISK_CACHE_BYTES", "12 parsecs"),
        ("CERMET_CPU", "my cpu"),
        ("CERMET_SPIN_US", "-1"),
    ],
)
def test_bad_environment_names_variable_value_and_expectation(variable: str, text: str) -> None:
    result = _python(_load_config(), **{variable: text})
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-1]
    assert variable in last
    assert repr(text) in last
    assert "expected" in last


def test_cache_dir_follows_xdg() -> None:
    code = _load_config() + "print(config.cache_dir)"
    environment = {k: v for k, v in os.environ.items() if k != "CERMET_CACHE_DIR"}
    for xdg, expected in (("/tmp/xdg", "/tmp/xdg/cermet"), ("relative", "/home/me/.cache/cermet")):
        result = subprocess.run(
            [sys.executable, "-c", code],
            env={**environment, "XDG_CACHE_HOME": xdg, "HOME": "/home/me"},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert result.stdout.strip() == expected


def test_import_is_light() -> None:
    result = _python(_load_config() + "print('numpy' in sys.modules, 'llvmlite' in sys.modules)")
    assert result.stdout.split() == ["False", "False"]


def test_scope_restores_even_after_an_error() -> None:
    before = config.num_threads, config.eager
    with pytest.raises(RuntimeError, match="inside"), config.scope(num_threads=7, eager=True):
        assert (config.num_threads, config.eager) == (7, True)
        raise RuntimeError("inside")
    assert (config.num_threads, config.eager) == before


def test_scope_refuses_all_or_nothing() -> None:
    before = config.num_threads
    with pytest.raises(ValueError, match=r"config\.eager='maybe'.*switch"), config.scope(num_threads=7, eager="maybe"):
        pass
    with pytest.raises(AttributeError, match="no knob 'threads'; it has: num_threads"), config.scope(threads=7):
        pass
    assert config.num_threads == before


def test_assignment_is_checked() -> None:
    with config.scope(num_threads=2):
        config.num_threads = 5
        assert config.num_threads == 5
        with pytest.raises(ValueError, match=r"config\.num_threads=0: expected an integer of at least 1"):
            config.num_threads = 0
        with pytest.raises(ValueError, match="True"):
            config.num_threads = True
        with pytest.raises(AttributeError, match="no knob 'num_thread'"):
            config.num_thread = 3  # type: ignore[attr-defined]


def test_describe_names_every_knob() -> None:
    text = config.describe()
    for knob in config.KNOBS.values():
        assert f"{knob.name} = " in text
        assert knob.variable in text
        assert knob.doc in text
    assert len({knob.variable for knob in config.KNOBS.values()}) == len(config.KNOBS)
    assert set(config.KNOBS) <= set(config.__annotations__)


def test_scopes_are_seen_by_other_threads() -> None:
    seen = []
    with config.scope(spin_us=123):
        thread = threading.Thread(target=lambda: seen.append(config.spin_us))
        thread.start()
        thread.join()
    assert seen == [123]


def test_device_reads_like_torch() -> None:
    cpu = device("cpu")
    assert (cpu.type, cpu.index) == ("cpu", None)
    assert str(cpu) == "cpu"
    assert repr(cpu) == "device(type='cpu')"
    assert repr(device("cpu:0")) == repr(device("cpu", 0)) == "device(type='cpu', index=0)"
    assert device("cpu:0") == device("cpu", 0) != cpu
    assert cpu == devices.cpu == device(cpu)
    assert hash(cpu) == hash(device("cpu"))
    assert cpu != "cpu"
    assert isinstance(cpu, Device)
    assert devices.canonical(device("cpu:0")) is devices.canonical(cpu) is devices.cpu


def test_device_is_a_value() -> None:
    for d in (device("cpu"), device("cpu:0")):
        assert pickle.loads(pickle.dumps(d)) == copy.deepcopy(d) == d
    with pytest.raises(AttributeError, match="cannot be changed"):
        devices.cpu.type = "cuda"
    with pytest.raises(AttributeError, match="cannot be changed"):
        del devices.cpu.index


@pytest.mark.parametrize(
    ("args", "error", "text"),
    [
        (("cuda",), RuntimeError, r"device 'cuda' is not available; available here: cpu"),
        (("cuda:0",), RuntimeError, r"device 'cuda' is not available; available here: cpu"),
        (("cpuu",), RuntimeError, r"'cpuu' is not a device type; available here: cpu"),
        (("cpu:1",), RuntimeError, r"no device 'cpu:1': 1 of type 'cpu' here"),
        (("cpu:x",), RuntimeError, r"invalid device 'cpu:x'"),
        (("cpu:",), RuntimeError, r"invalid device 'cpu:'"),
        (("cpu:0", 0), RuntimeError, r"has an index already"),
        (("cpu", -1), RuntimeError, r"no device"),
        (("cpu", "0"), TypeError, r"expects an integer index, got '0'"),
        ((0,), TypeError, r"expects text such as 'cpu' or a Device, got 0"),
    ],
)
def test_device_errors(args: tuple[object, ...], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        device(*args)  # type: ignore[arg-type]


def test_registered_device_types(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_COUNTS", dict(devices._COUNTS))
    devices.register("fancy", lambda: 2)
    assert devices.available() == ["cpu", "fancy:0", "fancy:1"]
    assert devices.canonical(device("fancy")) == device("fancy:0")
    with pytest.raises(RuntimeError, match="no device 'fancy:2': 2 of type 'fancy' here; available: cpu, fancy:0, fancy:1"):
        device("fancy", 2)
