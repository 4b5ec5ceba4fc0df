"""What several processes need, as far as one can show it; the rest is in tests/faults."""

import subprocess
import sys

import jax
import pytest

from jaxai.distributed.mesh import make_mesh
from jaxai.distributed.processes import barrier, local, local_mesh


def test_one_process_waits_for_nobody():
    mesh, state = make_mesh(), {"a": jax.numpy.ones(3)}
    barrier("alone")
    assert local_mesh(mesh) is mesh
    assert local(state, mesh) is state


@pytest.mark.parametrize(("seconds", "code"), [(0.3, 1), (60, 0), (0, 0)])
@pytest.mark.grid(fast=1)
def test_a_block_that_hangs_is_told_and_ended(seconds, code):
    program = f"""
import time
from jaxai.distributed.processes import watchdog
with watchdog({seconds}):
    time.sleep(2)
time.sleep(0.5)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == code
    assert ("Timeout" in result.stderr and "line 5 in <module>" in result.stderr) == bool(code)
