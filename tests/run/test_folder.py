"""The folder of a run: the same run goes on, another one is refused, nothing is overwritten."""

import dataclasses
import json

import pytest

from jaxai.config import Common
from jaxai.run.folder import began_embedded, config_from_json, open_run, read_config
from jaxai.train.optim import Adam

DATA = {"name": "mnist", "fingerprint": "abc"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Common):
    width: int = 4


def test_same_config_goes_on_and_steps_may_grow(tmp_path):
    run = open_run("test", Config(workdir=tmp_path / "run"), DATA)
    again = open_run("test", Config(workdir=tmp_path / "run", steps=5000, devices=4), DATA)
    assert run == again
    assert json.loads((run.folder / "config.json").read_text())["width"] == 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Nested(Config):
    widths: tuple[int, ...] = (1, 2)
    optimizer: Adam = Adam()


def test_a_config_comes_back_from_its_file(tmp_path):
    config = Nested(workdir=tmp_path, width=8, widths=(3,), optimizer=Adam(beta1=0.5))
    run = open_run("test", config, DATA)
    assert config_from_json(Nested, read_config(run.folder)) == dataclasses.replace(config, workdir=None)
    with pytest.raises(TypeError):
        config_from_json(Nested, {"seed": "a"})


def test_a_field_may_not_be_called_as_the_identity_s_own(tmp_path):
    clash = dataclasses.make_dataclass("Clash", [("data", str, "mnist")], bases=(Config,), frozen=True, kw_only=True)
    with pytest.raises(ValueError, match=r"Clash\.data is a name that config\.json reserves"):
        open_run("test", clash(workdir=tmp_path / "run"), DATA)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "data", "message"),
    [
        ({"width": 8}, DATA, r"width = 4, not 8: use another --workdir, or --resume never"),
        ({"seed": 3}, DATA, r"seed = 0, not 3"),
        ({}, {"name": "mnist", "fingerprint": "xyz"}, r"data.fingerprint = abc, not xyz"),
        ({"seed": 3}, {"name": "cifar10", "fingerprint": "xyz"}, r"seed = 0, not 3"),
    ],
)
def test_another_run_in_the_folder_is_refused(tmp_path, change, data, message):
    open_run("test", Config(workdir=tmp_path), DATA)
    before = sorted(path.read_bytes() for path in tmp_path.iterdir())
    with pytest.raises(ValueError, match=message):
        open_run("test", Config(workdir=tmp_path, **change), data)
    assert before == sorted(path.read_bytes() for path in tmp_path.iterdir())


def test_the_run_of_another_experiment_is_called_so(tmp_path):
    """Not by an option that only one of the two has."""
    open_run("other", Config(workdir=tmp_path, width=8), {**DATA, "a": 1})
    with pytest.raises(ValueError, match=r"holds a run with experiment = other, not test: "):
        open_run("test", Common(workdir=tmp_path), DATA)


def test_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for resume in ("auto", "never"):
        with pytest.raises(ValueError, match="holds files but no run"):
            open_run("test", Config(workdir=tmp_path, resume=resume), DATA)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_resume_never_moves_the_old_run_aside_and_says_so(tmp_path, caplog):
    folder = tmp_path / "run"
    for width in (4, 8, 16):
        with caplog.at_level("INFO"):
            run = open_run("test", Config(workdir=folder, width=width, resume="never"), DATA)
        run.write_summary({"width": width})
    assert "moved the earlier run to" in caplog.text
    kept = [json.loads((tmp_path / name / "summary.json").read_text())["width"] for name in ("run.1", "run.2", "run")]
    assert kept == [4, 8, 16]


def test_folder_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ValueError, match=r"the run's folder .*file.* can't be used .*choose another --workdir"):
            open_run("test", Config(workdir=folder), DATA)


@pytest.mark.parametrize("content", ['{"data": ', "[]", "{}", '{"data": "mnist"}'])
def test_damaged_config_is_named(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config.json is damaged: --resume never"):
        open_run("test", Config(workdir=tmp_path), DATA)


def test_run_that_began_with_embedded_data_goes_on_with_it(tmp_path):
    config = Config(workdir=tmp_path / "run")
    assert not began_embedded("test", config)
    open_run("test", config, {**DATA, "embedded": True})
    assert began_embedded("test", config)
    assert not began_embedded("test", dataclasses.replace(config, resume="never"))
    assert not began_embedded("test", dataclasses.replace(config, data_dir=tmp_path))
