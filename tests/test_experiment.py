"""What experiments share: from a task to a finished run, which then continues, reports, or is used."""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxai import experiment
from jaxai.config import Finished, Training
from jaxai.data.synthetic.constant import constant_batches
from jaxai.errors import UserError
from jaxai.experiment import Evaluation, Task, Trainer
from jaxai.run.finished import load_run
from jaxai.run.folder import Run
from jaxai.train.keys import Keys
from jaxai.train.supervised import Supervised
from tests.helpers import lines_of

RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 3)).astype(np.float32)
Y = X @ np.array([1.0, -2.0, 0.5], np.float32)
WORDS = {"words": ["a", "b"]}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Training):
    learning_rate: float = 0.1
    eval_every: int = 4


def loss_fn(params, batch, key):
    return ((batch["x"] @ params["w"] - batch["y"]) ** 2).mean(), {}


class Recorder:
    """Builds tasks, and notes what an experiment asks of them."""

    def __init__(self, **options) -> None:
        self.evaluated, self.reports, self.built, self.options = [], [], 0, options

    def evaluate(self, run: Run, step: int, state) -> dict[str, float]:
        self.evaluated.append(step)
        return {"distance": float(jnp.abs(state.params["w"] - jnp.array([1.0, -2.0, 0.5])).max()), "at": float(step)}

    def build(self, config: Config) -> Task:
        self.built += 1
        fields = {
            "identity": {"name": "made up", "fingerprint": "abc", "embedded": False},
            "source": "made up: 16 rows",
            "batches": lambda **rows: constant_batches({"x": X, "y": Y}, **rows),
            "trainer": Supervised(
                init_params=lambda key: {"w": 0.1 * jax.random.normal(key, (3,))},
                loss_fn=loss_fn,
                tx=optax.sgd(config.learning_rate),
            ),
            "report": lambda run, summary: self.reports.append(summary),
            "finish": lambda run, result: {"final": result.step},
            "batch_size": 16,
            "evaluate": self.evaluate,
            "eval_every": config.eval_every,
        }
        return Task(**(fields | self.options))

    def train(self, folder: Path, **options) -> None:
        experiment.train("tiny", self.build, Config(workdir=folder, **({"steps": 10, "devices": 2} | options)))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def summary_of(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def test_a_run_is_trained_evaluated_and_reported(tmp_path):
    recorder = Recorder(vocabulary=WORDS)
    recorder.train(tmp_path)
    assert recorder.evaluated == [0, 4, 8, 10]  # and after the last step, for the summary
    summary = summary_of(tmp_path)
    assert recorder.reports == [summary]
    assert list(summary) == [
        "steps",
        "data",
        "distance",
        "at",
        "parameters",
        "compile_seconds",
        "train_seconds",
        "final",
    ]
    assert (summary["steps"], summary["data"], summary["parameters"]) == (10, "made up: 16 rows", 3)
    assert (summary["at"], summary["final"]) == (10, 10)
    assert summary["train_seconds"] >= 0
    lines = lines_of(tmp_path)
    assert [line["step"] for line in lines if "distance" in line] == [0, 4, 8]
    assert lines[-1]["loss"] < 0.2 * lines[1]["loss"]
    assert json.loads((tmp_path / "vocabulary.json").read_text()) == WORDS
    assert "| distance |" in (tmp_path / "README.md").read_text()


def test_the_trained_parameters_are_those_of_gradient_descent(tmp_path):
    recorder = Recorder()
    recorder.train(tmp_path, seed=5)
    weights = Recorder().build(Config()).trainer.init(Keys(5)).params["w"]
    for _ in range(10):
        weights = weights - 0.1 * 2 / 16 * X.T @ (X @ weights - Y)
    run = load_run("tiny", Config, Finished(workdir=tmp_path))
    found = run.params(lambda key: {"w": jnp.zeros(3)})["w"]
    np.testing.assert_allclose(found, weights, rtol=1e-4, atol=1e-5)  # float32 sums in another order
    assert run.config == Config(seed=5)


def test_a_finished_run_is_reported_again_and_stays_as_it_is(tmp_path):
    recorder = Recorder(vocabulary=WORDS)
    recorder.train(tmp_path)
    before, evaluated = files(tmp_path), list(recorder.evaluated)
    for steps in (10, 3):
        recorder.train(tmp_path, steps=steps)
    assert files(tmp_path) == before
    assert recorder.evaluated == evaluated
    assert recorder.reports == [summary_of(tmp_path)] * 3


def test_a_finished_run_goes_on_with_more_steps(tmp_path):
    recorder = Recorder()
    recorder.train(tmp_path / "parts")
    first = summary_of(tmp_path / "parts")
    recorder.train(tmp_path / "parts", steps=20)
    whole = Recorder()
    whole.train(tmp_path / "whole", steps=20)
    summary, expected = (summary_of(tmp_path / name) for name in ("parts", "whole"))
    timing = {"compile_seconds", "train_seconds"}
    assert {k: v for k, v in summary.items() if k not in timing} == {
        k: v for k, v in expected.items() if k not in timing
    }
    assert summary["distance"] < first["distance"]
    assert summary["steps"] == summary["at"] == 20
    assert [line["loss_hex"] for line in lines_of(tmp_path / "parts")[1:]] == [
        line["loss_hex"] for line in lines_of(tmp_path / "whole")[1:]
    ]
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("parts", "whole")]
    assert weights[0] == weights[1]


