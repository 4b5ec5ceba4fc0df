"""Strict defaults for every test: four CPU devices, no silent rank promotion, warnings are errors."""

import itertools
import logging
import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("PJRT_NPROC", "16")  # collectives of four devices on two cores can starve with fewer threads
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most tests compile for longer than they compute.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")

import jax
import pytest
from hypothesis import settings

REPOSITORY = Path(__file__).parent.parent
FILES = itertools.count(1)

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(REPOSITORY / ".jax_cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)

settings.register_profile("jaxai", deadline=None, max_examples=30)  # a first call compiles, so no deadline
settings.load_profile("jaxai")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test marked ``grid(fast=n)``, mark all cases slow but n, evenly spaced."""
    grids: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("grid"):
            grids.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for cases in grids.values():
        marker = cases[0].get_closest_marker("grid")
        assert marker
        fast = {number * len(cases) // marker.kwargs["fast"] for number in range(marker.kwargs["fast"])}
        for number, case in enumerate(cases):
            if number not in fast:
                case.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def own_messages() -> Iterator[None]:
    """A command run in a test leaves no handler behind: its stream is closed when that test is over."""
    project = logging.getLogger("jaxai")
    before = project.handlers[:], project.level, project.propagate
    yield
    project.handlers[:], project.level, project.propagate = before


@pytest.fixture(autouse=True, scope="module")
def own_programs() -> Iterator[None]:
    """Compiled programs are dropped after every third file: those of all tests would need several GiB."""
    yield
    if next(FILES) % 3 == 0:
        jax.clear_caches()


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)
