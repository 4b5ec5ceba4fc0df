"""Every benchmark can choose its platform, and its programs fit their batches."""

import importlib
import subprocess
import sys

import jax
import pytest

from tests.conftest import REPOSITORY

BENCHMARKS = REPOSITORY / "benchmarks"
SCRIPTS = sorted(path.stem for path in BENCHMARKS.glob("*.py"))


def test_importing_a_benchmark_does_not_start_jax():
    """The platform and its devices are chosen afterwards."""
    program = f"import sys\nsys.path.insert(0, {str(BENCHMARKS)!r})\nimport importlib, jax\n"
    program += f"for number, name in enumerate({SCRIPTS}):\n    importlib.import_module(name)\n"
    program += (
        "    jax.config.update('jax_num_cpu_devices', 1 + number)  # refused once JAX has started\n    print(name)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == SCRIPTS


@pytest.mark.parametrize("name", ["classifier", "Transformer", "GAN without a penalty", "GAN with R1 and R2"])
def test_steps_of_the_scaling_benchmark_take_their_batches(name, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    programs = importlib.import_module("scaling").PROGRAMS
    assert name in programs
    step, init, batch = programs[name]()
    state = jax.eval_shape(init)
    new, metrics = jax.eval_shape(step, state, batch)
    assert jax.tree.structure(new) == jax.tree.structure(state)
    assert metrics
