"""The device and its measured limits: rate of a large product, bandwidth of a copy, launch time of a program."""

import importlib.util
import subprocess
import time

import jax
import jax.numpy as jnp
from timing import build, matrix_product, race, turns

from gpu_sections.session import Session
from jaxai.distributed.peaks import PEAKS


def run(session: Session) -> None:
    """Report versions and measure the limits."""
    device = jax.devices()[0]
    session.row("device", session.device, detail=f"{len(jax.devices())} visible")
    session.row("compute capability", str(getattr(device, "compute_capability", "none")))
    session.row("driver", driver())
    session.row("tokamax", "installed" if importlib.util.find_spec("tokamax") else "not installed")
    with session.peer("torch_attention.py") as torch:
        if torch:
            session.row("PyTorch", torch(ask="versions")["torch"])
    size = 128 if session.dry else 8192
    peak = PEAKS.get(session.device)
    with session.guarded("matrix product"):
        seconds = race({"product": matrix_product(size, jnp.bfloat16)}, **session.timing)["product"]
        rates = [2 * size**3 / value / 1e12 for value in seconds]
        share = f"{max(rates) * 1e12 / peak:.0%} of {peak / 1e12:.0f}" if peak else "the device's peak is unknown"
        session.row(f"matrix product {size}, bfloat16", unit="TFLOP/s", values=rates, detail=share)
    with session.guarded("copy"):
        x = jnp.zeros(2 ** (20 if session.dry else 30), jnp.uint8)
        seconds = race({"copy": turns(build(lambda x: x + 1, x)[0], x)}, **session.timing)["copy"]
        rates = [2 * x.size / value / 1e9 for value in seconds]
        session.row(f"copy of {x.size >> 20} MiB, read and written", unit="GB/s", values=rates)
    with session.guarded("start of a program"):
        small = jnp.zeros(())
        program = jax.jit(lambda x: x + 1)
        small = program(small)
        before = time.perf_counter()
        for _ in range(1000):
            small = program(small)
        session.row("start of a program, on the host", 1e3 * (time.perf_counter() - before), "µs")
        jax.block_until_ready(small)


def driver() -> str:
    """The driver's version according to nvidia-smi."""
    line = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(line, capture_output=True, text=True, check=True, timeout=20).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown: no nvidia-smi"
