"""Linear regression three ways: gradients written by hand, gradients by JAX, and the formula for the answer.

    python experiments/linear_regression.py                     # learning rate 0.1, 100 steps
    python experiments/linear_regression.py --preset article    # learning rate 0.01, 1,000 steps

A line y = w x + b through noisy points (x_i, y_i), i = 1 ... n. The loss is the mean squared error, and gradient
descent follows its derivatives downhill from w = b = 0:

    L(w, b) = 1/n sum (y_i - (w x_i + b))^2        dL/dw = -2/n sum (y_i - (w x_i + b)) x_i
                                                   dL/db = -2/n sum (y_i - (w x_i + b))

Claim: at every step the gradient by hand is that of ``jax.grad`` to rounding, and both descents end within 1e-4 of the
least-squares solution. Expected (seed 0, 3 s on 2 CPU cores): gradients apart by at most 1.1e-7 of their terms' size
(``article`` 1.9e-7); w = 2.9942 and b = 3.7942 all three ways, the descents 4.8e-7 (``article`` 8.1e-6) away from least
squares.

The run's folder ends with descent.png and summary.json. A descent is so short that nothing is saved on the way: with a
larger ``--steps`` it starts again from zero and takes the same path. It needs no data and one device.
"""

import dataclasses
import math
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxai import cli
from jaxai.config import Common
from jaxai.run.folder import open_run
from jaxai.run.log import MetricsLog
from jaxai.typing import Array

NAME = "linear_regression"
TOLERANCE = 1e-4
"""Between the descents' end and least squares: a float32 step stops where rate * gradient is below w's last bit."""

Line = dict[str, Array]
"""{"w": slope, "b": intercept}, float32 []."""
Gradient = Callable[[Line, Array, Array], Line]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Common):
    """Options of this experiment."""

    points: int = 100
    true_w: float = 3.0
    true_b: float = 4.0
    noise: float = 1.0
    """Standard deviation of the noise on y."""
    learning_rate: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least(2, "points")
        self.check_at_least(0, "noise")
        if not self.learning_rate > 0:
            raise ValueError(f"--learning-rate must be positive, got {self.learning_rate}")


PRESETS = {
    "default": Config(steps=100),
    "article": Config(steps=1000, learning_rate=0.01),
    "debug": Config(steps=20, points=10),
}


def main(config: Config) -> None:
    """Descend twice, solve once, compare, draw."""
    run = open_run(NAME, config, {"name": "points on a noisy line"})
    if summary := run.finished(config.steps):
        report(run.folder, summary)
        return
    x, y = make_points(config)
    path = descend(gradient_by_hand, x, y, config.learning_rate, config.steps)
    path_of_jax = descend(jax.grad(mean_squared_error), x, y, config.learning_rate, config.steps)
    measured = jax.device_get(measure(path, x, y))
    write_metrics(run.metrics, measured, tensorboard=config.tensorboard)
    lines = {
        "true": {"w": jnp.float32(config.true_w), "b": jnp.float32(config.true_b)},
        "by_hand": {name: values[-1] for name, values in path.items()},
        "jax_grad": {name: values[-1] for name, values in path_of_jax.items()},
        "closed_form": least_squares(x, y),
    }
    figures = {
        name: {"w": float(line["w"]), "b": float(line["b"]), "loss": float(mean_squared_error(line, x, y))}
        for name, line in lines.items()
    }
    ends = [figures[name][part] - figures["closed_form"][part] for name in ("by_hand", "jax_grad") for part in "wb"]
    summary = {
        "steps": config.steps,
        **figures,
        "largest_gradient_difference": float(measured["gradient_difference"].max()),
        "distance_to_closed_form": max(map(abs, ends)),
    }
    draw(run.folder / "descent.png", np.asarray(x), np.asarray(y), measured, figures)
    run.write_summary(summary)
    report(run.folder, summary)


def make_points(config: Config) -> tuple[Array, Array]:
    """x uniform on [-2, 3], y on the line plus noise; both [n]. Centred, x would make the loss's contours circles."""
    key_x, key_noise = jax.random.split(jax.random.key(config.seed))
    x = jax.random.uniform(key_x, (config.points,), minval=-2.0, maxval=3.0)
    noise = config.noise * jax.random.normal(key_noise, (config.points,))
    return x, config.true_w * x + config.true_b + noise


def mean_squared_error(line: Line, x: Array, y: Array) -> Array:
    """1/n sum (y - (w x + b))^2."""
    return ((y - (line["w"] * x + line["b"])) ** 2).mean()


def gradient_by_hand(line: Line, x: Array, y: Array) -> Line:
    """-2/n sum (y - (w x + b)) x and -2/n sum (y - (w x + b)): the chain rule on one summand, then the mean."""
    error = y - (line["w"] * x + line["b"])
    return {"w": -2 * (error * x).mean(), "b": -2 * error.mean()}


def least_squares(x: Array, y: Array) -> Line:
    """Where both derivatives are 0: w = sum (x - mean x)(y - mean y) / sum (x - mean x)^2, b = mean y - w mean x."""
    centred = x - x.mean()
    w = (centred * (y - y.mean())).sum() / (centred**2).sum()
    return {"w": w, "b": y.mean() - w * x.mean()}


def descend(gradient: Gradient, x: Array, y: Array, learning_rate: float, steps: int) -> Line:
    """Gradient descent from w = b = 0: every line on the way, [steps + 1], the first and the last among them."""

    def step(line: Line, _: None) -> tuple[Line, Line]:
        slope = gradient(line, x, y)
        return {name: line[name] - learning_rate * slope[name] for name in line}, line

    start = {"w": jnp.zeros(()), "b": jnp.zeros(())}
    return jax.lax.scan(step, start, length=steps + 1)[1]


