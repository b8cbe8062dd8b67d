"""Every operator, defined once. Importing this package loads all records."""

import gc
import importlib
import pkgutil


def _load() -> None:
    collects = gc.isenabled()
    gc.disable()  # thousands of records are made here, and none is garbage: looking for some takes a tenth of the import
    try:
        for name in sorted(m.name for m in pkgutil.iter_modules(__path__)):
            importlib.import_module(f"{__name__}.{name}")
    finally:
        if collects:
            gc.enable()


_load()
