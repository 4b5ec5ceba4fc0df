"""A training step of the digit GAN with R1 and R2 against the same networks and training in PyTorch.

    python benchmarks/gan_step.py --peers PYTHON                # losses, then examples/s, 3 minutes

PYTHON is the interpreter of a separate environment (Python 3.11, ``pip install -r benchmarks/peers.txt``). Run it on
an otherwise idle machine. The step is that of experiments/gan_mnist.py's preset ``default`` on embedded digits:
relativistic loss, R1 and R2 on every step, Adam for both networks, the generator's moving average. First the losses of
20 steps on the same digits and noise are compared: of the first step, of each step from our state, and of all steps in
sequence. In the sequence rounding errors grow a thousandfold in ten steps, because Adam without momentum begins with
the sign of the gradient; for scale, our own steps are repeated from weights that differ in the last bit. Then all
programs train in turns, input and noise included: PyTorch in three forms (plain; channels last; the discriminator's
gradient by `torch.func` and `torch.compile`), the fastest of which is compared. Writes JSON to --out.
"""

import dataclasses
import json
import sys
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from timing import (
    Ask,
    NotAvailable,
    check_interpreter,
    figure,
    load_experiment,
    peer_process,
    race,
    ratio,
    spread,
    start_cpu,
    training_turns,
    write,
)

from jaxai import cli
from jaxai.data import ImageDataset, load
from jaxai.data.pipeline import batches
from jaxai.errors import UserError
from jaxai.gan.step import apply
from jaxai.train.compiled_step import Step
from jaxai.train.keys import Keys

PEER = Path(__file__).parent / "peers" / "torch_gan_step.py"
EXPERIMENT = load_experiment("gan_mnist")
BATCH = EXPERIMENT.PRESETS["default"].batch_size
FORMS = ("plain", "channels_last", "compiled")
Losses = dict[str, np.ndarray]
LOSSES = ("discriminator_loss", "generator_loss", "penalty")
BOUND, EPSILON = 1e-4, 2**-23
CHECKED, TIMED = 20, 20  # steps


class Job(NamedTuple):
    """A preset of gan_mnist, its generator, step and initialiser."""

    preset: Any
    generator: Any
    step: Step
    init: Callable[[], Any]


@cache
def job(name: str) -> Job:
    """Build the Job of a preset."""
    preset = EXPERIMENT.PRESETS[name]
    generator, discriminator = EXPERIMENT.networks(preset)
    trainer = EXPERIMENT.trainer(preset, generator, discriminator)
    return Job(preset, generator, trainer.step, partial(trainer.init, Keys(preset.seed)))


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the benchmark."""

    peers: Path | None = None
    """An interpreter that has PyTorch; by default only jaxai is measured."""
    out: Path = Path("runs/benchmarks/gan_step")
    rounds: int = 9
    """Turns per program."""
    devices: int = 1
    """CPU devices; one, the experiment's default, uses all cores."""
    forms: tuple[str, ...] = FORMS
    """PyTorch's forms to compare with."""

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.devices < 1:
            raise UserError(f"--rounds and --devices must be at least 1, got {self.rounds} and {self.devices}")
        if BATCH % self.devices:
            raise UserError(f"--devices {self.devices} must divide the batch of {BATCH}")
        if not self.forms or not set(self.forms) <= set(FORMS):
            raise UserError(f"--forms must be some of {', '.join(FORMS)}, got {self.forms}")


def main(config: Config) -> None:
    """Check, measure, print, write JSON."""
    check_interpreter(config.peers, "benchmarks/gan_step.py")
    start_cpu(config.devices)
    config.out.mkdir(parents=True, exist_ok=True)
    digits = load("mnist", "train", embedded_only=True)
    with peer_process(config.peers, PEER) as ask:
        differences, reasons = compared(ask, digits, config.forms) if ask else ({}, {})
        forms = [form for form in config.forms if form in differences]
        preset, _, step, init = job("default")
        stream = batches(digits, BATCH, seed=preset.seed)
        contenders = {"jaxai": training_turns(step, init, stream, TIMED, 1, devices=config.devices)}
        if ask:
            contenders |= {form: partial(peer_turns, ask, form) for form in forms}
        seconds = race(contenders, config.rounds)
    count = TIMED * BATCH
    row: dict[str, Any] = {"devices": config.devices, "largest_difference": differences, "not_available": reasons}
    row["examples_per_second"] = {name: spread([count / x for x in values]) for name, values in seconds.items()}
    row["ms_a_step"] = {name: spread([1000 / TIMED * x for x in values]) for name, values in seconds.items()}
    row["times_faster"] = {form: ratio(seconds[form], seconds["jaxai"]) for form in forms}
    row["figures"] = figures(row)
    for name, rates in row["examples_per_second"].items():
        faster = row["times_faster"].get(name, {}).get("median", "")
        print(f"{name:14} {rates['median']:8} examples/s ({rates['min']} to {rates['max']}), ours over its {faster}")
    write(config.out / "gan_step.json", row)


def peer_turns(ask: Ask, form: str, repeats: int) -> list[float]:
    """The seconds of ``repeats`` turns of the peer."""
    return [ask(ask="time", form=form, steps=TIMED)["seconds"] for _ in range(repeats)]


