"""Mode collapse on 2-D points: its causes and remedies.

    python experiments/gan_toy2d.py                     # R3GAN's loss on a grid (or --mixture ring), five GANs at once
    python experiments/gan_toy2d.py --preset collapse   # the GAN of 2014 on the same points; a remedy is --packing 4

The scores are PacGAN's (arXiv 1712.04086), on 2,500 points: the number of modes with a point within three standard
deviations, the share of such points, and the KL of the modes' frequencies to uniform. Preset default: 25.0 of 25 modes,
97.8 %, 0.0054, in 96 s on 2 CPU cores; collapse: 1.4 modes, 0.7 %. Published: GAN 17.3, 94.8 %, 0.70; PacGAN4 24.8,
93.6 %, 0.04. One program trains all GANs, each from its own seed; the pictures show the first five, one per column.
"""

import dataclasses
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxai import experiment, gan, plots
from jaxai.data.synthetic.mixtures import MIXTURES, point_batches
from jaxai.errors import UserError
from jaxai.metrics.mixtures import nearest, score_lists
from jaxai.nn.mlp import MLP
from jaxai.run import Run
from jaxai.train import Adam, Keys, Result, cosine, optimizer
from jaxai.typing import Array

NAME = "gan_toy2d"
SCORED, DRAW = 2500, 5  # points scored per GAN, as in PacGAN; GANs per picture


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(gan.CollapseConfig):
    """Options of this experiment."""

    mixture: Literal["ring", "grid"] = "grid"
    gans: int = 5
    """Number of GANs trained at once, each from its own seed."""
    generator: tuple[int, ...] = (96,) * 6
    """Widths of the hidden layers."""
    discriminator: tuple[int, ...] = (96,) * 4
    latent_size: int = 2
    batch_size: int = 64
    """Points per GAN and step."""
    loss: gan.LossName = "non_saturating"
    penalty: gan.PenaltyName | Literal["none", "consistency"] = "none"
    """Penalty on the discriminator; consistency is with respect to noise of a fifth of the modes' deviation."""
    penalty_weight: float = 1.0
    """Weight of the penalty at the first step."""
    final_penalty_weight: float | None = None
    """Weight of the penalty after decay_steps, reached by cosine decay; by default constant."""
    noise: float = 0.0
    """Initial standard deviation of the noise on the discriminator's inputs; decays to 0 along a cosine."""
    packing: int = 1
    """Number of points that the discriminator judges jointly (PacGAN)."""
    minibatch_stddev: bool = False
    """Give the discriminator the standard deviation of the points in a batch."""
    spectral: bool = False
    """Divide the discriminator's kernels by their spectral norms."""
    unroll: int = 0
    """Discriminator steps, of learning rate unroll_rate, through which the generator's loss is differentiated."""
    unroll_rate: float = 0.1
    generator_optimizer: Adam = Adam(learning_rate=1e-3, beta1=0.5)
    discriminator_optimizer: Adam = Adam(learning_rate=1e-3, beta1=0.5)
    ema_half_life: float = 0.0
    """Half-life, in points, of the generator's moving average, which is scored; 0: no average."""
    decay_steps: int = 8000
    """Steps over which penalty weight, noise and learning rates decay."""
    eval_every: int = 500

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least(1, "gans", "latent_size", "batch_size", "packing", "decay_steps", "eval_every")
        self.check_at_least(0, "penalty_weight", "noise", "unroll", "unroll_rate", "ema_half_life")
        if self.final_penalty_weight is not None:
            self.check_at_least(0, "final_penalty_weight")
        self.check_finite("penalty_weight", "noise", "unroll_rate")
        if min(self.generator + self.discriminator, default=1) < 1:
            raise UserError("--generator and --discriminator are sizes of layers: give positive numbers")
        if self.batch_size % self.packing:
            raise UserError(f"--packing {self.packing} does not divide --batch-size {self.batch_size}")
        if self.minibatch_stddev and self.batch_size // self.packing % 8:
            raise UserError("--minibatch-stddev compares groups of 8: they must divide --batch-size / --packing")


R3GAN: Any = {"loss": "relativistic", "penalty": "r1_r2", "penalty_weight": 0.1, "final_penalty_weight": 0.001}
RATES = Adam(learning_rate=2e-3, beta1=0.0, beta2=0.99, final_rate=0.02)
ADAMS: Any = {"generator_optimizer": RATES, "discriminator_optimizer": RATES}
CURE = Config(**R3GAN, **ADAMS, batch_size=128, steps=24_000, decay_steps=24_000, ema_half_life=5e4, eval_every=1000)
SMALL: Any = {"gans": 2, "generator": (16,), "discriminator": (16,)}
PRESETS = {
    "default": CURE,
    "collapse": Config(steps=8000),
    "debug": dataclasses.replace(CURE, **SMALL, steps=40, decay_steps=40, eval_every=20),
}


