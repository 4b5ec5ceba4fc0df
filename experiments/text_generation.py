"""Character-level language models: a Transformer like nanoGPT's, or char-rnn's LSTM.

    python experiments/text_generation.py                       # preset nanogpt_cpu: 1 to 3 minutes on 2 CPU cores
    python experiments/text_generation.py --preset fast         # our best result in five minutes on a CPU
    python experiments/text_generation.py --preset rnn          # two-layer LSTM (Karpathy 2015)
    python experiments/text_generation.py --preset nanogpt --platform gpu    # on a CPU --dtype float32, for hours
    python experiments/text_generation.py sample --prompt "ROMEO:"                    # sample from a finished run
    python experiments/text_generation.py explain --prompt "ROMEO: What is the time?" # plot its attention

The text is eight embedded plays of Shakespeare, or any UTF-8 file (``--text FILE``); the last tenth is for validation.
``nanogpt_cpu`` and ``nanogpt`` follow nanoGPT's documented commands for Shakespeare (Karpathy 2022) in network, batch,
schedule and evaluation. ``rnn`` has char-rnn's network, sequence length and batch size, with Adam and cosine decay
instead of RMSprop; its state is carried from batch to batch. ``fast`` has rotary positions, gated layers and Muon,
tuned on the embedded plays. Expected validation loss on nanoGPT's text, in nats per character: ``nanogpt_cpu`` 1.91,
``fast`` 1.57. nanoGPT keeps the best parameters, we keep the last: ``nanogpt`` ends at 1.70, after 1.47 at step 2,000.
"""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro

from jaxai import experiment, plots, train
from jaxai.config import Finished, resumable
from jaxai.data.text import BYTES, Vocabulary, characters, load_text, split
from jaxai.errors import UserError
from jaxai.nn import LanguageModel, TransformerConfig, apply_with_statistics
from jaxai.nn.decoding import Network, Sampling, complete
from jaxai.run import FinishedRun, Run, load_run
from jaxai.typing import PyTree

