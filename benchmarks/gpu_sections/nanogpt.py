"""An iteration of nanoGPT's Shakespeare configuration in bfloat16 against PyTorch with and without torch.compile.

The share of the peak is counted as in nanoGPT: 6 N + 12 L H Q T operations per token (PaLM, arXiv 2204.02311, appendix
B), where N excludes the learned positions. The losses of the first steps, without dropout, must agree.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from timing import Turn, load_experiment, losses_apart, race, training_turns

from gpu_sections.programs import not_run
from gpu_sections.session import Session
from gpu_sections.training import peer_turns
from jaxai.data.text import windows
from jaxai.distributed.peaks import PEAKS
from jaxai.nn import LanguageModel, TransformerConfig
from jaxai.train import TrainState, init_state, next_token_loss, optimizer, train_step
from jaxai.train.utilization import language_model_operations

PRESET = load_experiment("text_generation").PRESETS["nanogpt"]
SMALL = TransformerConfig(
    embed_dim=32, num_layers=2, num_heads=2, position="learned", max_length=32, bias=False, dropout=0.2
)
DRY = dataclasses.replace(PRESET, transformer=SMALL, length=32, batch_size=4)
VOCABULARY, CHECKED = 65, 3
SPEED, PEAK = 0.9, 0.25
"""Lower bounds on iterations/s relative to torch.compile's, and on the share of the peak."""


def run(session: Session) -> None:
    """Time jaxai's steps, compare losses with PyTorch's, then times."""
    preset, peer = (DRY, "debug") if session.dry else (PRESET, "nanogpt")
    steps, count = (2, 2) if session.dry else (20, 10)
    tx = optimizer(preset.optimizer, preset.decay_steps)

    def step(dropout: float) -> tuple[Callable[..., Any], Callable[[], TrainState]]:
        shape = dataclasses.replace(preset.transformer, dropout=dropout)
        network = LanguageModel(VOCABULARY, shape, jnp.bfloat16)

        def init() -> TrainState:
            params = network.init(jax.random.key(0), jnp.zeros((1, preset.length), jnp.int32))["params"]
            return init_state(params, tx, jax.random.key(1))

        return partial(train_step, loss_fn=partial(next_token_loss, network), tx=tx), init

    def stream() -> Any:
        ids = np.random.default_rng(0).integers(0, VOCABULARY, 1_000_000)
        return windows(ids, preset.batch_size, preset.length, seed=0)

    take, init = step(preset.transformer.dropout)
    ours: dict[str, Turn] = {f"jaxai, {n}/call": training_turns(take, init, stream(), steps, n) for n in (1, count)}
    seconds = race(ours, **session.timing)
    best = min(ours, key=lambda who: np.median(seconds[who]))
    for who, values in seconds.items():
        session.row(who, unit="iterations/s", values=[steps / x for x in values])
    rates = [operations(preset, init) * steps / x / 1e12 for x in seconds[best]]
    session.row("nanoGPT's operations", unit="TFLOP/s", values=rates, detail=best)
    if peak := PEAKS.get(session.device):
        shares = [1e12 * rate / peak for rate in rates]
        session.row("share of the peak", values=shares, wanted=(">=", PEAK), detail=best)
    else:
        not_run(session, "share of the peak", {session.device: "its peak is unknown"})
    with session.peer("torch_gpt.py", "--preset", peer) as torch, session.guarded("against PyTorch"):
        if not torch:
            return
        plain, first = step(0.0)
        rows = stream()
        _, error = losses_apart(plain, first(), [next(rows) for _ in range(CHECKED)], torch)
        # bfloat16 logits have eight bits; the loss is a mean over all tokens of a batch.
        if not session.verified("losses of the first steps", error, 1e-2):
            return
        for name, compiled in (("PyTorch", False), ("torch.compile", True)):
            with session.guarded(f"against {name}"):
                began = torch(ask="time", steps=1, compiled=compiled)["first_seconds"]
                turn = peer_turns(torch, steps, compiled=compiled)
                seconds = race({best: ours[best], name: turn}, **session.timing)
                detail = f"first iteration after {began:.1f} s"
                session.row(name, unit="iterations/s", values=[steps / x for x in seconds[name]], detail=detail)
                ratios = [a / b for a, b in zip(seconds[name], seconds[best], strict=True)]
                wanted: Any = (">=", SPEED) if compiled else None
                session.row(f"iterations/s over {name}'s", values=ratios, wanted=wanted, detail=best)


def operations(preset: Any, init: Callable[[], TrainState]) -> float:
    """Floating-point operations per iteration."""
    shape, params = preset.transformer, jax.eval_shape(init).params
    count = sum(x.size for x in jax.tree.leaves(params)) - shape.max_length * shape.embed_dim
    token = language_model_operations(count, shape.num_layers, shape.embed_dim, preset.length)
    return token * preset.batch_size * preset.length
