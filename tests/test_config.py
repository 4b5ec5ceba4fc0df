"""Options that every command shares: defaults, limits, and messages that name the option."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxai.config import Common, Finished, Platform, Training, is_resumable, mesh_axes, resumable
from jaxai.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Common):
    width: int = 4


def test_tensorboard_without_the_extra_names_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"--tensorboard needs the extra: .*tensorboard"):
        Config(tensorboard=True)


def test_fields_below_their_least_value_are_named():
    with pytest.raises(ValueError, match="--width must be at least 5, got 4"):
        Config(seed=5).check_at_least(5, "seed", "width")


def test_axes():
    assert mesh_axes("") == {}
    assert mesh_axes("data=4,model=2") == {"data": 4, "model": 2}
    assert mesh_axes("data=4") == {"data": 4, "model": 1}
    for wrong in ("data=", "data=-1", "data=2 model=2", "data=2,model=0", "data=1e3"):
        with pytest.raises(ValueError, match="--mesh must look like"):
            mesh_axes(wrong)


def test_options_that_may_change_when_a_run_continues_are_marked():
    free = {field.name for field in dataclasses.fields(Training) if is_resumable(field)}
    assert not free & {"seed", "preset"}
    assert {"steps", "workdir", "devices", "mesh", "keep", "on_nonfinite", "coordinator"} <= free
    assert not is_resumable(next(field for field in dataclasses.fields(Config) if field.name == "width"))

    @dataclasses.dataclass
    class Own:
        count: int = resumable(3)

    assert Own().count == 3
    assert is_resumable(dataclasses.fields(Own)[0])


@pytest.mark.parametrize("kind", [Platform, Common, Training, Finished])
def test_defaults_are_valid_and_frozen(kind):
    config = kind()
    assert dataclasses.replace(config) == config
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.devices = 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"devices": -1}, "--devices must be at least 0, got -1"),
        ({"steps": 0}, "--steps must be at least 1, got 0"),
        ({"seed": -1}, "--seed must be at least 0, got -1"),
        ({"keep": 0}, "--keep must be at least 1, got 0"),
        ({"checkpoint_every": -1}, "--checkpoint-every must be at least 0"),
        ({"checkpoint_seconds": float("nan")}, "--checkpoint-seconds must be at least 0, got nan"),
        ({"watchdog": 2e6}, "--watchdog must be at most 1e6 seconds, got 2000000.0; 0 disables it"),
        ({"mesh": "data:4"}, "--mesh must look like data=4 or data=4,model=2, got data:4"),
        (
            {"mesh": "data=2,model=2", "devices": 3},
            "--mesh data=2,model=2 does not match --devices 3: leave one of them out",
        ),
        ({"coordinator": "host"}, "--coordinator must be HOST:PORT or auto, got host"),
        ({"coordinator": "host:0", "num_processes": 2, "process_id": 0}, "--coordinator must be HOST:PORT"),
        ({"coordinator": "host:65536", "num_processes": 2, "process_id": 0}, "--coordinator must be HOST:PORT"),
        ({"coordinator": "host:80"}, "needs --num-processes N and --process-id of 0 to N - 1, got 0 and -1"),
        ({"coordinator": "host:80", "num_processes": 2, "process_id": 2}, "of 0 to N - 1, got 2 and 2"),
        ({"num_processes": 2}, "--num-processes and --process-id need --coordinator HOST:PORT"),
        ({"process_id": 0}, "--num-processes and --process-id need --coordinator"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(UserError, match=message):
        Training(**options)


def test_good_coordinators():
    for coordinator in ("localhost:1", "[::1]:65535", "10.0.0.1:8080"):
        Training(coordinator=coordinator, num_processes=2, process_id=1)
    Training(coordinator="auto")


def test_devices_of_this_process_are_those_of_the_mesh():
    assert Training().devices_here == 0
    assert Training(devices=3).devices_here == 3
    assert Training(mesh="data=2,model=3").devices_here == 6
    assert Training(mesh="data=2,model=3", devices=6).devices_here == 6
    several = Training(mesh="data=8", devices=2, coordinator="localhost:80", num_processes=4, process_id=0)
    assert several.devices_here == 2


def test_evaluations_are_saved_where_the_best_stay():
    assert not Training().save_evaluations
    assert Training(keep_lowest=("loss",)).save_evaluations
    assert Training(keep_highest=("accuracy",)).save_evaluations


@given(data=st.integers(1, 999_999), model=st.integers(1, 999_999))
def test_axes_come_back_from_their_text(data, model):
    assert mesh_axes(f"data={data},model={model}") == {"data": data, "model": model}
    assert mesh_axes(f"data={data}") == {"data": data, "model": 1}
