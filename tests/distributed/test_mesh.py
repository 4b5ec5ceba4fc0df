"""Device meshes, and the rows of a batch that each process reads."""

import inspect
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxai.distributed.mesh import make_mesh, on_accelerator, processes


def test_a_mesh_of_all_devices_splits_the_batch():
    assert dict(make_mesh().shape) == {"data": 4, "model": 1}
    assert dict(make_mesh(2).shape) == {"data": 2, "model": 1}
    assert dict(make_mesh(shape="data=2,model=2").shape) == {"data": 2, "model": 2}
    assert dict(make_mesh(shape="data=3").shape) == {"data": 3, "model": 1}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shape": "data=8"}, "--mesh data=8 needs 8 devices, but there are 4"),
        ({"shape": "data=2,model=2", "batch_size": 3}, "--batch-size 3 does not divide over 2 devices"),
        ({"devices": 4, "batch_size": 6}, "--batch-size 6 does not divide over 4 devices"),
        ({"shape": "model=2"}, "--mesh must look like"),
    ],
)
def test_meshes_that_cannot_be(options, words):
    with pytest.raises(ValueError, match=words):
        make_mesh(**options)


def test_one_process_reads_everything():
    for mesh in (make_mesh(), make_mesh(shape="data=2,model=2")):
        assert processes(mesh) == {"process_index": 0, "process_count": 1}


def test_batch_that_does_not_divide_over_the_devices_is_refused():
    with pytest.raises(ValueError, match="--batch-size 6 does not divide over 4 devices"):
        make_mesh(4, batch_size=6)


rows_of, accelerates = map(inspect.unwrap, (processes, on_accelerator))  # they check for a Mesh


def split(rows: list[list[int]], own: set[int]) -> SimpleNamespace:
    """A mesh of devices by number, of which this process has some."""
    devices = np.array(rows)
    return SimpleNamespace(devices=devices, local_devices=own, shape={"data": len(rows), "model": len(rows[0])})


def test_several_processes_read_neighbouring_rows():
    rows = [[0], [1], [2], [3]]
    assert rows_of(split(rows, {0, 1})) == {"process_index": 0, "process_count": 2}
    assert rows_of(split(rows, {2, 3})) == {"process_index": 1, "process_count": 2}
    assert rows_of(split(rows, {3})) == {"process_index": 3, "process_count": 4}


def test_processes_along_the_model_axis_read_the_same_rows():
    rows = [[0, 2], [1, 3]]
    for own in ({0, 1}, {2, 3}):
        assert rows_of(split(rows, own)) == {"process_index": 0, "process_count": 1}


@pytest.mark.parametrize("own", [{0, 2}, {1, 2}, {0, 1, 2}])
def test_rows_that_are_not_next_to_each_other_are_refused(own):
    with pytest.raises(ValueError, match=r"the mesh {'data': 4, 'model': 1} does not divide over the processes"):
        rows_of(split([[0], [1], [2], [3]], own))


def test_a_mesh_takes_the_first_devices_in_order():
    assert make_mesh(3).devices.ravel().tolist() == jax.devices()[:3]
    assert make_mesh(shape="data=2,model=2").devices.ravel().tolist() == jax.devices()
    assert make_mesh(2, batch_size=6).axis_names == ("data", "model")


def test_a_cpu_is_no_accelerator():
    assert not on_accelerator(make_mesh())
    assert accelerates(SimpleNamespace(devices=np.array([[SimpleNamespace(platform="gpu")]])))
