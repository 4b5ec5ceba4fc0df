"""Checkpoints: what was saved comes back, what was damaged is found, and another model's is refused by name."""

import errno
import itertools
import os
import re
import shutil
import threading
import time
from contextlib import closing
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxai.distributed.mesh import make_mesh
from jaxai.distributed.sharding import state_sharding
from jaxai.errors import Stopped
from jaxai.run import checkpoint as checkpoint
from jaxai.run.checkpoint import Checkpoints, Damaged, verify
from jaxai.train.supervised import init_state
from tests.helpers import same_bits


def state_of(params: dict, *, tx=None, seed_type: str | None = None, keep_ema: bool = False):
    key = jax.random.key(1, impl=seed_type)
    return init_state(params, tx or optax.adam(1e-3), key, keep_ema=keep_ema)


def params_of(inputs: int = 3, dtype: str = "float32", **more) -> dict:
    return {"dense": {"kernel": jnp.ones((inputs, 4), dtype), "bias": jnp.zeros(4)}, **more}


def restore(folder, state):
    shapes = jax.eval_shape(lambda: state)
    with closing(Checkpoints(folder)) as checkpoints:
        return checkpoints.restore(5, shapes, state_sharding(shapes, make_mesh(1)))


@pytest.fixture
def folder(tmp_path):
    with closing(Checkpoints(tmp_path / "checkpoints")) as checkpoints:
        checkpoints.save(5, state_of(params_of()), {"batches": {"next_index": 5}})
    return tmp_path / "checkpoints"


