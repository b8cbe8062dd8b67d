"""Saving and loading state dicts: safetensors with a JSON description of the structure, never pickle."""

from cermet.io.structure import load, save

__all__ = ["load", "save"]
