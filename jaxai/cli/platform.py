"""Settings of a process: platform, number of devices, compilation cache, memory allocator."""

import ctypes
import os
import sys
from pathlib import Path

import jax

from jaxai import errors
from jaxai.errors import UserError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # <malloc.h>


PLATFORMS = {"cpu": "cpu", "gpu": "cuda", "tpu": "tpu"}


INSTALL = {
    "gpu": "install JAX for it with pip install -e '.[cuda12]' or pip install -e '.[cuda13]'",
    "tpu": "install JAX for it with pip install -e '.[tpu]'",
}


def start_platform(platform: str, devices: int) -> None:
    """Set JAX's platform and number of CPU devices. Call before using any device.

    Raises ValueError if the platform is unavailable, naming the extra to install, or has too few devices.
    """
    if platform in ("auto", "cpu"):
        keep_freed_memory()
    if devices > 1:
        # Collectives stall with fewer threads than devices; far more threads than cores make a step 1.5 times as slow.
        os.environ.setdefault("PJRT_NPROC", str(max(2 * devices, os.cpu_count() or 1)))
    if platform != "auto":
        jax.config.update("jax_platforms", PLATFORMS[platform])
    if devices > 0:
        jax.config.update("jax_num_cpu_devices", devices)
    try:
        found = jax.device_count()
    except (RuntimeError, AssertionError) as error:  # jax 0.12 asserts where a platform has no plugin at all
        if platform not in INSTALL:
            raise
        message = f"--platform {platform}: JAX finds none here; {INSTALL[platform]}, or use --platform cpu"
        raise UserError(f"{message} ({errors.one_line(error)})" if str(error) else message) from error
    if devices > found:
        raise UserError(f"--devices {devices}: JAX finds only {found}; ask for at most {found}")


def keep_freed_memory() -> None:
    """Make glibc keep freed memory instead of returning it to the kernel. Call before JAX starts.

    XLA's CPU client allocates the outputs and temporaries of every step; by default glibc maps and unmaps blocks above
    32 MiB each time, and touching 128 MiB of fresh pages takes about 16 ms (adding 10 M floats takes 13.7 ms, with this
    setting 1.5 ms). The process never returns freed memory. Does nothing without glibc.
    """
    if sys.platform != "linux" or not hasattr(libc := ctypes.CDLL(None), "mallopt"):
        return
    for parameter, value in ((M_MMAP_THRESHOLD, 2**30), (M_TRIM_THRESHOLD, 2**31 - 1), (M_ARENA_MAX, 1)):
        libc.mallopt(parameter, value)


def use_compilation_cache() -> None:
    """Cache compiled programs across runs, in JAX_COMPILATION_CACHE_DIR or the user's cache folder."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "jaxai" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