def test_a_run_that_ended_before_its_summary_is_scored_again(tmp_path):
    recorder = Recorder()
    recorder.train(tmp_path)
    expected = summary_of(tmp_path)
    (tmp_path / "summary.json").unlink()
    (tmp_path / "model.safetensors").unlink()
    recorder.train(tmp_path)
    assert summary_of(tmp_path) == expected
    assert (tmp_path / "model.safetensors").exists()


def test_the_last_evaluation_is_not_repeated_for_the_summary(tmp_path):
    recorder = Recorder()
    recorder.train(tmp_path, steps=8)
    assert recorder.evaluated == [0, 4, 8]
    assert summary_of(tmp_path)["at"] == 8


def test_a_task_without_evaluations(tmp_path):
    recorder = Recorder(evaluate=None, eval_every=0)
    recorder.train(tmp_path)
    assert "distance" not in summary_of(tmp_path)
    assert [line["step"] for line in lines_of(tmp_path)] == list(range(1, 11))


def test_another_config_or_other_data_is_refused(tmp_path):
    Recorder().train(tmp_path)
    before = files(tmp_path)
    with pytest.raises(UserError, match=r"learning_rate = 0.1, not 0.2"):
        Recorder().train(tmp_path, learning_rate=0.2)
    with pytest.raises(UserError, match=r"data\.fingerprint = abc, not xyz"):
        Recorder(identity={"name": "made up", "fingerprint": "xyz", "embedded": False}).train(tmp_path)
    assert files(tmp_path) == before


def test_the_batch_must_divide_over_the_devices(tmp_path):
    with pytest.raises(UserError, match="--batch-size 16 does not divide over 3 devices"):
        Recorder().train(tmp_path / "run", devices=3)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("devices", "wanted", "expected"), [(0, 0, 4), (0, 1, 1), (2, 1, 2)])
def test_devices_are_the_tasks_unless_the_command_says_otherwise(tmp_path, devices, wanted, expected):
    meshes = []
    recorder = Recorder(devices=wanted, finish=lambda run, result: meshes.append(result.mesh) or {})
    recorder.train(tmp_path, devices=devices)
    (mesh,) = meshes
    assert mesh.size == expected


def test_an_evaluation_of_the_same_step_is_kept(tmp_path):
    recorder = Recorder()
    evaluation = Evaluation(Run(tmp_path), recorder.build(Config()))
    state = recorder.build(Config()).trainer.init(Keys(0))
    first = evaluation(3, state)
    assert evaluation(3, state) == first
    assert evaluation(4, state)["at"] == 4
    assert recorder.evaluated == [3, 4]
    assert Evaluation(Run(tmp_path), Recorder(evaluate=None).build(Config()))(3, state) == {}


def test_a_trainer_has_three_functions():
    assert isinstance(Recorder().build(Config()).trainer, Trainer)
    assert not isinstance(object(), Trainer)


def test_the_command_trains_and_has_further_commands(tmp_path, monkeypatch):
    recorder, shown = Recorder(), []
    presets = {"default": Config(steps=4), "long": Config(steps=6)}
    commands = {"show": (shown.append, Finished)}
    monkeypatch.setattr("jaxai.cli.command_line.start_platform", lambda platform, devices: None)
    monkeypatch.setattr("jaxai.cli.command_line.use_compilation_cache", lambda: None)
    for arguments in (["--preset", "long", "--workdir", str(tmp_path)], ["show", "--workdir", str(tmp_path)]):
        monkeypatch.setattr(sys, "argv", ["tiny.py", *arguments])
        experiment.run("tiny", presets, recorder.build, "A test.", commands)
    assert summary_of(tmp_path)["steps"] == 6
    assert shown == [Finished(workdir=tmp_path)]


def test_splits_hold_out_the_last_training_images(tmp_path):
    config = Config(workdir=tmp_path / "run")
    train, test = experiment.splits("tiny", config, "digits8x8")
    first, held_out = experiment.splits("tiny", config, "digits8x8", held_out=100)
    assert (len(first.labels), len(held_out.labels)) == (len(train.labels) - 100, 100)
    np.testing.assert_array_equal(np.concatenate([first.images, held_out.images]), train.images)
    np.testing.assert_array_equal(np.concatenate([first.labels, held_out.labels]), train.labels)
    assert test.split == "test"
    with pytest.raises(
        UserError, match=rf"--held-out must be less than {len(train.labels):,}, got {len(train.labels)}"
    ):
        experiment.splits("tiny", config, "digits8x8", held_out=len(train.labels))
    assert experiment.training_split("tiny", config, "digits8x8").fingerprint == train.fingerprint