def test_the_same_model_comes_back(folder):
    state, host = restore(folder, state_of(params_of()))
    assert same_bits(state, state_of(params_of()))
    assert host == {"batches": {"next_index": 5}}


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (lambda: state_of(params_of(inputs=1)), r"params/dense/kernel is float32\[3, 4\], not float32\[1, 4\]"),
        (
            lambda: state_of(params_of(dtype="bfloat16")),
            r"params/dense/kernel is float32\[3, 4\], not bfloat16\[3, 4\]",
        ),
        (lambda: state_of(params_of(more=jnp.ones(()))), r"params/more is absent, not float32\[\]"),
        (lambda: state_of({"bias": jnp.zeros(4)}), r"params/bias is absent, not float32\[4\]"),
        (lambda: state_of(params_of(), tx=optax.sgd(1e-3)), r"opt_state/0/count is int32\[\], not absent"),
        (lambda: state_of(params_of(), keep_ema=True), r"ema_params/dense/bias is absent, not float32\[4\]"),
        (lambda: state_of(params_of(), seed_type="rbg"), r"key is uint32\[2\], not uint32\[4\]"),
    ],
)
def test_another_model_is_refused_by_name(folder, other, difference):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(
        ValueError, match=rf"checkpoints/5 is a checkpoint of another model: {difference}: use"
    ) as caught:
        restore(folder, other())
    assert "\n" not in str(caught.value)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def damage_truncate(path: Path, other: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage_empty(path: Path, other: Path) -> None:
    path.write_bytes(b"")


def damage_delete(path: Path, other: Path) -> None:
    path.unlink()


def damage_swap(path: Path, other: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(content)


DAMAGES = [damage_truncate, damage_empty, damage_delete, damage_swap]


def files_of(step: Path) -> list[Path]:
    return sorted(path for path in step.rglob("*") if path.is_file() and path.stat().st_size)


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damaged_file_is_named(folder, tmp_path, damage):
    verify(folder / "5")
    names = [path.relative_to(folder / "5") for path in files_of(folder / "5")]
    assert len(names) > 5
    for name, other in itertools.pairwise([*names, names[0]]):
        shutil.copytree(folder / "5", tmp_path / "copy")
        damage(tmp_path / "copy" / name, tmp_path / "copy" / other)
        with pytest.raises(Damaged, match=re.escape(name.name) + "|" + re.escape(other.name)):
            verify(tmp_path / "copy")
        shutil.rmtree(tmp_path / "copy")


def test_every_flipped_bit_is_found(folder):
    rng = np.random.default_rng(0)
    files = files_of(folder / "5")
    for _ in range(200):
        path = files[rng.integers(len(files))]
        content = bytearray(before := path.read_bytes())
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        path.write_bytes(content)
        with pytest.raises(Damaged, match=re.escape(path.name)):
            verify(folder / "5")
        path.write_bytes(before)
    verify(folder / "5")


def test_damaged_checkpoints_are_set_aside_for_the_newest_good_one(tmp_path, caplog):
    folder = tmp_path / "checkpoints"
    (folder / "9.corrupt").mkdir(parents=True)
    with closing(Checkpoints(folder, keep=4)) as checkpoints:
        for step in (5, 7, 9):
            checkpoints.save(step, state_of(params_of()), {})
        checkpoints.wait()
        for step in (7, 9):
            (folder / str(step) / "state" / "_METADATA").unlink()
        assert checkpoints.newest_good() == 5
        assert sorted(path.name for path in folder.iterdir()) == ["5", "7.corrupt", "9.corrupt", "9.corrupt.1"]
        said = [record.getMessage() for record in caplog.records]
        assert "_METADATA is missing: the checkpoint of step 9 is damaged and now called 9.corrupt.1" in said[0]
        assert "step 7" in said[1]
        (folder / "5" / "manifest.json").write_text("[]")
        assert checkpoints.newest_good() is None


def test_the_best_checkpoints_stay_beside_the_newest(tmp_path):
    losses = {1: 3.0, 2: 1.0, 3: 2.0, 4: 4.0, 5: 1.5}
    with closing(Checkpoints(tmp_path, keep=1, lowest=["loss"], highest=["loss", "accuracy"])) as checkpoints:
        for step, loss in losses.items():
            checkpoints.save(step, {"x": jnp.ones(2)}, {"metrics": {"loss": loss}})
        assert checkpoints.steps() == [2, 4, 5]


def test_what_is_not_surely_temporary_stays(folder):
    kept = ["5", "5.old", "6.orbax-checkpoint-tmp", "notes.unfinished"]
    for name in (*kept[1:], "6.unfinished"):
        shutil.copytree(folder / "5", folder / name)
    with closing(Checkpoints(folder)) as checkpoints:
        assert checkpoints.steps() == [5]
    assert sorted(path.name for path in folder.iterdir()) == kept


def test_a_save_that_fails_is_told_and_leaves_nothing(folder, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("jaxai.run.checkpoint.write_manifest", full)
    for waits in ("wait", "steps", "newest_good", "close"):
        with closing(Checkpoints(folder)) as checkpoints:
            checkpoints.save(6, state_of(params_of()), {})
            message = r"step 6 can't be written .*\(No space left on device\), that of step 5 is"
            with pytest.raises(Stopped, match=message):
                getattr(checkpoints, waits)()
            checkpoints.wait()  # an error is raised once
        assert [path.name for path in folder.iterdir()] == ["5"]


def test_training_goes_on_while_a_checkpoint_is_written(folder, monkeypatch):
    """And changes nothing of it, though the next step reuses the memory of the state."""
    trained, write = threading.Event(), checkpoint.write_manifest

    def late(*arguments) -> None:
        assert trained.wait(60)
        write(*arguments)

    monkeypatch.setattr("jaxai.run.checkpoint.write_manifest", late)
    step = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    state = step({"x": jnp.zeros(10_000)})
    with closing(Checkpoints(folder)) as checkpoints:
        checkpoints.save(6, state, {})
        for _ in range(3):
            state = step(state)
        jax.block_until_ready(state)
        checkpoints.check()  # nothing is wrong so far
        assert not (folder / "6").exists()
        trained.set()
        assert checkpoints.newest_good() == 6
        shapes = jax.eval_shape(lambda: state)
        restored, _ = checkpoints.restore(6, shapes, state_sharding(shapes, make_mesh(1)))
    assert np.unique(restored["x"]).tolist() == [1]


def check_often(checkpoints: Checkpoints) -> None:
    for _ in range(6_000):
        checkpoints.check()
        time.sleep(0.01)


def test_a_failed_write_is_noticed_without_waiting(folder, monkeypatch):
    def fails(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("jaxai.run.checkpoint.write_manifest", fails)
    with closing(Checkpoints(folder)) as checkpoints:
        checkpoints.save(6, state_of(params_of()), {})
        with pytest.raises(Stopped, match="step 6 can't be written"):
            check_often(checkpoints)


def test_a_value_that_is_no_number_is_never_the_best(tmp_path):
    with closing(Checkpoints(tmp_path, keep=1, lowest=["loss"])) as checkpoints:
        for step, loss in enumerate([float("nan"), 1.0, 2.0, 3.0], 1):
            checkpoints.save(step, {"x": jnp.ones(2)}, {"metrics": {"loss": loss}})
        assert checkpoints.steps() == [2, 4]


def test_a_damaged_best_checkpoint_does_not_stop_the_next_save(tmp_path, caplog):
    with closing(Checkpoints(tmp_path, keep=1, lowest=["loss"])) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, {"x": jnp.ones(2)}, {"metrics": {"loss": float(step)}})
        checkpoints.wait()
        (tmp_path / "1" / "manifest.json").write_text("{}")
        checkpoints.save(3, {"x": jnp.ones(2)}, {"metrics": {"loss": 3.0}})
        assert checkpoints.steps() == [2, 3]
    assert "step 1 is damaged and now called 1.corrupt" in caplog.text


def test_the_newest_evaluations_stay_beside_the_newest(tmp_path):
    with closing(Checkpoints(tmp_path, keep=2, evaluations=[5, 8])) as checkpoints:
        for step in (5, 8, 10, 15, 16, 17, 18):
            checkpoints.save(step, {"x": jnp.ones(2)}, {})
        assert checkpoints.steps() == [8, 10, 15, 16, 17, 18]
        checkpoints.save(24, {"x": jnp.ones(2)}, {})
        assert checkpoints.steps() == [10, 15, 16, 18, 24]


def test_what_is_not_json_is_no_full_disk(folder):
    with closing(Checkpoints(folder)) as checkpoints, pytest.raises(TypeError):
        checkpoints.save(6, state_of(params_of()), {"metrics": {"x": np.float32(1)}})
    assert [path.name for path in folder.iterdir()] == ["5"]


def test_a_sector_that_cannot_be_read_is_damage_and_no_permission_is_not(folder, monkeypatch):
    def fails(number):
        def read(path):
            raise OSError(number, os.strerror(number), str(path))

        return read

    monkeypatch.setattr("jaxai.run.checkpoint.file_hash", fails(errno.EIO))
    with pytest.raises(Damaged, match="Input/output error"):
        verify(folder / "5")
    monkeypatch.setattr("jaxai.run.checkpoint.file_hash", fails(errno.EACCES))
    with pytest.raises(PermissionError):
        verify(folder / "5")
