"""The 1000-mode benchmark: three digits as the colours of one image. Does the generator make all thousand numbers?

    python experiments/gan_stacked_mnist.py --data-dir DIR                       # new stacks, an hour of a CPU core
    python experiments/gan_stacked_mnist.py --data-dir DIR --fixed 128000        # of a fixed set, as in the literature
    python experiments/gan_stacked_mnist.py --preset gpu --data-dir DIR --platform gpu
    python benchmarks/mode_collapse.py stacked --data-dir DIR                    # four losses on one small network

26,000 samples, the fixed digit classifier on each channel; a mode counts with one sample. Published, modes and KL:
DCGAN 99, 3.40; WGAN-GP 959, 0.73; PacDCGAN2 1000, 0.06; StyleGAN2 940, 0.42; R3GAN-E 1000, 0.029 (arXiv 2501.05441:
20.7 M parameters, 10 M images). A perfect generator has a KL of 0.0234 with new stacks of MNIST's training digits: the
floor that is printed beside ours, 1000 modes and 0.0283 with 1.7 M parameters and 2.6 M images.
The run's folder ends with samples.png, curves.png, summary.json, model.safetensors and README.md, a model card; with
them `sample` draws and `invert` finds the latents of stacks that it never saw.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxai import cli, plots
from jaxai.data import load
from jaxai.data.images.stacked import fixed_rows, stack_batches, stacked
from jaxai.distributed.mesh import make_mesh, processes
from jaxai.gan import networks as gan
from jaxai.gan.collapse import CollapseConfig, CollapseMonitor
from jaxai.gan.commands import Trained, commands
from jaxai.gan.losses import LOSSES
from jaxai.gan.penalties import PENALTIES
from jaxai.gan.report import save_model, write_grid
from jaxai.gan.sampler import Sampler
from jaxai.gan.state import GanState, init_fn, init_gan_state
from jaxai.gan.step import apply, from_noise, gan_step
from jaxai.metrics.digits import features_and_labels, preprocess
from jaxai.metrics.stacked import SAMPLES, kl_floor, stack_labels, stacked_scores
from jaxai.run.folder import Run, began_embedded, config_from_json, open_run
from jaxai.run.weights import parameter_count
from jaxai.train.compiled_step import Step
from jaxai.train.loop import Every, fit
from jaxai.train.optim import Adam, cosine, optimizer
from jaxai.typing import Array

NAME = "gan_stacked_mnist"
QUICK = 2000  # samples that are scored on the way
CURVES = [["discriminator_loss", "generator_loss"], ["real_logit", "fake_logit"], ["penalty"], ["quick_modes"]]
"""The panels of curves.png."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(CollapseConfig):
    """Options of this experiment."""

    fixed: int = 0
    """How many different stacks there are to learn from; 0: always new ones."""
    widths: tuple[int, ...] = (64, 32)
    """Channels at 7x7 and 14x14."""
    hidden: int = 512
    blocks: int = 0
    """Residual blocks at each resolution."""
    latent_size: int = 64
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of activations; parameters are float32."""
    loss: Literal["non_saturating", "relativistic"] = "relativistic"
    penalty: Literal["none", "r1", "r2", "r1_r2"] = "r1_r2"
    penalty_weight: float = 1.0
    """At the first step."""
    final_penalty_weight: float = 0.1
    """From step decay_steps on, along a cosine."""
    decay_steps: int = 40_000
    """Steps over which penalty and learning rate take their course."""
    batch_size: int = 64
    optimizer: Adam = Adam(learning_rate=2e-3, beta1=0.0, beta2=0.99, final_rate=0.05)
    ema_half_life: float = 20_000.0
    """Half-life, in images, of the generator's moving average, which is scored."""
    latent_seeds: int = 3
    """From how many different noises the final scores are taken."""
    eval_every: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least(1, "batch_size", "latent_size", "hidden", "decay_steps", "latent_seeds", "eval_every")
        self.check_at_least(0, "fixed", "blocks", "penalty_weight", "final_penalty_weight")
        if not self.ema_half_life > 0:
            raise ValueError(f"--ema-half-life must be positive, got {self.ema_half_life}")
        if not 1 <= len(self.widths) <= 2 or min(self.widths) < 1:
            raise ValueError(f"--widths must be one or two positive numbers (28 halves twice), got {self.widths}")


PRESETS = {
    "default": Config(steps=40_000),
    "gpu": Config(
        fixed=128_000,
        widths=(512, 256),
        hidden=1024,
        blocks=2,
        dtype="bfloat16",
        batch_size=512,
        steps=40_000,
        decay_steps=40_000,
        optimizer=Adam(learning_rate=2e-4, beta1=0.0, beta2=0.99, warmup=1000, final_rate=0.25),
        ema_half_life=200_000.0,
        eval_every=2000,
    ),
    "debug": Config(
        widths=(16, 8),
        hidden=32,
        batch_size=16,
        steps=40,
        decay_steps=40,
        latent_seeds=1,
        eval_every=20,
    ),
}