NAME = "text_generation"
NANOGPT = train.Adam(beta2=0.99, warmup=100, final_rate=0.1, weight_decay=0.1, decay="matrices", clip=1.0)
SMALL = TransformerConfig(position="learned", max_length=64, bias=False)
LARGE = dataclasses.replace(SMALL, embed_dim=384, num_layers=6, num_heads=6, max_length=256, dropout=0.2)
FAST = TransformerConfig(hidden_dim=256, gated=True, activation="silu", norm="rms", bias=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(train.LanguageModelConfig):
    """Options of this experiment."""

    text: Path | None = resumable(None)
    """A UTF-8 file; by default eight plays of Shakespeare."""
    vocabulary: Literal["characters", "bytes"] = "characters"
    """Kind of tokens; bytes work for any alphabet."""
    transformer: TransformerConfig = SMALL
    optimizer: train.Adam = NANOGPT

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data_dir:
            raise UserError("--data-dir is not used by this experiment: give the file as --text FILE")


PRESETS = {
    "nanogpt_cpu": Config(steps=2000, steps_per_call=10),
    "nanogpt": Config(
        steps=5000, decay_steps=5000, transformer=LARGE, length=256, batch_size=64, dtype="bfloat16", eval_batches=200
    ),
    "fast": Config(
        steps=1200,
        decay_steps=1200,
        transformer=FAST,
        length=128,
        batch_size=16,
        optimizer=dataclasses.replace(NANOGPT, learning_rate=1e-2, warmup=50, final_rate=0.0, muon=True),
        eval_every=600,
        eval_batches=0,
        steps_per_call=10,
    ),
    "rnn": Config(
        steps=8000,
        decay_steps=8000,
        network="recurrent",
        length=50,
        batch_size=50,
        optimizer=train.Adam(learning_rate=2e-3, final_rate=0.05, clip=5.0),
        eval_every=1000,
        eval_batches=0,
        steps_per_call=10,
    ),
    "debug": Config(steps=20, transformer=TransformerConfig(embed_dim=32, num_layers=2), length=32, eval_every=10),
}


def build(config: Config) -> experiment.Task:
    """The training of a language model on the first nine tenths of a text."""
    text = load_text(config.text)
    vocabulary = BYTES if config.vocabulary == "bytes" else characters(text.string)
    training, validation = split(vocabulary.encode(text.string))
    if len(validation) <= config.length:
        count = f"the {len(validation):,} validation tokens"
        raise UserError(f"--length {config.length} does not fit into {count}: give less, or a longer --text")
    network = config.language_model(vocabulary.size)

    def finish(run: Run, result: train.Result) -> dict[str, Any]:
        params, prompt, key = jax.device_get(result.state.params), text.string[:1], train.Keys(config.seed).sampling
        pieces = complete(network, params, vocabulary.encode(prompt), 1000, key, Sampling(), context=config.length)
        run.write_sample("sample.txt", "".join([prompt, *vocabulary.decode_pieces(pieces)]))
        return train.language_model_speed(config, network, result)

    return experiment.Task(
        identity=text.identity(),
        source=text.source,
        batches=partial(config.batches, training),
        batch_size=config.batch_size,
        trainer=train.language_model_trainer(config, network),
        evaluate=train.language_model_evaluation(config, network, training, validation),
        eval_every=config.eval_every,
        finish=finish,
        report=report,
        show=["loss", "validation_loss"],
        steps_per_call=config.steps_per_call,
        vocabulary=vocabulary.to_json() | {"beginning": text.string[: plots.WRITTEN_OUT]},
    )


def report(run: Run, summary: dict[str, Any]) -> None:
    """Print loss, size and speed."""
    loss, rate = summary["validation_loss"], summary["iterations_per_second"]
    print(f"validation loss {loss:.4f} nats a token ({loss / np.log(2):.3f} bits)")
    mfu = f", MFU {summary['mfu']:.1%} of the bfloat16 peak" if summary["mfu"] else ""
    print(f"{summary['parameters']:,} parameters, trained in {summary['train_seconds']} s, {rate} iterations/s{mfu}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompted(Finished):
    """A finished run and the beginning of a text."""

    preset: str = next(iter(PRESETS))
    """Preset of the run, read from runs/text_generation/PRESET unless workdir is given."""
    prompt: str | None = None
    """Beginning of the text; by default that of the training text."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompt == "":
            raise UserError("--prompt is empty: give at least one character")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample(Prompted):
    """Generate text with a finished run."""

    tokens: int = 500
    """Number of tokens to generate."""
    sampling: Annotated[Sampling, tyro.conf.arg(name="")] = Sampling()
    seed: int = 0
    """Seed of the sampling."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least(0, "tokens", "seed")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explain(Prompted):
    """Plot a finished run's attention over a prompt: maps for up to 48 tokens, else entropy and mass for each head."""


def trained(options: Prompted) -> tuple[FinishedRun[Config], Vocabulary, str, Network, PyTree]:
    """Load a finished run: the run, its vocabulary, the beginning of its text, its network and parameters."""
    run = load_run(NAME, Config, options, vocabulary=True)
    vocabulary, beginning = run.decode(lambda saved: (Vocabulary.from_json(saved), str(saved["beginning"])))
    network = run.config.language_model(vocabulary.size)
    return run, vocabulary, beginning, network, run.params(partial(train.init_language_model, network))


def sample(options: Sample) -> None:
    """Print the prompt and its continuation while it is generated."""
    run, vocabulary, beginning, network, params = trained(options)
    prompt, key = options.prompt or beginning[:1], train.Keys(options.seed).sampling
    ids, context = vocabulary.encode(prompt), run.config.length
    pieces = complete(network, params, ids, options.tokens, key, options.sampling, context=context)
    print(prompt, end="", flush=True)
    for piece in vocabulary.decode_pieces(pieces):
        print(piece, end="", flush=True)
    print()


def explain(options: Explain) -> None:
    """Plot the attention of all layers and heads over the prompt."""
    run, vocabulary, beginning, network, params = trained(options)
    if not isinstance(network, LanguageModel):
        raise UserError(f"{run.folder} holds a recurrent network, which has no attention: give another --workdir")
    whole, path = vocabulary.encode(options.prompt or beginning), run.folder / "attention.png"
    ids = whole[: run.config.length]
    statistics = apply_with_statistics(network, params, ids[None])[1]
    names = [repr(vocabulary.decode(ids[i : i + 1]))[1:-1] for i in range(len(ids))]
    plots.save_attention(path, statistics["attention"], names)
    print(f"the first {len(ids)} of {len(whole)} tokens: {path}")


if __name__ == "__main__":
    experiment.run(NAME, PRESETS, build, __doc__, {"sample": (sample, Sample), "explain": (explain, Explain)})
