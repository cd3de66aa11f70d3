"""What every saved benchmark says of the machine it ran on."""

import pytest

from benchmarks.costs.machine import describe


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config, machine_info):
    """Add device, threads and versions to pytest-benchmark's JSON."""
    machine_info["glance_fast"] = describe()
