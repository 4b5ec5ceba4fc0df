"""Mode collapse on points in the plane: what brings it about, and which remedy helps.

    python experiments/gan_toy2d.py                            # R3GAN's loss on the grid of 25 modes, five GANs at once
    python experiments/gan_toy2d.py --preset collapse          # the GAN of 2014 on the same points
    python experiments/gan_toy2d.py --preset collapse --packing 4             # ... with one remedy
    python experiments/gan_toy2d.py --mixture ring             # eight modes on a circle
    python benchmarks/mode_collapse.py                         # remedies alone and together, as a table

The measure is PacGAN's (arXiv 1712.04086): of 2,500 points, how many of the modes have one within three standard
deviations, the share of such points, and how far the modes are from being equally frequent. PacGAN itself, on the grid:
GAN 17.3 modes, 94.8 % of high quality, KL 0.70; PacGAN4 24.8, 93.6 %, 0.04. All GANs of a run are trained by one
program, each from its own seed, so that every figure has its spread.
The run's folder ends with summary.json, points.png and training.gif: a column for each of the first five GANs.
"""

import dataclasses
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from jaxai import cli, plots
from jaxai.data.synthetic.mixtures import MIXTURES, Mixture, point_batches
from jaxai.distributed.mesh import make_mesh, processes
from jaxai.errors import UserError
from jaxai.gan import losses as losses
from jaxai.gan import penalties as penalties
from jaxai.gan.collapse import CollapseConfig, CollapseMonitor
from jaxai.gan.networks import PointDiscriminator
from jaxai.gan.regularizers import instance_noise, pack, spectrally_normalised
from jaxai.gan.sampler import sampling_params
from jaxai.gan.state import GanState, init_fn, init_gan_state
from jaxai.gan.step import apply, from_noise, gan_step
from jaxai.metrics.mixtures import mixture_scores, nearest
from jaxai.nn.mlp import MLP
from jaxai.run.folder import Run, open_run
from jaxai.train.compiled_step import Step
from jaxai.train.loop import Every, fit
from jaxai.train.optim import Adam, cosine, optimizer
from jaxai.typing import Array, PyTree

NAME = "gan_toy2d"
SCORED = 2500  # points of each GAN, as in PacGAN
DRAWN, SIDE = 5, 128  # GANs in a picture, and the pixels that each has


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(CollapseConfig):
    """Options of this experiment."""

    mixture: Literal["ring", "grid"] = "grid"
    gans: int = 5
    """How many are trained at once, each from its own seed."""
    generator: tuple[int, ...] = (96,) * 6
    """Sizes of its hidden layers."""
    discriminator: tuple[int, ...] = (96,) * 4
    latent_size: int = 2
    batch_size: int = 64
    """Points of each GAN in a step."""
    loss: losses.Name = "non_saturating"
    penalty: penalties.Name | Literal["none", "consistency"] = "none"
    """On the discriminator; consistency is that with noise of a fifth of the modes' deviation."""
    penalty_weight: float = 1.0
    """At the first step."""
    final_penalty_weight: float | None = None
    """From step decay_steps on, along a cosine; by default the same."""
    noise: float = 0.0
    """Standard deviation of the noise that the discriminator sees real and generated points with, at the first step; it
    falls to 0 along a cosine over decay_steps."""
    packing: int = 1
    """How many points the discriminator sees at once."""
    deviation: bool = False
    """Whether it sees how much the points of a batch differ."""
    spectral: bool = False
    """Whether its kernels are divided by their spectral norms."""
    unroll: int = 0
    """Through how many more steps of the discriminator the generator looks."""
    unroll_rate: float = 0.1
    """The learning rate of those."""
    generator_optimizer: Adam = Adam(learning_rate=1e-3, beta1=0.5)
    discriminator_optimizer: Adam = Adam(learning_rate=1e-3, beta1=0.5)
    ema_half_life: float = 0.0
    """Half-life, in points, of the moving average of the generator that is scored; 0: no average."""
    decay_steps: int = 8000
    """Steps over which penalty, noise and learning rates take their course."""
    eval_every: int = 500

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least(1, "gans", "latent_size", "batch_size", "packing", "decay_steps", "eval_every")
        self.check_at_least(0, "penalty_weight", "noise", "unroll", "unroll_rate", "ema_half_life")
        if self.final_penalty_weight is not None:
            self.check_at_least(0, "final_penalty_weight")
        for name in ("penalty_weight", "noise", "unroll_rate"):
            if not np.isfinite(getattr(self, name)):
                raise UserError(f"--{name.replace('_', '-')} must be finite, got {getattr(self, name)}")
        if min(self.generator + self.discriminator, default=1) < 1:
            raise UserError("--generator and --discriminator are sizes of layers: give positive numbers")
        if self.batch_size % self.packing:
            raise UserError(f"--packing {self.packing} does not divide --batch-size {self.batch_size}")
        if self.deviation and self.batch_size // self.packing % 8:
            raise UserError(
                "--minibatch-stddev compares four real and four generated: --batch-size / --packing must be 8 n"
            )


