"""Every remedy for mode collapse, alone and together, on 25 Gaussians in the plane: a table with error bars.

    python benchmarks/mode_collapse.py                # the grid, five GANs for each row, an hour or two on a CPU
    python benchmarks/mode_collapse.py --mixture ring

A row is one run of ``experiments/gan_toy2d.py --preset collapse`` with the row's options, all of one size and length;
the last row is its preset ``default``. It writes table.md, mode_collapse.json and the runs to --out; an interrupted
benchmark goes on where it was. PacGAN's rows on the grid (Lin et al. 2018, arXiv 1712.04086): GAN 17.3 modes, 94.8 % of
high quality, KL 0.70; PacGAN4 24.8, 93.6 %, 0.04.
"""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
from timing import figure, write

from jaxai import command

SCRIPT = Path(__file__).parent.parent / "experiments" / "gan_toy2d.py"
R1_R2 = ("--penalty", "r1_r2", "--penalty-weight", "0.1", "--final-penalty-weight", "0.001")
ROWS: dict[str, tuple[str, ...]] = {
    "the GAN of 2014, non-saturating": (),
    "saturating": ("--loss", "saturating"),
    "least squares": ("--loss", "least_squares"),
    "hinge": ("--loss", "hinge"),
    "Wasserstein, gradient penalty": ("--loss", "wasserstein", "--penalty", "wgan_gp", *("--penalty-weight", "10")),
    "relativistic, paired": ("--loss", "relativistic"),
    "relativistic, average": ("--loss", "relativistic_average"),
    "R1": ("--penalty", "r1", *R1_R2[2:]),
    "R1 and R2": R1_R2,
    "R1 and R2 by differences": ("--penalty", "approximate_r1_r2", *R1_R2[2:]),
    "DRAGAN": ("--penalty", "dragan"),
    "consistency": ("--penalty", "consistency"),
    "instance noise": ("--noise", "1"),
    "packing, 2": ("--packing", "2"),
    "packing, 4": ("--packing", "4"),
    "minibatch deviation": ("--deviation",),
    "spectral normalisation": ("--spectral",),
    "unrolling, 5": ("--unroll", "5"),
    "average of the generator": ("--average-half-life", "50000"),
    "two time scales": ("--generator-optimizer.learning-rate", "2.5e-4"),
    "larger generator": ("--generator", "256", "256", "256"),
    "larger batch": ("--batch-size", "512"),
    "relativistic, R1 and R2": ("--loss", "relativistic", *R1_R2),
    "relativistic, R1 and R2, average, falling rates": ("--preset", "default"),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    mixture: Literal["grid", "ring"] = "grid"
    steps: int = 5000
    """Of every GAN."""
    gans: int = 5
    """For each row."""
    out: Path = Path("runs/benchmarks/mode_collapse")

    def __post_init__(self) -> None:
        if min(self.steps, self.gans) < 1:
            raise ValueError(f"--steps and --gans must be at least 1, got {self.steps} and {self.gans}")


def main(config: Config) -> None:
    """Run all rows, print the table, write it."""
    rows = {}
    for name, options in ROWS.items():
        rows[name] = run(config, name, options)
        print(line(name, rows[name]), flush=True)
    folder = config.out / config.mixture
    (folder / "table.md").write_text(table(rows), encoding="utf-8")
    cured, sick = (rows[name] for name in (list(ROWS)[-1], next(iter(ROWS))))
    figures = [
        figure("modes of the cure, least of its GANs", min(cured["modes"]), ">=", cured["of_modes"]),
        figure("its share of high quality, mean", float(np.mean(cured["high_quality"])), ">=", 0.96),
        figure("its KL, mean", float(np.mean(cured["kl"])), "<=", 0.01),
        figure("modes of the GAN of 2014, mean", float(np.mean(sick["modes"])), "<=", 21.9),
    ]
    write(folder / "mode_collapse.json", {"rows": rows, "figures": figures})


def run(config: Config, name: str, options: tuple[str, ...]) -> dict[str, Any]:
    """The summary of a row's run."""
    folder = config.out / config.mixture / "".join(c if c.isalnum() else "_" for c in name)
    preset = () if "--preset" in options else ("--preset", "collapse")
    sizes = "--mixture", config.mixture, "--steps", config.steps, "--horizon", config.steps, "--gans", config.gans
    words = [sys.executable, SCRIPT, *preset, *options, *sizes, "--workdir", folder, "--platform", "cpu"]
    job = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    if job.returncode:
        raise ValueError(f"{name}: {(job.stderr.strip().splitlines() or ['no message'])[-1]}")
    return json.loads((folder / "summary.json").read_text())


def line(name: str, row: dict[str, Any]) -> str:
    """A row in Markdown."""
    modes, quality, kl = (np.array(row[key]) for key in ("modes", "high_quality", "kl"))
    return (
        f"| {name} | {modes.mean():.1f} ± {modes.std():.1f} | {100 * quality.mean():.1f} ± {100 * quality.std():.1f} % "
        f"| {kl.mean():.4f} ± {kl.std():.4f} | {row['train_seconds']:.0f} s |"
    )


def table(rows: dict[str, dict[str, Any]]) -> str:
    """In Markdown."""
    head = ["| remedy | modes | high quality | KL | training |", "|---|---|---|---|---|"]
    one = next(iter(rows.values()))
    real = f"| real points | {one['of_modes']} | {100 * one['real_high_quality']:.1f} % | {one['real_kl']:.4f} | |"
    return "\n".join([*head, *(line(name, row) for name, row in rows.items()), real, ""])


if __name__ == "__main__":
    command.guard(lambda: main(command.read(Config, sys.argv[1:], description=__doc__)))
