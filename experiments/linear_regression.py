"""Linear regression three ways: gradients derived by hand, gradients by JAX, and the closed-form solution.

    python experiments/linear_regression.py                     # learning rate 0.1, 100 steps
    python experiments/linear_regression.py --preset article    # learning rate 0.01, 1,000 steps

A line y = w x + b is fitted to noisy points (x_i, y_i), i = 1 ... n. The loss is the mean squared error, and gradient
descent starts at w = b = 0:

    L(w, b) = 1/n sum (y_i - (w x_i + b))^2        dL/dw = -2/n sum (y_i - (w x_i + b)) x_i
                                                   dL/db = -2/n sum (y_i - (w x_i + b))

Claim: at every step the gradient by hand equals that of ``jax.grad`` up to rounding, and both descents end within 1e-4
of the least-squares solution. Expected (seed 0, seconds on 2 CPU cores): gradients differ by at most 1.1e-7
(``article`` 1.9e-7) of the size of their terms; w = 2.9942 and b = 3.7942 all three ways, with both descents 4.8e-7
(``article`` 8.1e-6) away from least squares.
"""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxai import experiment
from jaxai.config import Training
from jaxai.data.synthetic.constant import constant_batches
from jaxai.errors import UserError
from jaxai.plots.curves import read_records
from jaxai.run import Run
from jaxai.train import Keys, Result
from jaxai.typing import Array

NAME = "linear_regression"
TOLERANCE = 1e-4
"""Of the descents against least squares: in float32, w stops changing when rate * gradient is below its last bit."""

Line = dict[str, Array]
"""{"w": slope, "b": intercept}, float32 []."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Training):
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
            raise UserError(f"--learning-rate must be positive, got {self.learning_rate}")


PRESETS = {
    "default": Config(steps=100),
    "article": Config(steps=1000, learning_rate=0.01),
    "debug": Config(steps=20, points=10),
}


def build(config: Config) -> experiment.Task:
    """Both descents, compared with the closed-form line for the same points."""
    x, y = make_points(config)

    def finish(run: Run, result: Result) -> dict[str, Any]:
        true = {"w": jnp.float32(config.true_w), "b": jnp.float32(config.true_b)}
        lines = {"true": true, **result.state, "closed_form": least_squares(x, y)}
        figures = {
            name: {"w": float(line["w"]), "b": float(line["b"]), "loss": float(mean_squared_error(line, x, y))}
            for name, line in lines.items()
        }
        rows = [row for row in read_records(run.metrics) if "gradient_difference" in row]
        draw(run.folder / "descent.png", np.asarray(x), np.asarray(y), rows, figures)
        ends = [figures[name][part] - figures["closed_form"][part] for name in result.state for part in "wb"]
        largest = max(row["gradient_difference"] for row in rows)
        return {**figures, "largest_gradient_difference": largest, "distance_to_closed_form": max(map(abs, ends))}

    return experiment.Task(
        identity={"name": "points on a noisy line"},
        source=f"{config.points} points on a noisy line",
        batches=partial(constant_batches, {"x": np.asarray(x), "y": np.asarray(y)}),
        batch_size=config.points,
        devices=1,
        trainer=Descents(config.learning_rate),
        finish=finish,
        report=report,
    )


def make_points(config: Config) -> tuple[Array, Array]:
    """x uniform on [-2, 3], y on the line plus noise; both [n]. x is off-centre so that w and b are coupled."""
    key_x, key_noise = jax.random.split(Keys(config.seed).data)
    x = jax.random.uniform(key_x, (config.points,), minval=-2.0, maxval=3.0)
    noise = config.noise * jax.random.normal(key_noise, (config.points,))
    return x, config.true_w * x + config.true_b + noise


def mean_squared_error(line: Line, x: Array, y: Array) -> Array:
    """1/n sum (y - (w x + b))^2."""
    return ((y - (line["w"] * x + line["b"])) ** 2).mean()


def gradient_by_hand(line: Line, x: Array, y: Array) -> Line:
    """-2/n sum (y - (w x + b)) x and -2/n sum (y - (w x + b)): the chain rule for each term, then the mean."""
    error = y - (line["w"] * x + line["b"])
    return {"w": -2 * (error * x).mean(), "b": -2 * error.mean()}


def least_squares(x: Array, y: Array) -> Line:
    """The zero of the gradient: w = sum (x - mean x)(y - mean y) / sum (x - mean x)^2, b = mean y - w mean x."""
    centred = x - x.mean()
    w = (centred * (y - y.mean())).sum() / (centred**2).sum()
    return {"w": w, "b": y.mean() - w * x.mean()}


@dataclasses.dataclass(frozen=True)
class Descents:
    """Trainer of two lines from w = b = 0 by gradient descent: with gradients by hand, and with jax.grad's."""

    learning_rate: float

    def init(self, keys: Keys) -> dict[str, Line]:
        return {name: {"w": jnp.zeros(()), "b": jnp.zeros(())} for name in ("by_hand", "jax_grad")}

    def step(self, state: dict[str, Line], batch: dict[str, Array]) -> tuple[dict[str, Line], dict[str, Array]]:
        x, y = batch["x"], batch["y"]
        gradients = {"by_hand": gradient_by_hand, "jax_grad": jax.grad(mean_squared_error)}
        slopes = {name: gradient(state[name], x, y) for name, gradient in gradients.items()}
        new = jax.tree.map(lambda value, slope: value - self.learning_rate * slope, state, slopes)
        return new, measure(state["by_hand"], x, y)

    def params(self, state: dict[str, Line]) -> dict[str, Line]:
        return state


