"""A NaN or an infinity: the report, and abort, skip or rollback."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxai.errors import Rollback, Stopped
from jaxai.run.folder import Run
from jaxai.train.nonfinite import LIMIT, CallResult, NonFiniteMonitor, leaves_not_finite
from jaxai.train.supervised import init_state, train_step
from tests.helpers import Blobs, hex_losses, images_run, lines_of, tiny_gan, train


def test_a_report_names_the_examples_of_data_on_the_device(tmp_path, accelerated):
    step, init, made = images_run()

    def fails(state, batch):
        state, metrics = step(state, batch)
        return state, metrics | {"odd": jnp.where(state.step == 3, jnp.nan, 1.0)}

    with pytest.raises(FloatingPointError):
        train(tmp_path, 9, gan=(fails, init), batches=made(), steps_per_call=4)
    expected = made()
    for _ in range(2):
        next(expected)
    assert json.loads((tmp_path / "nonfinite.json").read_text())["ids"] == next(expected)["id"].tolist()


class Poisoned(Blobs):
    """The fourth batch holds a NaN."""

    def __next__(self):
        batch = super().__next__()
        if self.position == 4:
            batch["image"][2, 1, 1, 0] = np.nan
        return batch


@pytest.mark.parametrize("steps_per_call", [1, 5])
def test_loss_that_is_not_finite_stops_the_run_with_a_report(tmp_path, steps_per_call):
    with pytest.raises(FloatingPointError, match=r"at step 4, see .*nonfinite.json.*lower the learning rate"):
        train(tmp_path, 9, checkpoint_every=3, batches=Poisoned(), steps_per_call=steps_per_call)
    report = json.loads((tmp_path / "nonfinite.json").read_text())
    assert report["step"] == 4
    assert "discriminator_loss" in report["not_finite"]
    assert any(name.startswith("discriminator/") for name in report["leaves"])
    assert [step for step, *_ in hex_losses(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    assert max(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == 3


class Once(Poisoned):
    """Poisoned the first time only."""

    def __next__(self):
        batch = super().__next__()
        if np.isnan(batch["image"]).any():
            self.__class__ = Blobs
        return batch


@pytest.mark.parametrize("steps_per_call", [1, 5])
@pytest.mark.grid(fast=1)
def test_a_step_that_is_not_finite_is_skipped_on_request(tmp_path, steps_per_call, caplog):
    config = {"on_nonfinite": "skip", "checkpoint_every": 3, "steps_per_call": steps_per_call}
    found = train(tmp_path, 9, batches=Poisoned(), **config).state
    step, init = tiny_gan()
    state, batches, taken = jax.jit(init)(), Poisoned(), jax.jit(step)
    for number in range(1, 10):
        new, _ = taken(state, next(batches))
        state = state.replace(step=new.step) if number == 4 else new
    assert int(found.step) == 9
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found.generator, state.generator)
    lines = lines_of(tmp_path)
    assert [line["skipped"] for line in lines] == [0, 0, 0, 1, 0, 0, 0, 0, 0]
    assert "discriminator_loss" not in lines[3]
    assert all("worst_leaf" not in line for line in lines)
    report = json.loads((tmp_path / "nonfinite.json").read_text())
    assert (report["step"], report["batch"]) == (4, 3)
    assert report["worst_leaf"].split("/")[0] in {"generator", "discriminator", "ema_params", "discriminator_opt"}
    assert "at step 4, see" in caplog.text
    assert "the step is skipped" in caplog.text


def odd_run():
    """(step, init, batches) of a linear model of ten weights: no size of it is a power of two."""
    tx = optax.sgd(1e-3)

    def loss_fn(params, batch, key):
        return ((batch["image"].reshape(8, -1)[:, :10] @ params["weights"]) ** 2).mean(), {}

    def init():
        return init_state({"weights": jnp.ones(10)}, tx, jax.random.key(0))

    return partial(train_step, loss_fn=loss_fn, tx=tx), init


def test_nothing_is_skipped_without_need(tmp_path):
    train(tmp_path, 5, gan=odd_run(), on_nonfinite="skip")
    assert [line["skipped"] for line in lines_of(tmp_path)] == [0.0] * 5


def test_a_metric_alone_that_is_not_finite_names_no_leaf(tmp_path):
    step, init = odd_run()

    def noted(state, batch):
        state, metrics = step(state, batch)
        return state, metrics | {"odd": jnp.where(state.step == 3, jnp.nan, 1.0)}

    train(tmp_path, 5, gan=(noted, init), on_nonfinite="skip")
    report = json.loads((tmp_path / "nonfinite.json").read_text())
    assert (report["not_finite"], report["worst_leaf"]) == (["odd"], None)


class Rotten(Blobs):
    """Every batch from the fourth on holds a NaN."""

    def __next__(self):
        batch = super().__next__()
        if self.position >= 4:
            batch["image"][0] = np.nan
        return batch


def test_ten_skipped_steps_in_a_row_stop_the_run(tmp_path):
    with pytest.raises(FloatingPointError, match=r"at step 13, see .*: 10 steps in a row are skipped"):
        train(tmp_path, 30, batches=Rotten(), on_nonfinite="skip")


def test_a_step_that_is_not_finite_sets_back_on_request(tmp_path):
    options = {"on_nonfinite": "rollback", "checkpoint_every": 3}
    train(tmp_path / "once", 9, batches=Once(), **options)
    (told,) = json.loads((tmp_path / "once" / "rollbacks.json").read_text())["rollbacks"]
    assert (told["to"], "is nan at step 4" in told["reason"]) == (3, True)
    with pytest.raises(Stopped, match=r"at step 4, see .*; already rolled back 3 times"):
        train(tmp_path / "rotten", 9, batches=Rotten(), **options)


def test_a_report_names_the_examples(tmp_path):
    class Named(Poisoned):
        def __next__(self):
            batch = super().__next__()
            return batch | {"id": np.arange(8) + 8 * self.position}

    with pytest.raises(FloatingPointError):
        train(tmp_path, 9, batches=Named())
    assert json.loads((tmp_path / "nonfinite.json").read_text())["ids"] == list(range(32, 40))


def test_leaves_are_counted_and_the_worst_share_comes_first():
    state = {
        "fine": jnp.ones(5),
        "few": jnp.array([jnp.nan] * 3 + [1.0] * 97),
        "most": jnp.array([jnp.inf, -jnp.inf, 1.0]),
        "number": jnp.arange(3),
        "empty": jnp.zeros((0, 2)),
    }
    assert leaves_not_finite(state) == {"most": 2, "few": 3}
    assert list(leaves_not_finite(state)) == ["most", "few"]
    assert leaves_not_finite({"fine": jnp.ones(2)}) == {}


def test_metrics_of_finite_steps_pass_as_they_are(tmp_path):
    monitor = NonFiniteMonitor(Run(tmp_path), "abort")
    taken = CallResult(4, 2, {"loss": jnp.array([0.5, 0.25]), "accuracy": jnp.array([0.0, 1.0])}, [None, None])
    rows = list(monitor.rows(taken, {}))
    assert rows == [(5, {"loss": 0.5, "accuracy": 0.0}), (6, {"loss": 0.25, "accuracy": 1.0})]
    assert not list(tmp_path.iterdir())


def test_rows_before_the_bad_one_are_still_given(tmp_path):
    monitor = NonFiniteMonitor(Run(tmp_path), "rollback")
    rows = monitor.rows(CallResult(0, 3, {"loss": jnp.array([0.5, jnp.inf, 0.5])}, [None] * 3), {"w": jnp.ones(2)})
    assert next(rows) == (1, {"loss": 0.5})
    with pytest.raises(Rollback, match="loss is inf at step 2, see") as rollback:
        next(rows)
    assert rollback.value.last_good_step == 1
    report = json.loads((tmp_path / "nonfinite.json").read_text())
    assert (report["metrics"], report["leaves"], report["worst_leaf"]) == ({"loss": "inf"}, {}, None)


def test_a_finite_step_ends_the_row_of_skipped_ones(tmp_path):
    monitor = NonFiniteMonitor(Run(tmp_path), "skip")

    def take(loss: float) -> None:
        skipped = 0.0 if np.isfinite(loss) else 1.0
        metrics = {"loss": loss, "skipped": skipped, "worst_leaf": -1.0}
        columns = {name: jnp.array([value]) for name, value in metrics.items()}
        list(monitor.rows(CallResult(0, 1, columns, [None]), {"w": jnp.ones(2)}))

    for _ in range(3):
        for _ in range(LIMIT - 1):
            take(np.nan)
        take(1.0)
    for _ in range(LIMIT - 1):
        take(np.nan)
    with pytest.raises(FloatingPointError, match="10 steps in a row are skipped"):
        take(np.nan)
