"""Regularizers against mode collapse, alone and combined, and four losses on the 1000-mode benchmark.

    python benchmarks/mode_collapse.py grid                      # 25 Gaussians, five GANs per row, 12 minutes
    python benchmarks/mode_collapse.py ring                      # eight Gaussians on a circle
    python benchmarks/mode_collapse.py stacked --data-dir DIR    # three digits as colour channels, hours on a CPU

A row of ``grid`` and ``ring`` is one run of ``experiments/gan_toy2d.py --preset collapse`` with the row's options, all
with the same networks and number of steps; the last row is its preset ``default``, with twice the batch and three times
the steps. A row of ``stacked`` is one run of ``experiments/gan_stacked_mnist.py``. With packing, a batch has as many
packs as the other rows have points, as in PacGAN; every row, also the Wasserstein row, updates its discriminator once
per step. Writes table.md, mode_collapse.json and the runs to --out; an interrupted benchmark resumes.
"""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from timing import figure, write

from jaxai import cli
from jaxai.errors import UserError

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
R1_R2 = ("--penalty", "r1_r2", "--penalty-weight", "0.1", "--final-penalty-weight", "0.001")
AVERAGE = ("--ema-half-life", "10000")
TEN = ("--penalty-weight", "10")
PACKED = ("--packing", "4", "--batch-size", "256")
Row = dict[str, Any]
CURE = "preset `default`: these three, decaying learning rates, more steps"
POINTS: dict[str, tuple[str, ...]] = {
    "the GAN of 2014, non-saturating": (),
    "saturating": ("--loss", "saturating"),
    "least squares": ("--loss", "least_squares"),
    "hinge": ("--loss", "hinge"),
    "Wasserstein, gradient penalty": ("--loss", "wasserstein", "--penalty", "wgan_gp", *TEN),
    "relativistic, paired": ("--loss", "relativistic"),
    "relativistic, average": ("--loss", "relativistic_average"),
    "R1": ("--penalty", "r1", *R1_R2[2:]),
    "R1 and R2": R1_R2,
    "R1 and R2 by finite differences": ("--penalty", "approximate_r1_r2", *R1_R2[2:]),
    "DRAGAN": ("--penalty", "dragan", *TEN),
    "consistency": ("--penalty", "consistency", *TEN),
    "instance noise": ("--noise", "1"),
    "packing, 2": ("--packing", "2", "--batch-size", "128"),
    "packing, 4": PACKED,
    "minibatch standard deviation": ("--minibatch-stddev",),
    "spectral normalisation": ("--spectral",),
    "unrolling, 5": ("--unroll", "5", "--unroll-rate", "0.01"),
    "moving average of the generator": AVERAGE,
    "two time scales": ("--generator-optimizer.learning-rate", "2.5e-4"),
    "larger generator": ("--generator", *["192"] * 6),
    "larger batch": ("--batch-size", "256"),
    "packing, 4, instance noise": (*PACKED, "--noise", "1"),
    "packing, 4, R1 and R2": (*PACKED, *R1_R2),
    "R1 and R2, moving average": (*R1_R2, *AVERAGE),
    "relativistic, R1 and R2": ("--loss", "relativistic", *R1_R2),
    "relativistic, R1 and R2, moving average": ("--loss", "relativistic", *R1_R2, *AVERAGE),
    CURE: ("--preset", "default"),
}
STACKS: dict[str, tuple[str, ...]] = {
    "relativistic, R1 and R2": ("--loss", "relativistic", "--penalty", "r1_r2"),
    "non-saturating, R1 and R2": ("--loss", "non_saturating", "--penalty", "r1_r2"),
    "relativistic, R1": ("--loss", "relativistic", "--penalty", "r1"),
    "non-saturating, R1": ("--loss", "non_saturating", "--penalty", "r1"),
}
COLUMNS = {"gan_toy2d": ("modes", "high_quality", "kl"), "gan_stacked_mnist": ("modes", "certain_modes", "kl")}
PUBLISHED = {
    "grid": (
        "| GAN, PacGAN's (arXiv 1712.04086) | 17.3 | 94.8 % | 0.70 | |",
        "| PacGAN4 (arXiv 1712.04086) | 24.8 | 93.6 % | 0.04 | |",
    ),
    "ring": (),
    "stacked": (
        "| R3GAN's ablation (arXiv 2501.05441): RpGAN, R1 and R2 | 1000 | | 0.078 | |",
        "| ... GAN, R1 and R2 | 693 | | 0.927 | |",
        "| ... either with R1 alone | diverges | | | |",
    ),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the benchmark."""

    section: tyro.conf.Positional[Literal["grid", "ring", "stacked"]] = "grid"
    steps: int = 8000
    """Steps of every GAN; the row of preset `default` takes three times as many."""
    gans: int = 5
    """GANs per row of grid and ring; stacked trains one, scored with three draws of latents."""
    penalty: float | None = None
    """For ``stacked``: a constant penalty weight, instead of the preset's schedule."""
    data_dir: Path | None = None
    """A folder with all of MNIST, for ``stacked``; by default the embedded digits."""
    out: Path = Path("runs/benchmarks/mode_collapse")

    def __post_init__(self) -> None:
        if min(self.steps, self.gans) < 1:
            raise UserError(f"--steps and --gans must be at least 1, got {self.steps} and {self.gans}")
        if self.penalty is not None and self.section != "stacked":
            raise UserError("--penalty is for stacked only: the rows of grid and ring have their own penalties")

    @property
    def experiment(self) -> str:
        return "gan_stacked_mnist" if self.section == "stacked" else "gan_toy2d"

    @property
    def folder(self) -> Path:
        """The folder of the runs with these sizes."""
        gans = "" if self.section == "stacked" else f"_{self.gans}_gans"
        penalty = "" if self.penalty is None else f"_penalty_{self.penalty}"
        return self.out / f"{self.section}{gans}_{self.steps}_steps{penalty}"


def main(config: Config) -> None:
    """Run all rows, print and write the table."""
    rows = {}
    for name, options in (STACKS if config.section == "stacked" else POINTS).items():
        rows[name] = run(config, name, options)
        print(line(config, name, rows[name]), flush=True)
    (config.folder / "table.md").write_text(table(config, rows), encoding="utf-8")
    write(config.folder / "mode_collapse.json", {"rows": rows, "figures": figures(config, rows)})


def run(config: Config, name: str, options: tuple[str, ...]) -> Row:
    """The summary of a row's run, or the step at which it diverged."""
    workdir = config.folder / "".join(c if c.isalnum() else "_" for c in name)
    steps = 3 * config.steps if name == CURE else config.steps
    sizes: list[Any] = ["--steps", steps, "--decay-steps", steps]
    if config.section == "stacked":
        sizes += ["--data-dir", config.data_dir] if config.data_dir else []
        if config.penalty is not None:
            sizes += ["--penalty-weight", config.penalty, "--final-penalty-weight", config.penalty]
    else:
        sizes += ["--mixture", config.section, "--gans", config.gans]
        options = options if "--preset" in options else ("--preset", "collapse", *options)
    script = EXPERIMENTS / f"{config.experiment}.py"
    words = [sys.executable, script, *options, *sizes, "--workdir", workdir, "--platform", "cpu"]
    stopped = workdir / "nonfinite.json"
    if not stopped.exists():
        job = subprocess.run([str(word) for word in words], capture_output=True, text=True)
        if job.returncode and not stopped.exists():
            raise UserError(f"{name}: {(job.stderr.strip().splitlines() or ['no message'])[-1]}")
    if stopped.exists():
        return {"diverged": json.loads(stopped.read_text())["step"]}
    return json.loads((workdir / "summary.json").read_text())


def line(config: Config, name: str, row: Row) -> str:
    """Format a row in Markdown: means and standard deviations over GANs or draws of latents."""
    if "diverged" in row:
        return f"| {name} | non-finite at step {row['diverged']} | | | |"
    cells = []
    for column in COLUMNS[config.experiment]:
        mean, deviation = np.mean(row[column]), np.std(row[column])
        quality, digits = column == "high_quality", 4 if column == "kl" else 1
        scale, unit = (100, " %") if quality else (1, "")
        cells.append(f"{scale * mean:.{digits}f} ± {scale * deviation:.{digits}f}{unit}")
    return f"| {' | '.join([name, *cells])} | {row['train_seconds']:.0f} s |"


def table(config: Config, rows: dict[str, Row]) -> str:
    """Format the table in Markdown."""
    titles = [column.replace("_", " ") for column in COLUMNS[config.experiment]]
    head = [f"| regularizer | {' | '.join(titles)} | training |", "|---|---|---|---|---|"]
    one = next((row for row in rows.values() if "diverged" not in row), {})
    quality = f"{100 * one['real_high_quality']:.1f} %" if "real_high_quality" in one else ""
    real = f"| real examples | {one.get('of_modes', 1000)} | {quality} | {one.get('real_kl', 0):.4f} | |"
    lines = [line(config, name, row) for name, row in rows.items()]
    return "\n".join([*head, *lines, real, *PUBLISHED[config.section], ""])


def figures(config: Config, rows: dict[str, Row]) -> list[dict[str, Any]]:
    """The figures of ``grid`` with their bounds."""
    cured, sick = (rows[name] for name in (list(rows)[-1], next(iter(rows))))
    if config.section != "grid" or "diverged" in cured or "diverged" in sick:
        return []
    return [
        figure("modes of preset `default`, minimum over its GANs", min(cured["modes"]), ">=", cured["of_modes"]),
        figure("high quality of preset `default`, mean", float(np.mean(cured["high_quality"])), ">=", 0.96),
        figure("KL of preset `default`, mean", float(np.mean(cured["kl"])), "<=", 0.01),
        figure("modes of the GAN of 2014, mean", float(np.mean(sick["modes"])), "<=", 21.9),
    ]


if __name__ == "__main__":
    cli.guard(lambda: main(cli.read(Config, sys.argv[1:], description=__doc__)))
