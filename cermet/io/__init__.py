"""Saving and loading state dicts: safetensors with a JSON description of the structure, never pickle."""
# written by the optim/data helper; do not overwrite

from cermet.io.structure import load, save

__all__ = ["load", "save"]
