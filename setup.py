"""Only the package map: the folder ``kernels/`` is imported as ``glance_fast.kernels``.

Everything else stands in ``pyproject.toml``.
"""

from setuptools import find_packages, setup

own = find_packages(include=["glance_fast", "glance_fast.*"])
kernels = ["glance_fast.kernels", *(f"glance_fast.kernels.{name}" for name in find_packages("kernels"))]

setup(packages=[*own, *kernels], package_dir={"glance_fast.kernels": "kernels"})
