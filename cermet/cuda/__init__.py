"""`cermet.cuda`: what scripts ask before they choose a device. There is no CUDA target yet, and this says so."""

from __future__ import annotations

from cermet import devices, random
from cermet.cuda import amp

__all__ = ["amp", "device_count", "empty_cache", "is_available", "manual_seed", "manual_seed_all", "synchronize"]


def is_available() -> bool:
    """Whether tensors can live on a CUDA device here."""
    return "cuda" in devices.available()


def device_count() -> int:
    """Number of CUDA devices that can be used."""
    return sum(name.startswith("cuda") for name in devices.available())


def manual_seed(seed: int) -> None:
    """Seed the random numbers: they are one stream for all devices."""
    random.manual_seed(seed)


manual_seed_all = manual_seed


def synchronize(device: object = None) -> None:
    """Wait for a device.

    Raises:
        RuntimeError: when there is none.
    """
    if not is_available():
        raise RuntimeError("cuda.synchronize: no CUDA device can be used here; ask cermet.cuda.is_available() first")


def empty_cache() -> None:
    """Return cached device memory to the system; nothing to do where there is no device."""