def main(config: Config) -> None:
    """Load, train, score, draw."""
    train = load("mnist", "train", data_dir=config.data_dir, embedded_only=began_embedded(NAME, config))
    generator, discriminator = networks(config)
    step, init = training(config, generator, discriminator)
    mesh = make_mesh(config.devices, batch_size=config.batch_size, shape=config.mesh)
    batches = stack_batches(train.images, config.batch_size, seed=config.seed, fixed=config.fixed, **processes(mesh))
    run = open_run(NAME, config, train.identity())
    if summary := run.finished(config.steps):
        report(run, summary)
        return
    draw = Sampler(generator, config.latent_size, config.seed)
    real = stacked(train.images, fixed_rows(QUICK, len(train.images), config.seed))
    watch = CollapseMonitor(config, run, real, stack_labels(real)[0])
    result = fit(
        step,
        init,
        batches,
        config,
        run=run,
        mesh=mesh,
        every=[Every(config.eval_every, partial(snapshot, run=run, draw=draw, watch=watch))],
        show=["discriminator_loss", "generator_loss", "quick_modes"],
    )
    scores, samples = [], np.empty(0)
    for number in range(config.latent_seeds):
        samples = plots.to_pixels(draw(result.state, SAMPLES, purpose=10 + number))
        scores.append(stacked_scores(*stack_labels(samples)))
    plots.save_png(run.folder / "samples.png", plots.grid(samples[:100], columns=10))
    plots.plot_curves(run.folder / "curves.png", run.metrics, CURVES)
    floor, spread = real_kl(config, train.images)
    summary = {
        "steps": int(result.state.step),
        "images_seen": int(result.state.step) * config.batch_size,
        "data": train.source,
        "stacks": config.fixed or "new",
        "samples": SAMPLES,
        **{name: [row[name] for row in scores] for name in scores[0]},
        "real_kl": floor,
        "real_kl_deviation": spread,
        "parameters": parameter_count(result.state.generator),
        "compile_seconds": round(result.compile_seconds, 1),
        "train_seconds": round(result.train_seconds, 1),
    }
    save_model(run, result.state, summary)
    run.write_summary(summary)
    report(run, summary)


def networks(config: Config) -> tuple[gan.Generator, gan.Discriminator]:
    """Generator and discriminator."""
    sizes = {"widths": config.widths, "hidden": config.hidden, "blocks": config.blocks}
    dtype = jnp.dtype(config.dtype)
    return gan.Generator(**sizes, image_shape=(28, 28, 3), dtype=dtype), gan.Discriminator(**sizes, dtype=dtype)


def training(
    config: Config, generator: gan.Generator, discriminator: gan.Discriminator
) -> tuple[Step, Callable[[], GanState]]:
    """The training step on a batch of pixels, and the function that makes the first state."""
    tx = optimizer(config.optimizer, config.decay_steps)
    ends = {"start": config.penalty_weight, "end": config.final_penalty_weight}
    weight = partial(cosine, **ends, decay_steps=config.decay_steps)

    def step(state: GanState, batch: dict[str, Array]) -> tuple[GanState, dict[str, Array]]:
        return gan_step(
            state,
            preprocess(batch["image"]),
            generate=from_noise(generator, config.latent_size, len(batch["image"])),
            discriminate=partial(apply, discriminator),
            loss=LOSSES[config.loss],
            penalty=None if config.penalty == "none" else (PENALTIES[config.penalty], weight),
            ema_half_life=config.ema_half_life,
            txs=(tx, tx),
        )

    def init() -> GanState:
        latents, images = jnp.zeros((1, config.latent_size)), jnp.zeros((2, 28, 28, 3))
        first = init_fn(generator, latents), init_fn(discriminator, images)
        return init_gan_state(jax.random.key(config.seed), *first, txs=(tx, tx), keep_ema=True)

    return step, init


def snapshot(done: int, state: GanState, *, run: Run, draw: Sampler, watch: CollapseMonitor) -> dict[str, float]:
    """Write a grid of samples; how many modes so few samples have, of the some 860 that as many real ones have."""
    samples = plots.to_pixels(draw(state, QUICK))
    write_grid(done, samples[:100], run)
    modes, sure = stack_labels(samples)
    found = watch.act(done, watch.measure(samples, modes))
    return {"quick_modes": float(stacked_scores(modes, sure)["modes"])} | found


def real_kl(config: Config, images: np.ndarray) -> tuple[float, float]:
    """The KL of as many real stacks, its mean and deviation over 20 draws: a perfect generator's."""
    _, labels = features_and_labels(images)
    return kl_floor(labels[fixed_rows(config.fixed, len(images), config.seed)] if config.fixed else labels)


def trained(values: dict[str, Any]) -> Trained:
    """The generator of a run's config.json."""
    config = config_from_json(Config, values)

    def test(data_dir: Path | None) -> tuple[np.ndarray, np.ndarray]:
        digits = load("mnist", "test", data_dir=data_dir, embedded_only=data_dir is None).images
        stacks = stacked(digits, fixed_rows(len(digits), len(digits), config.seed))
        return stacks, np.zeros(len(stacks), np.int32)  # a network without classes looks at no labels

    return Trained(networks(config)[0], config.latent_size, 0, test)


def report(run: Run, summary: dict[str, Any]) -> None:
    """Tell a person what came out."""
    kl = summary["kl"]
    print(
        f"""
pictures       {run.folder}/samples.png  curves.png
modes          {", ".join(str(x) for x in summary["modes"])} of 1000, one for each noise
               {", ".join(str(x) for x in summary["certain_modes"])} with a sample of probability 0.99
KL             {", ".join(f"{x:.4f}" for x in kl)}   real stacks {summary["real_kl"]:.4f} +- \
{summary["real_kl_deviation"]:.4f}   excess {np.mean(kl) - summary["real_kl"]:.4f}
               from {summary["samples"]:,} samples each; stacks to learn from: {summary["stacks"]}
training       {summary["images_seen"]:,} images, {summary["train_seconds"]:.0f} s; compilation \
{summary["compile_seconds"]:.0f} s"""
    )


if __name__ == "__main__":
    cli.run(main, PRESETS, __doc__, commands=commands(NAME, trained))
