"""The package map, and the C code: the folder ``kernels/`` is imported as ``glance_fast.kernels``.

Everything else stands in ``pyproject.toml``.
"""

from pathlib import Path

from setuptools import Extension, find_packages, setup

own = find_packages(include=["glance_fast", "glance_fast.*"])
kernels = ["glance_fast.kernels", *(f"glance_fast.kernels.{name}" for name in find_packages("kernels"))]

setup(
    packages=[*own, *kernels],
    package_dir={"glance_fast.kernels": "kernels"},
    ext_modules=[
        Extension(
            "glance_fast.kernels._native",
            sorted(map(str, Path("kernels").glob("*/native.c"))),
            depends=list(map(str, Path("kernels").rglob("*.h"))),
            extra_compile_args=["-O3"],
            # Without a compiler, Numba does the same more slowly.
            optional=True,
        )
    ],
)
