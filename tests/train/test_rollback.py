"""Rollbacks: to the last good checkpoint, on with a new key, bit for bit the same after an interruption."""

import json

import jax
import pytest

from jaxai.errors import Rollback, Stopped
from jaxai.gan.collapse import CollapseConfig
from jaxai.run.checkpoint import UNFINISHED
from jaxai.run.folder import Run
from jaxai.train.loop import Every
from jaxai.train.rollback import read_rollbacks, with_new_keys
from tests.helpers import SETUPS, hex_losses, same_bits, saved_steps, steps_of, tiny_gan, train


def test_a_collapse_leads_back_to_the_evaluation_before(tmp_path, monkeypatch):
    """However many checkpoints there were since."""
    saved = saved_steps(monkeypatch)
    options = {"checkpoint_every": 1, "kind": CollapseConfig, "on_collapse": "rollback"}
    train(tmp_path, 10, every=[Every(4, Trouble(at=8, well=4, times=1))], **options)
    (told,) = json.loads((tmp_path / "rollbacks.json").read_text())["rollbacks"]
    assert told["to"] == 4
    assert saved == [*range(1, 8), *range(5, 11)]


class Trouble:
    """Sets training back at a step, until it was called there so many times."""

    def __init__(self, at: int, well: int, times: int) -> None:
        self.at, self.well, self.left = at, well, times

    def __call__(self, done, state):
        if done == self.at and self.left:
            self.left -= 1
            raise Rollback(f"step {done}: trouble", self.well)
        return {}


@pytest.mark.parametrize("setup", SETUPS)
@pytest.mark.grid(fast=1)
def test_a_setback_goes_on_from_where_all_was_well_with_other_noise(tmp_path, setup):
    options = {"checkpoint_every": 3, **setup}
    trouble = Trouble(at=9, well=5, times=2)
    back = train(tmp_path / "back", 12, every=[Every(3, trouble)], **options)
    whole = train(tmp_path / "whole", 12, **options)
    losses = [hex_losses(tmp_path / name / "metrics.jsonl") for name in ("back", "whole")]
    assert [step for step, *_ in losses[0]] == list(range(1, 13))
    assert losses[0][:3] == losses[1][:3]
    assert all(a != b for a, b in zip(losses[0][3:], losses[1][3:], strict=True))
    told = json.loads((tmp_path / "back" / "rollbacks.json").read_text())["rollbacks"]
    assert told == [{"reason": "step 9: trouble", "to": 3}] * 2
    assert not same_bits(back.state.generator, whole.state.generator)


def test_a_run_that_was_set_back_and_broke_off_goes_on_bit_for_bit(tmp_path):
    whole = train(tmp_path / "whole", 12, every=[Every(3, Trouble(6, 3, 1))], checkpoint_every=3)
    for stop in (4, 7):  # right after the rollback, and one checkpoint later
        folder, trouble = tmp_path / str(stop), Trouble(6, 3, 1)

        def stops(done, state, stop=stop, trouble=trouble):
            if done == stop and not trouble.left:
                raise KeyboardInterrupt
            return trouble(done, state)

        with pytest.raises(KeyboardInterrupt):
            train(folder, 12, every=[Every(1, stops)], checkpoint_every=3)
        parts = train(folder, 12, checkpoint_every=3)
        assert same_bits(parts.state, whole.state)
        assert hex_losses(folder / "metrics.jsonl") == hex_losses(tmp_path / "whole" / "metrics.jsonl")


def test_several_gans_get_noise_of_their_own_again():
    _, init = tiny_gan()
    state = jax.vmap(lambda key: jax.jit(init)().replace(key=key))(jax.random.split(jax.random.key(0), 3))
    keys = [jax.random.key_data(with_new_keys(state, number).key).tolist() for number in (0, 1, 2)]
    assert len({tuple(key) for row in keys for key in row}) == 9
    one = with_new_keys(state.replace(key=state.key[1]), 2)
    assert jax.random.key_data(one.key).tolist() == keys[2][1]


def test_what_a_kill_leaves_of_a_dropped_checkpoint_is_cleaned_up(tmp_path):
    train(tmp_path / "run", 9, checkpoint_every=3)
    folder = tmp_path / "run" / "checkpoints"
    half = (folder / "9").rename(folder / f"9{UNFINISHED}")
    (half / "state" / "_METADATA").unlink()
    train(tmp_path / "run", 9, checkpoint_every=3)
    assert sorted(path.name for path in folder.iterdir()) == ["6", "9"]


def test_setbacks_without_a_checkpoint_start_over_and_the_fourth_stops(tmp_path):
    with pytest.raises(Stopped, match="step 4: trouble; already rolled back 3 times"):
        train(tmp_path / "run", 12, every=[Every(2, Trouble(at=4, well=2, times=9))], checkpoint_every=6)
    assert len(json.loads((tmp_path / "run" / "rollbacks.json").read_text())["rollbacks"]) == 3
    assert steps_of(tmp_path / "run")[-1] <= 4


@pytest.mark.parametrize(
    "content", ['{"rollbacks": ', "[]", "{}", '{"rollbacks": [{"to": 3}]}', '{"rollbacks": [{"reason": 1, "to": 3}]}']
)
def test_a_damaged_list_of_rollbacks_is_named(tmp_path, content):
    (tmp_path / "rollbacks.json").write_text(content)
    with pytest.raises(ValueError, match=r"rollbacks.json is damaged: --resume never"):
        read_rollbacks(Run(tmp_path))


def test_a_run_that_never_went_back_has_no_rollbacks(tmp_path):
    assert read_rollbacks(Run(tmp_path)) == []
