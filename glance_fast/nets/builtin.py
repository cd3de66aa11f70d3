"""The weights that ship with the package: the teacher, Local-Nets, and the masked Global-Net's start."""

from __future__ import annotations

from importlib.resources import as_file, files

from glance_fast.nets.global_start import load_global_start
from glance_fast.nets.masked import MaskedNet
from glance_fast.nets.student import Student
from glance_fast.nets.teacher import Teacher, load_teacher


def builtin_local_net(patch: int) -> Student:
    """The built-in Local-Net for patches of 32 or 64 pixels, with its decoder."""
    with as_file(files("glance_fast.nets") / "weights" / f"local-{patch}.safetensors") as path:
        return Student.load(path)


def builtin_teacher() -> Teacher:
    """The built-in teacher: ResNet-18 through layer3, by which Local-Net is fine-tuned."""
    with as_file(files("glance_fast.nets") / "weights" / "teacher.safetensors") as path:
        return load_teacher(path)


def start_global_net(net: MaskedNet) -> bool:
    """Give a Global-Net the built-in start, if it has the default shape of net "pyramid"; whether it has."""
    with as_file(files("glance_fast.nets") / "weights" / "global.safetensors") as path:
        state = load_global_start(path, net.patch)
    wanted = net.state_dict()
    if {n: v.shape for n, v in state.items()} != {n: v.shape for n, v in wanted.items()}:
        return False
    net.load_state_dict(state)
    return True