def measure(path: Line, x: Array, y: Array) -> dict[str, Array]:
    """w, b, loss, gradient norm, and how far hand and jax.grad are apart, at each line of a path; all [steps + 1].

    The two gradients differ by rounding only, but near the minimum they are sums whose terms cancel. So the difference
    is divided by the sum of the terms' sizes, 2/n sum |error x| and 2/n sum |error|, and not by what is left of them.
    """

    def at(line: Line) -> dict[str, Array]:
        by_hand, by_jax = gradient_by_hand(line, x, y), jax.grad(mean_squared_error)(line, x, y)
        error = jnp.abs(y - (line["w"] * x + line["b"]))
        sizes = {"w": 2 * (error * jnp.abs(x)).mean(), "b": 2 * error.mean()}
        differences = [jnp.abs(by_hand[name] - by_jax[name]) / sizes[name] for name in sizes]
        norm = jnp.hypot(by_hand["w"], by_hand["b"])
        loss = mean_squared_error(line, x, y)
        return {"loss": loss, **line, "gradient_norm": norm, "gradient_difference": jnp.maximum(*differences)}

    return jax.lax.map(at, path)


def write_metrics(file: Path, measured: dict[str, np.ndarray], *, tensorboard: bool) -> None:
    """One line for each point of the path. FloatingPointError at the first one where a value is not finite."""
    with closing(MetricsLog(file, after=-1, tensorboard=tensorboard)) as log:
        for step, values in enumerate(zip(*measured.values(), strict=True)):
            line = dict(zip(measured, map(float, values), strict=True))
            for name, value in line.items():
                if not math.isfinite(value):
                    fix = "lower --learning-rate and start again with --resume never"
                    raise FloatingPointError(f"{name} is {value} at step {step}: {fix}")
            log.write(step, line)


def draw(file: Path, x: np.ndarray, y: np.ndarray, measured: dict[str, np.ndarray], figures: dict[str, Any]) -> None:
    """The loss over the steps, the path over the loss's contours, the line through the points."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    curve, contours, fit = figure.subplots(1, 3)
    curve.plot(measured["loss"], label="gradient descent")
    curve.axhline(figures["closed_form"]["loss"], color="black", linestyle="--", linewidth=1, label="least squares")
    curve.set(xlabel="step", ylabel="mean squared error", yscale="log")
    draw_contours(contours, x, y, measured, figures["closed_form"])
    ends = np.array([x.min(), x.max()])
    fit.scatter(x, y, s=12, alpha=0.5, label="points")
    for name, color, style in (("true", "grey", "--"), ("by_hand", "C3", "-")):
        line = figures[name]
        label = f"{name.replace('_', ' ')}: {line['w']:.2f} x + {line['b']:.2f}"
        fit.plot(ends, line["w"] * ends + line["b"], style, color=color, label=label)
    fit.set(xlabel="x", ylabel="y")
    for axes in (curve, contours, fit):
        axes.legend(fontsize="small", loc="lower right" if axes is contours else "best")
        axes.set_box_aspect(1)
    figure.savefig(file, dpi=120)


def draw_contours(axes: Axes, x: np.ndarray, y: np.ndarray, measured: dict[str, np.ndarray], end: dict) -> None:
    """Lines of equal loss around the path of (w, b), each twice as far above the minimum as the next one."""
    lows, highs = (np.array([pick([*measured[name], end[name]]) for name in ("w", "b")]) for pick in (min, max))
    half = 0.75 * (highs - lows).max()  # a square with a margin: the path crosses the contours at right angles
    w, b = np.meshgrid(*np.linspace((lows + highs) / 2 - half, (lows + highs) / 2 + half, 100).T)
    losses = np.mean((y[:, None, None] - (w[None] * x[:, None, None] + b[None])) ** 2, axis=0)
    levels = end["loss"] + (losses.max() - end["loss"]) * 2.0 ** -np.arange(10, 0, -1)
    axes.contour(w, b, losses, levels=levels, colors="grey", linewidths=0.6)
    axes.plot(measured["w"], measured["b"], ".-", color="C3", markersize=4, linewidth=1, label="gradient descent")
    axes.plot(end["w"], end["b"], "*", color="black", markersize=11, label="least squares")
    axes.set(xlabel="w", ylabel="b")


def report(folder: Path, summary: dict[str, Any]) -> None:
    """Tell a person what came out."""
    rows = [("true line", "true"), ("by hand", "by_hand"), ("jax.grad", "jax_grad"), ("least squares", "closed_form")]
    print(f"\n{'':15}{'w':>10}{'b':>10}{'loss':>10}")
    for label, name in rows:
        line = summary[name]
        print(f"{label:15}{line['w']:10.5f}{line['b']:10.5f}{line['loss']:10.5f}")
    distance = summary["distance_to_closed_form"]
    arrived = "within" if distance <= TOLERANCE else "not yet within"
    print(
        f"\ngradients     by hand and by jax.grad differ by {summary['largest_gradient_difference']:.1e} at most"
        f"\ndescents      after {summary['steps']:,} steps {distance:.1e} from least squares, {arrived} {TOLERANCE:g}"
        f"\npicture       {folder}/descent.png"
    )


if __name__ == "__main__":
    cli.run(main, PRESETS, __doc__)
