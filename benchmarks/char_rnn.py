"""char-rnn's LSTM language model against the same network and training in PyTorch.

    python benchmarks/char_rnn.py --peers PYTHON                # losses, then characters/s, 2 minutes

PYTHON is the interpreter of a separate environment (Python 3.11, ``pip install -r benchmarks/peers.txt``). Run it on
an otherwise idle machine. Network and training are those of Karpathy 2015 (github.com/karpathy/char-rnn): two LSTM
layers of 128 over one-hot characters, 50 sequences of 50 characters per step, the state carried from step to step,
RMSprop, gradients clipped elementwise. First the losses of 50 steps from the same weights on the same text must agree,
then both train in turns, input and optimiser included. Writes JSON to --out.
"""

import dataclasses
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from timing import (
    Ask,
    check_interpreter,
    figure,
    losses_apart,
    peer_process,
    race,
    ratio,
    spread,
    start_cpu,
    training_turns,
    write,
)

from jaxai import cli
from jaxai.data.text import characters, load_text, streams
from jaxai.errors import UserError
from jaxai.nn import RecurrentLanguageModel, RNNConfig
from jaxai.nn.decoding import empty_state
from jaxai.train import TrainState, carried_loss, init_state, train_step

PEER = Path(__file__).parent / "peers" / "torch_char_rnn.py"
VOCABULARY, BATCH, LENGTH = 68, 50, 50  # the embedded plays have 68 characters
NETWORK = RecurrentLanguageModel(VOCABULARY, RNNConfig())
TX = optax.chain(optax.clip(5.0), optax.rmsprop(2e-3, decay=0.95, eps=1e-8, eps_in_sqrt=False))
CHECKED = 50  # steps
TIMED = 20
STEPS_PER_CALL = 10


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the benchmark."""

    peers: Path | None = None
    """An interpreter that has PyTorch; by default only jaxai is measured."""
    out: Path = Path("runs/benchmarks/char_rnn")
    rounds: int = 9
    """Turns per program."""
    devices: int = 2
    """CPU devices, one per core: inside a loop XLA runs a small product on one core."""

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.devices < 1:
            raise UserError(f"--rounds and --devices must be at least 1, got {self.rounds} and {self.devices}")
        if BATCH % self.devices:
            raise UserError(f"--devices {self.devices} must divide the batch of {BATCH}")


def main(config: Config) -> None:
    """Check, measure, print, write JSON."""
    check_interpreter(config.peers, "benchmarks/char_rnn.py")
    start_cpu(config.devices)
    config.out.mkdir(parents=True, exist_ok=True)
    with peer_process(config.peers, PEER) as ask:
        stream = streams(np.random.default_rng(0).integers(0, VOCABULARY, 1_000_000), BATCH, LENGTH)
        ours = training_turns(STEP, first_state, stream, TIMED, STEPS_PER_CALL, devices=config.devices)
        contenders = {"jaxai": ours}
        row: dict[str, Any] = {}
        if ask:
            row["largest_difference"] = difference(ask)
            contenders["torch"] = lambda repeats: [ask(ask="time", steps=TIMED)["seconds"] for _ in range(repeats)]
        seconds = race(contenders, config.rounds)
    count = TIMED * BATCH * LENGTH
    row["characters_per_second"] = {name: spread([count / x for x in values]) for name, values in seconds.items()}
    row["figures"] = []
    if ask:
        row["times_faster"] = ratio(seconds["torch"], seconds["jaxai"])
        row["figures"] = [
            figure(f"losses of {CHECKED} steps, largest difference", row["largest_difference"], "<=", 1e-4),
            figure("characters/s, times PyTorch's", row["times_faster"]["median"], ">=", 1.5),
        ]
    write(config.out / "char_rnn.json", row)


def first_state() -> TrainState:
    """The training state before the first step, with the network's recurrent state."""
    params = NETWORK.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    return init_state(params, TX, jax.random.key(1), carry=empty_state(NETWORK, BATCH, 0))


STEP = partial(train_step, loss_fn=partial(carried_loss, NETWORK), tx=TX)


def difference(ask: Ask) -> float:
    """The largest relative difference of the peer's losses from ours over CHECKED steps of real text."""
    text = load_text().string
    stream = streams(characters(text).encode(text), BATCH, LENGTH)
    losses, apart = losses_apart(STEP, first_state(), [next(stream) for _ in range(CHECKED)], ask)
    print(f"losses {losses[0]:.4f} ... {losses[-1]:.4f}, relative differences up to {apart:.1e}", flush=True)
    return apart


if __name__ == "__main__":
    cli.guard(lambda: main(cli.read(Config, sys.argv[1:], description=__doc__)))
