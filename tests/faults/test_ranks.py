"""Barriers name missing processes; several processes train as on accelerators."""

import json
import subprocess
import sys

import numpy as np
import pytest

from tests.faults.runs import environment, free_port

PROGRAM = """
import sys, time
from jaxai import cli
from jaxai.distributed import cluster, processes
processes.BARRIER_SECONDS = 2
index = int(sys.argv[2])
def meet():
    with cluster.distributed_session(sys.argv[1], 2, index):
        cli.start_platform("cpu", 1)
        processes.barrier("first")
        if index == 1:
            time.sleep(8)
        processes.barrier("second")
cli.guard(meet)
"""


@pytest.mark.slow
def test_a_barrier_names_who_is_missing():
    line, address = [sys.executable, "-c", PROGRAM], f"127.0.0.1:{free_port()}"
    jobs = [
        subprocess.Popen([*line, address, str(index)], stderr=subprocess.PIPE, text=True, env=environment())
        for index in range(2)
    ]
    said = [job.communicate(timeout=120)[1] for job in jobs]
    assert all(job.returncode for job in jobs)
    assert "not all processes reached 'second, 1' within 2 s, missing: 1;" in said[0], said[0]


ACCELERATED = """
import sys
from functools import partial
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np, optax
from jaxai import cli
from jaxai.config import Training
from jaxai.data import ImageDataset
from jaxai.data.pipeline import batches
from jaxai.distributed import cluster
from jaxai.distributed.mesh import make_mesh, processes
from jaxai.train import loop
from jaxai.run.folder import Run
from jaxai.train.supervised import cross_entropy, init_state, train_step
address, count, index, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
loop.on_accelerator = lambda mesh: True
loop.steps_a_call = lambda seconds, apart: 3 + index  # the first process's value must be used
rng, tx = np.random.default_rng(0), optax.adam(1e-2)
images, labels = rng.integers(0, 256, (50, 4, 4, 1), np.uint8), rng.integers(0, 3, 50).astype(np.int32)
data = ImageDataset("numbers", "train", images, labels, 3, "made up", False, "0" * 16)

def loss_fn(params, batch, key):
    return cross_entropy(batch["image"].reshape(len(batch["image"]), -1) / 255.0 @ params["weights"], batch["label"])

def init():
    return init_state({"weights": jnp.zeros((16, 3))}, tx, jax.random.key(0))

def train():
    with cluster.distributed_session(address if count > 1 else "", count, index):
        cli.start_platform("cpu", 2 // count)
        mesh = make_mesh(batch_size=8)
        found = batches(data, 8, seed=0, **processes(mesh))
        own = folder / "processes" / str(index) if index else folder
        own.mkdir(parents=True, exist_ok=True)
        config = Training(steps=20, checkpoint_seconds=0.01)
        step = partial(train_step, loss_fn=loss_fn, tx=tx)
        loop.fit(step, init, found, config, run=Run(own, {}, index), mesh=mesh)

cli.show_messages()
cli.guard(train)
"""


@pytest.mark.slow
def test_processes_agree_on_calls_and_gather_from_data_on_their_devices(tmp_path):
    address = f"127.0.0.1:{free_port()}"
    starts = [("2", "0", tmp_path / "two"), ("2", "1", tmp_path / "two"), ("1", "0", tmp_path / "one")]
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", ACCELERATED, address, *map(str, start)],
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        for start in starts
    ]
    said = [job.communicate(timeout=300)[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0] * 3, said
    assert "3 steps a call" in said[0], said[0]
    files = [tmp_path / "two", tmp_path / "two" / "processes" / "1", tmp_path / "one"]
    lines = [[json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()] for path in files]
    assert lines[0] == lines[1]
    losses = [[line["loss"] for line in run] for run in lines]
    assert len(losses[0]) == 20
    np.testing.assert_allclose(losses[0], losses[2], rtol=1e-5)  # float32 sums in another order