def build(config: Config) -> experiment.Task:
    """The training of all GANs, evaluated by pictures and PacGAN's scores."""
    mixture = MIXTURES[config.mixture]
    scores = partial(score_lists, centres=mixture.centres, deviation=mixture.deviation)
    real = [mixture.draw(SCORED, config.seed, 0, 0, number) for number in range(20)]
    monitor = gan.CollapseMonitor(config, real[0], nearest(real[0], mixture.centres)[0])
    noise = jax.random.normal(Keys(config.seed).sampling, (SCORED, config.latent_size))
    generate = jax.jit(jax.vmap(lambda params: gan.apply(MLP(config.generator, 2), params, noise)))

    def evaluate(run: Run, step: int, state: gan.GanState) -> dict[str, float]:
        points = np.asarray(generate(gan.sampling_params(state)))
        plots.save_png(run.samples / f"step_{step:06d}.png", plots.draw_points(points[:DRAW], mixture.centres), scale=1)
        means = {name: float(np.mean(values)) for name, values in scores(points).items()}
        found = [monitor.measure(rows, nearest(rows, mixture.centres)[0]) for rows in points]
        return means | monitor.act(run, step, {name: min(row[name] for row in found) for name in found[0]})

    def finish(run: Run, result: Result) -> dict[str, Any]:
        points = np.asarray(generate(gan.sampling_params(result.state)))
        plots.save_png(run.folder / "points.png", plots.draw_points(points[:DRAW], mixture.centres))
        plots.animate_files(run.folder / "training.gif", sorted(run.samples.glob("step_*.png")), milliseconds=250)
        of_real = {f"real_{name}": float(np.mean(values)) for name, values in scores(real).items()}
        return {"of_modes": len(mixture.centres), "gans": config.gans, **scores(points), **of_real}

    return experiment.Task(
        identity={"name": config.mixture},
        source=f"{config.mixture}: {len(mixture.centres)} Gaussians of deviation {mixture.deviation}",
        batches=partial(point_batches, mixture, config.gans, config.batch_size, seed=config.seed),
        batch_size=config.gans,
        batch_option="--gans",
        devices=max(n for n in range(1, jax.device_count() + 1) if config.gans % n == 0),
        trainer=trainer(config),
        evaluate=evaluate,
        eval_every=config.eval_every,
        finish=finish,
        report=report,
        show=["generator_loss", "modes", "high_quality"],
        steps_per_call=10,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gans(gan.Gan):
    """Trainer of ``count`` GANs at once, each from its own key; metrics are averaged over them."""

    count: int

    def init(self, keys: Keys) -> gan.GanState:
        return jax.vmap(lambda seed: super(Gans, self).init(Keys(seed)))(keys.split(self.count))

    def step(self, state: gan.GanState, batch: gan.Batch) -> tuple[gan.GanState, dict[str, Array]]:
        state, metrics = jax.vmap(super().step)(state, batch)
        return state, jax.tree.map(jnp.mean, metrics)


def trainer(config: Config) -> Gans:
    """The trainer of all GANs on batches of points."""
    discriminator = gan.PointDiscriminator(config.discriminator, config.minibatch_stddev)
    course: dict[str, Any] = {"decay_steps": config.decay_steps}
    end = config.penalty_weight if config.final_penalty_weight is None else config.final_penalty_weight
    penalties = {**gan.PENALTIES, **gan.noise_penalties(MIXTURES[config.mixture].deviation / 5)}
    weight = partial(cosine, start=config.penalty_weight, end=end, **course)

    def augment(points: Array, key: Array, state: gan.GanState) -> Array:
        sigma = cosine(state.step, config.noise, 0.0, **course)
        return gan.pack(gan.instance_noise(points, key, sigma) if config.noise else points, config.packing)

    normalised = gan.spectrally_normalised if config.spectral else lambda params: params
    generator = MLP(config.generator, 2)
    draw = gan.from_noise(generator, config.latent_size, config.batch_size)
    return Gans(
        count=config.gans,
        init_generator=gan.init_fn(generator, jnp.zeros((1, config.latent_size))),
        init_discriminator=gan.init_fn(discriminator, jnp.zeros((2, 2 * config.packing))),
        real=lambda batch: batch["points"],
        generate=lambda params, key, batch: draw(params, key),
        discriminate=lambda params, points, batch: gan.apply(discriminator, normalised(params), points),
        loss=gan.LOSSES[config.loss],
        penalty=None if config.penalty == "none" else (penalties[config.penalty], weight),
        augment_fn=augment,
        unroll=config.unroll,
        unroll_rate=config.unroll_rate,
        ema_half_life=config.ema_half_life,
        txs=(optimizer(config.generator_optimizer, **course), optimizer(config.discriminator_optimizer, **course)),
    )


def report(run: Run, summary: dict[str, Any]) -> None:
    """Print the paths of the pictures, and means and standard deviations of the scores over the GANs."""
    modes, quality, kl = ((np.mean(summary[name]), np.std(summary[name])) for name in ("modes", "high_quality", "kl"))
    print(
        f"""
pictures      {run.folder}/points.png  training.gif
modes         {modes[0]:.1f} +- {modes[1]:.1f} of {summary["of_modes"]}
high quality  {quality[0]:.1%} +- {quality[1]:.1%}   real points {summary["real_high_quality"]:.1%}
KL            {kl[0]:.4f} +- {kl[1]:.4f}   real points {summary["real_kl"]:.4f}
              mean and deviation over {summary["gans"]} GANs, 2,500 points each
training      {summary["train_seconds"]:.0f} s in total; compilation {summary["compile_seconds"]:.0f} s"""
    )


if __name__ == "__main__":
    experiment.run(NAME, PRESETS, build, __doc__)