def measure(line: Line, x: Array, y: Array) -> dict[str, Array]:
    """w, b, loss, gradient norm, and the difference between the gradients by hand and by jax.grad.

    The two gradients differ only by rounding, but near the minimum the terms of their sums cancel. The difference is
    therefore relative to the sum of the terms' magnitudes, 2/n sum |error x| and 2/n sum |error|, not to the gradient.
    """
    by_hand, by_jax = gradient_by_hand(line, x, y), jax.grad(mean_squared_error)(line, x, y)
    error = jnp.abs(y - (line["w"] * x + line["b"]))
    sizes = {"w": 2 * (error * jnp.abs(x)).mean(), "b": 2 * error.mean()}
    differences = [jnp.abs(by_hand[name] - by_jax[name]) / sizes[name] for name in sizes]
    norm = jnp.hypot(by_hand["w"], by_hand["b"])
    loss = mean_squared_error(line, x, y)
    return {"loss": loss, **line, "gradient_norm": norm, "gradient_difference": jnp.maximum(*differences)}


def draw(file: Path, x: np.ndarray, y: np.ndarray, rows: list[dict], figures: dict[str, Any]) -> None:
    """Plot the loss over the steps, the path over the contours of the loss, and the line through the points."""
    path = {name: np.array([row[name] for row in rows] + [figures["by_hand"][name]]) for name in ("loss", "w", "b")}
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    curve, contours, fit = figure.subplots(1, 3)
    curve.plot(path["loss"], label="gradient descent")
    curve.axhline(figures["closed_form"]["loss"], color="black", linestyle="--", linewidth=1, label="least squares")
    curve.set(xlabel="step", ylabel="mean squared error", yscale="log")
    draw_contours(contours, x, y, path, figures["closed_form"])
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


def draw_contours(axes: Axes, x: np.ndarray, y: np.ndarray, path: dict[str, np.ndarray], end: dict) -> None:
    """Draw contours of the loss around the path of (w, b); the excess over the minimum doubles from one to the next."""
    lows, highs = (np.array([pick([*path[name], end[name]]) for name in ("w", "b")]) for pick in (min, max))
    half = 0.75 * (highs - lows).max()  # a square with a margin: the path crosses the contours at right angles
    w, b = np.meshgrid(*np.linspace((lows + highs) / 2 - half, (lows + highs) / 2 + half, 100).T)
    losses = np.mean((y[:, None, None] - (w[None] * x[:, None, None] + b[None])) ** 2, axis=0)
    levels = end["loss"] + (losses.max() - end["loss"]) * 2.0 ** -np.arange(10, 0, -1)
    axes.contour(w, b, losses, levels=levels, colors="grey", linewidths=0.6)
    axes.plot(path["w"], path["b"], ".-", color="C3", markersize=4, linewidth=1, label="gradient descent")
    axes.plot(end["w"], end["b"], "*", color="black", markersize=11, label="least squares")
    axes.set(xlabel="w", ylabel="b")


def report(run: Run, summary: dict[str, Any]) -> None:
    """Print the lines and their distances."""
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
        f"\npicture       {run.folder}/descent.png"
    )


if __name__ == "__main__":
    experiment.run(NAME, PRESETS, build, __doc__)