CURE = Config(
    batch_size=128,
    steps=24_000,
    decay_steps=24_000,
    loss="relativistic",
    penalty="r1_r2",
    penalty_weight=0.1,
    final_penalty_weight=0.001,
    generator_optimizer=Adam(learning_rate=2e-3, beta1=0.0, beta2=0.99, final_rate=0.02),
    discriminator_optimizer=Adam(learning_rate=2e-3, beta1=0.0, beta2=0.99, final_rate=0.02),
    ema_half_life=50_000.0,
    eval_every=1000,
)
PRESETS = {
    "default": CURE,
    "collapse": Config(steps=8000),
    "debug": dataclasses.replace(
        CURE, steps=40, decay_steps=40, gans=2, generator=(16,), discriminator=(16,), eval_every=20
    ),
}


def main(config: Config) -> None:
    """Train, score, draw."""
    devices = config.devices or max(n for n in range(1, jax.device_count() + 1) if config.gans % n == 0)
    mesh = make_mesh(devices, shape=config.mesh)
    if config.gans % (devices := mesh.shape["data"]):
        raise UserError(f"--gans {config.gans} do not divide over {devices} devices: change one of them")
    mixture = MIXTURES[config.mixture]
    batches = point_batches(mixture, config.gans, config.batch_size, seed=config.seed, **processes(mesh))
    step, init = training(config)
    run = open_run(NAME, config, {"name": config.mixture})
    if summary := run.finished(config.steps):
        report(run, summary)
        return
    draw, real_points = Sampler(config), [mixture.draw(SCORED, config.seed, 0, 0, number) for number in range(20)]
    watch = CollapseMonitor(config, run, real_points[0], nearest(real_points[0], mixture.centres)[0])
    result = fit(
        step,
        init,
        batches,
        config,
        run=run,
        mesh=mesh,
        every=[Every(config.eval_every, partial(snapshot, run=run, draw=draw, watch=watch, config=config))],
        show=["generator_loss", "modes", "high_quality"],
        steps_per_call=10,
    )
    points = draw(result.state)
    found = scores(points, mixture)
    real = scores(real_points, mixture)
    plots.save_png(run.folder / "points.png", picture(points, config))
    frames = [np.asarray(Image.open(path).convert("RGB")) for path in sorted(run.samples.glob("step_*.png"))]
    plots.save_gif(run.folder / "training.gif", frames, milliseconds=250, scale=1)
    summary = {
        "steps": int(result.state.step[0]),
        "data": f"{config.mixture}: {len(mixture.centres)} Gaussians of deviation {mixture.deviation}",
        "of_modes": len(mixture.centres),
        "gans": config.gans,
        **found,
        "real_high_quality": float(np.mean(real["high_quality"])),
        "real_kl": float(np.mean(real["kl"])),
        "compile_seconds": round(result.compile_seconds, 1),
        "train_seconds": round(result.train_seconds, 1),
    }
    run.write_summary(summary)
    report(run, summary)


def training(config: Config) -> tuple[Step, Callable[[], GanState]]:
    """The training step of all GANs at once, and the function that makes their first states."""
    generator, discriminator = MLP(config.generator, 2), PointDiscriminator(config.discriminator, config.deviation)
    course = {"decay_steps": config.decay_steps}
    txs = optimizer(config.generator_optimizer, **course), optimizer(config.discriminator_optimizer, **course)
    end = config.penalty_weight if config.final_penalty_weight is None else config.final_penalty_weight
    weight = partial(cosine, start=config.penalty_weight, end=end, **course)

    def augment_fn(points: Array, key: Array, state: GanState) -> Array:
        if config.noise:
            points = instance_noise(points, key, cosine(state.step, config.noise, 0.0, **course))
        return pack(points, config.packing)

    def discriminate(params: PyTree, points: Array) -> Array:
        return apply(discriminator, spectrally_normalised(params) if config.spectral else params, points)

    def one_step(state: GanState, points: Array) -> tuple[GanState, dict[str, Array]]:
        return gan_step(
            state,
            points,
            generate=from_noise(generator, config.latent_size, len(points)),
            discriminate=discriminate,
            loss=losses.LOSSES[config.loss],
            penalty=None if config.penalty == "none" else (penalty(config), weight),
            augment_fn=augment_fn,
            unroll=config.unroll,
            unroll_rate=config.unroll_rate,
            ema_half_life=config.ema_half_life,
            txs=txs,
        )

    def step(state: GanState, batch: dict[str, Array]) -> tuple[GanState, dict[str, Array]]:
        state, metrics = jax.vmap(one_step)(state, batch["points"])
        return state, jax.tree.map(jnp.mean, metrics)

    def init() -> GanState:
        latents, points = jnp.zeros((1, config.latent_size)), jnp.zeros((2, 2 * config.packing))
        networks = init_fn(generator, latents), init_fn(discriminator, points)
        keys = jax.random.split(jax.random.key(config.seed), config.gans)
        kept = config.ema_half_life > 0
        return jax.vmap(lambda key: init_gan_state(key, *networks, txs=txs, keep_ema=kept))(keys)

    return step, init


