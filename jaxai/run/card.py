"""Model card of a run: README.md in the format of the Hugging Face hub."""

from collections.abc import Mapping
from typing import Any

from jaxai.run.folder import Run


def write_card(run: Run, summary: Mapping[str, Any]) -> None:
    """Write README.md: a description of model.safetensors, its training data, and the figures of the summary."""
    experiment, data = run.identity["experiment"], run.identity["data"]
    figures = {name: value for name, value in summary.items() if isinstance(value, (int, float, str))}
    shown = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in figures.items()}
    rows = "\n".join(f"| {name} | {value} |" for name, value in shown.items())
    fingerprint = f" (fingerprint {data['fingerprint']})" if "fingerprint" in data else ""
    (run.folder / "README.md").write_text(
        f"""---
library_name: jaxai
tags: [{experiment}]
---

# {experiment}, preset {run.identity["preset"]}

`model.safetensors` holds the parameters that `python experiments/{experiment}.py` trained on
{data["name"]}{fingerprint}: float32 arrays by their path in the Flax network, which `config.json` describes.

| figure | value |
|---|---|
{rows}
""",
        encoding="utf-8",
    )