def figures(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The figures with their bounds; none without a peer."""
    if not row["times_faster"]:
        return []
    differences = [row["largest_difference"][form] for form in row["times_faster"]]
    first, each = (
        max(max(found[name].values()) for found in differences) for name in ("first_step", "each_step_from_our_state")
    )
    faster = min(times["median"] for times in row["times_faster"].values())
    return [
        figure("losses and penalty of the first step, largest relative difference", first, "<=", BOUND),
        figure(f"the same of {CHECKED} steps, each from our state", each, "<=", BOUND),
        figure("examples/s, times PyTorch's fastest form", faster, ">=", 1.5),
    ]


def compared(ask: Ask, digits: ImageDataset, forms: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, str]]:
    """The differences of the peer's forms from jaxai, and why others don't run. UserError if a first step differs."""
    inputs, states, ours = our_steps(job("default"), digits)
    perturbed = our_steps(job("default"), digits, last_bit=True)[2]
    found: dict[str, Any] = {"ours_from_other_last_bits": apart(perturbed, ours)}
    print(json.dumps(found), flush=True)
    reasons = {}
    for form in forms:
        try:
            alone = asked(ask, form, states[0], **inputs, images=digits.images)
        except NotAvailable as reason:
            reasons[form] = str(reason)
            print(f"{form}: not available: {reason}", flush=True)
            continue
        first = apart({name: values[:1] for name, values in alone.items()}, ours)
        if not max(first.values()) <= BOUND:
            raise UserError(f"{form}: the first step differs by {first}: the programs are not the same")
        each = [
            asked(ask, form, state, **{name: x[[number]] for name, x in inputs.items()})
            for number, state in enumerate(states[:-1])
        ]
        together = {name: np.concatenate([one[name] for one in each]) for name in LOSSES}
        pixels = float(np.abs(each[-1]["drawn"] - drawn(states[-1], inputs["noise"][-1])).max())
        found[form] = {"first_step": first, "each_step_from_our_state": apart(together, ours)}
        found[form] |= {"pixels_drawn_after_the_last": float(f"{pixels:.2g}"), "all_steps": apart(alone, ours)}
        print(json.dumps({form: found[form]}), flush=True)
    if len(reasons) == len(forms):
        raise UserError(f"PyTorch runs none of {', '.join(forms)}: {reasons}")
    return found, reasons


def our_steps(
    job: Job, digits: ImageDataset, count: int = CHECKED, *, last_bit: bool = False
) -> tuple[dict[str, np.ndarray], list[Any], Losses]:
    """Take ``count`` steps; return their inputs (rows of the digits, noise), all states and all losses.

    Without a penalty in the preset its value is 0. With ``last_bit`` the discriminator's initial weights are multiplied
    by 1 + float32's epsilon.
    """
    stream = batches(digits, job.preset.batch_size, seed=job.preset.seed)
    state, take = jax.jit(job.init)(), jax.jit(job.step)
    if last_bit:
        state = state.replace(discriminator=jax.tree.map(lambda x: x * (1 + EPSILON), state.discriminator))
    shape, rows, noise, states, losses = (job.preset.batch_size, job.preset.latent_size), [], [], [state], []
    for number in range(count):
        batch = next(stream)
        rows.append(batch["id"])
        noise.append(jax.random.normal(jax.random.fold_in(state.key, number), shape))  # as `gan_step` draws it
        state, metrics = take(state, batch)
        states.append(state)
        losses.append([float(metrics.get(name, 0.0)) for name in LOSSES])
    inputs = {"rows": np.stack(rows), "noise": np.stack(noise)}
    return inputs, states, dict(zip(LOSSES, np.array(losses).T, strict=True))


def asked(ask: Ask, form: str, state: Any, **inputs: np.ndarray) -> Losses:
    """The peer's losses on these inputs from our state, and ``drawn``: images from its average and the last noise."""
    trees = {name: getattr(state, name) for name in ("generator", "discriminator")}
    trees["average"] = state.ema_params
    for name in ("generator", "discriminator"):
        moments, zeros = getattr(state, f"{name}_opt"), jax.tree.map(jnp.zeros_like, trees[name])
        trees[f"{name}_nu"] = optax.tree.get(moments, "nu")
        trees[f"{name}_mu"] = optax.tree.get(moments, "mu", zeros)  # irrelevant without momentum
    leaves = jax.tree_util.tree_leaves_with_path(trees)
    arrays: dict[str, Any] = {"step": np.asarray(state.step), **inputs}
    arrays |= {jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(x) for path, x in leaves}
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: str(Path(folder) / f"{name}.npz") for name in ("inputs", "outputs")}
        np.savez(paths["inputs"], **arrays)
        ask(ask="check", form=form, **paths)
        with np.load(paths["outputs"]) as saved:
            return dict(saved)


def drawn(state: Any, noise: np.ndarray) -> np.ndarray:
    """Images that the generator's moving average makes from noise [B, latent]."""
    return np.asarray(jax.jit(partial(apply, job("default").generator))(state.ema_params, noise))


def apart(theirs: Losses, ours: Losses) -> dict[str, float]:
    """The largest relative difference of each loss over the steps of ``theirs``."""
    # Without a penalty, its value is 0 in both programs and is skipped.
    pairs = {name: (theirs[name], ours[name][: len(theirs[name])]) for name in LOSSES if theirs[name].any()}
    largest = {name: np.abs(mine / yours - 1).max() for name, (mine, yours) in pairs.items()}
    return {name: float(f"{value:.2g}") for name, value in largest.items()}


if __name__ == "__main__":
    cli.guard(lambda: main(cli.read(Config, sys.argv[1:], description=__doc__)))
