"""The weights that ship with the package: a Local-Net for each patch size, and the assistant."""

from __future__ import annotations

from importlib.resources import as_file, files

from glance_fast.nets.student import Student
from glance_fast.nets.teacher import Teacher, load_assistant


def builtin_local_net(patch: int) -> Student:
    """The built-in Local-Net for patches of 32 or 64 pixels, with its decoder."""
    with as_file(files("glance_fast.nets") / "weights" / f"local-{patch}.safetensors") as path:
        return Student.load(path)


def builtin_assistant() -> Teacher:
    """The built-in assistant: a small stand-in for the teacher, for fine-tuning Local-Net."""
    with as_file(files("glance_fast.nets") / "weights" / "assistant.safetensors") as path:
        return load_assistant(path)