def penalty(config: Config) -> penalties.Penalty:
    """The penalty of a config; small steps are a fifth of the modes' deviation."""
    small = MIXTURES[config.mixture].deviation / 5
    made: dict[str, penalties.Penalty] = {
        "consistency": partial(penalties.consistency, augment=partial(instance_noise, sigma=small)),
        "approximate_r1_r2": partial(penalties.approximate_r1_r2, sigma=small),
    }
    return ({**penalties.PENALTIES} | made)[config.penalty]


class Sampler:
    """Points of all GANs of a state, from always the same noise: float32 [gans, 2500, 2]."""

    def __init__(self, config: Config) -> None:
        generate = jax.vmap(partial(apply, MLP(config.generator, 2)), in_axes=(0, None))
        noise = jax.random.normal(jax.random.fold_in(jax.random.key(config.seed), 1), (SCORED, config.latent_size))
        self._points = jax.jit(lambda params: generate(params, noise))

    def __call__(self, state: GanState) -> np.ndarray:
        return np.asarray(self._points(sampling_params(state)))


def snapshot(
    done: int, state: GanState, *, run: Run, draw: Sampler, watch: CollapseMonitor, config: Config
) -> dict[str, float]:
    """Write the picture of the points; the means of the scores over the GANs, and the variety of the poorest."""
    points, mixture = draw(state), MIXTURES[config.mixture]
    plots.save_png(run.samples / f"step_{done:06d}.png", picture(points, config), scale=1)
    means = {name: float(np.mean(values)) for name, values in scores(points, mixture).items()}
    found = [watch.measure(rows, nearest(rows, mixture.centres)[0]) for rows in points]
    return means | watch.act(done, {name: min(row[name] for row in found) for name in found[0]})


def scores(points: Iterable[np.ndarray], mixture: Mixture) -> dict[str, list[float]]:
    """Each score of every GAN's points."""
    found = [mixture_scores(rows, mixture.centres, mixture.deviation) for rows in points]
    return {name: [row[name] for row in found] for name in found[0]}


def picture(points: np.ndarray, config: Config) -> np.ndarray:
    """A square for each of the first GANs, orange where modes are, blue where it puts points: uint8 [h, w, 3]."""
    centres = MIXTURES[config.mixture].centres
    reach = 1.25 * np.abs(centres).max()
    cells = np.full((min(len(points), DRAWN), SIDE, SIDE, 3), 255, np.uint8)
    for cell, rows in zip(cells, points, strict=False):
        for places, colour, width in ((centres, (255, 190, 120), 2), (rows, (20, 40, 110), 0)):
            column, row = np.rint((places * (1, -1) / reach + 1) / 2 * (SIDE - 1)).astype(int).T
            inside = (column >= 0) & (column < SIDE) & (row >= 0) & (row < SIDE)
            for x, y in zip(column[inside], row[inside], strict=True):
                cell[max(0, y - width) : y + width + 1, max(0, x - width) : x + width + 1] = colour
    return plots.grid(cells, columns=len(cells))


def report(run: Run, summary: dict[str, Any]) -> None:
    """Tell a person what came out."""
    modes, quality, kl = ((np.mean(summary[name]), np.std(summary[name])) for name in ("modes", "high_quality", "kl"))
    print(
        f"""
pictures      {run.folder}/points.png  training.gif
modes         {modes[0]:.1f} +- {modes[1]:.1f} of {summary["of_modes"]}
high quality  {quality[0]:.1%} +- {quality[1]:.1%}   real points {summary["real_high_quality"]:.1%}
KL            {kl[0]:.4f} +- {kl[1]:.4f}   real points {summary["real_kl"]:.4f}
              mean and deviation over {summary["gans"]} GANs, 2,500 points each
training      {summary["train_seconds"]:.0f} s for all of them; compilation {summary["compile_seconds"]:.0f} s"""
    )


if __name__ == "__main__":
    cli.run(main, PRESETS, __doc__)
