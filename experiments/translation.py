"""English to German or French: a Transformer with encoder and decoder, from parallel text to BLEU.

    python experiments/translation.py                                       # LibreOffice's interface texts, embedded
    python experiments/translation.py --preset multi30k --data-dir DIR      # Multi30k's raw files: train.en, train.de
    python experiments/translation.py translate --sentence "Open the file."  # with a finished run
    python experiments/translation.py explain --sentence "Open the file."    # with a finished run: its attention

Joint byte pair encoding of both languages (Sennrich et al. 2016), label smoothing, a moving average of the weights,
beam search. Scores are sacrebleu's, with signatures: case-insensitive and, unless the run folds case, also cased.
BLEU of ``multi30k`` on test_2016_flickr: 40.3 in 46 minutes on 2 CPU cores; Wu et al. 2021, arXiv:2105.14462: 41.02.
"""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxai import distributed, experiment, plots, train
from jaxai.config import Finished, Training
from jaxai.data.text import BOS, EOS, PAD, Bpe, bucketed, evaluation_batches, framed, load_pairs, train_bpe
from jaxai.errors import UserError
from jaxai.metrics.text import case_scores
from jaxai.nn import EncoderDecoder, TransformerConfig, init_encoder_decoder
from jaxai.nn.decoding import Translator
from jaxai.run import Run, load_run

NAME = "translation"
TINY = TransformerConfig(
    embed_dim=128, num_layers=4, num_heads=4, hidden_dim=256, gated=True, activation="silu", norm="rms", dropout=0.3
)
DEBUG = TransformerConfig(embed_dim=32, num_layers=1, num_heads=2, hidden_dim=32)
MUON = train.Adam(learning_rate=4e-3, beta2=0.98, warmup=300, final_rate=0.0, clip=1.0, muon=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Training):
    """Options of this experiment."""

    source: str = "en"
    """Language to translate from, the suffix of its files; ``target`` likewise."""
    target: str = "de"
    test: str = "test"
    """Split for the final scores."""
    vocabulary_size: int = 4000
    """Tokens of the byte pair encoding, joint for both languages."""
    lowercase: bool = False
    """Convert all text to lower case."""
    transformer: TransformerConfig = TINY
    """Options of the encoder and of the decoder."""
    tokens_per_batch: int = 4096
    """Largest number of tokens on either side of a batch, padding included."""
    shapes: int = 8
    """Number of batch shapes: more mean less padding, but each compiles another program."""
    label_smoothing: float = 0.1
    """Share of the target probability that is spread evenly over all tokens (arXiv:1512.00567)."""
    optimizer: train.Adam = MUON
    decay_steps: int = 1500
    """Steps over which the learning rate schedule runs."""
    ema_half_life: float = 40_000
    """Half-life, in sentence pairs, of the moving average of the weights."""
    beams: int = 5
    length_penalty: float = 1.0
    """Beam search ranks translations by log-probability divided by length to this power."""
    eval_every: int = 250

    def __post_init__(self) -> None:
        super().__post_init__()
        names = "vocabulary_size", "tokens_per_batch", "decay_steps", "ema_half_life", "beams", "shapes", "eval_every"
        self.check_at_least(1, *names)
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"--label-smoothing must lie in [0, 1), got {self.label_smoothing}")
        if not np.isfinite(self.length_penalty):
            raise UserError(f"--length-penalty must be finite, got {self.length_penalty}")
        if self.source == self.target:
            raise UserError(f"--source and --target are both {self.source}: choose two languages")
        if self.transformer.position == "learned":
            raise UserError("--transformer.position learned limits the length of sentences: leave it rotary")


PRESETS = {
    "default": Config(steps=1500, transformer=dataclasses.replace(TINY, num_layers=2)),
    "multi30k": Config(
        steps=6000,
        decay_steps=6000,
        test="test_2016_flickr",
        lowercase=True,
        transformer=dataclasses.replace(TINY, dropout=0.2),
        optimizer=dataclasses.replace(MUON, learning_rate=3e-3),
        eval_every=500,
    ),
    "debug": Config(
        steps=20, vocabulary_size=400, transformer=DEBUG, tokens_per_batch=1024, shapes=2, beams=2, eval_every=10
    ),
}


def build(config: Config) -> experiment.Task:
    """The training on sentence pairs, evaluated by the loss, and by BLEU at the end."""
    if config.preset == "multi30k" and not config.data_dir:
        raise UserError("--preset multi30k needs --data-dir, a folder with train.en, train.de, val.en and so on")
    names = {"train": "train", "val": "val", "test": config.test}
    splits = {key: load_pairs(config.data_dir, name, config.source, config.target) for key, name in names.items()}
    pairs, val, test = splits.values()
    bpe = train_bpe(pairs.sources + pairs.targets, config.vocabulary_size, lowercase=config.lowercase)
    network = EncoderDecoder(bpe.size, config.transformer)
    sides = bpe.encode(pairs.sources), framed(bpe.encode(pairs.targets))
    held_out = evaluation_batches(bpe.encode(val.sources), framed(bpe.encode(val.targets)), batch_size=64)

    def batches(**rows: int) -> train.Batches:
        how = {"seed": config.seed, "shapes": config.shapes, "multiple": distributed.data_axis_size()}
        return bucketed(*sides, config.tokens_per_batch, **how, **rows)

    def finish(run: Run, result: train.Result) -> dict[str, Any]:
        params = jax.device_get(result.state.ema_params)
        translator = Translator(network, params, bpe, BOS, EOS, config.beams, config.length_penalty)
        found = {key: translator(splits[key].sources) for key in ("val", "test")}
        run.write_sample("translations.txt", test.beside(found["test"]))
        draw_attention(translator, min(test.sources, key=lambda sentence: abs(len(sentence) - 50)), run.folder)
        return {key: case_scores(said, splits[key].targets, lowercase=config.lowercase) for key, said in found.items()}

    return experiment.Task(
        identity=pairs.identity() | {"val": val.fingerprint, "test": test.fingerprint},
        source=pairs.source,
        batches=batches,
        trainer=train.Supervised(
            init_params=partial(init_encoder_decoder, network),
            loss_fn=partial(train.translation_loss, network, config.label_smoothing, PAD),
            tx=train.optimizer(config.optimizer, config.decay_steps),
            ema_half_life=config.ema_half_life,
        ),
        evaluate=train.translation_evaluation(network, PAD, held_out),
        eval_every=config.eval_every,
        finish=finish,
        report=report,
        show=["loss", "validation_loss"],
        steps_per_call=1,  # batches differ in shape
        vocabulary=bpe.to_json(),
    )


def draw_attention(translator: Translator[Bpe], source: str, folder: Path) -> str:
    """Plot each decoder head's attention to the source's first 48 tokens, and return the translation."""
    (target,) = translator([source])
    *sides, attention = translator.attention(source, target, most=plots.WRITTEN_OUT)
    names = [[translator.tokenizer.tokens[i] for i in side] for side in sides]
    plots.save_attention_maps(folder / "attention.png", plots.by_head(attention.weights), *names)
    return target


def report(run: Run, summary: dict[str, Any]) -> None:
    """Print scores, loss, size and training time."""
    for case, found in summary["test"].items():
        print(f"test, {case}: BLEU {found['bleu']:.2f} ({found['bleu_signature']})")
        print(f"test, {case}: chrF {found['chrf']:.2f} ({found['chrf_signature']})")
    print(f"validation loss {summary['validation_loss']:.4f} nats a token")
    print(f"{summary['parameters']:,} parameters, trained in {summary['train_seconds']} s")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Translate(Finished):
    """Translate a sentence with a finished run."""

    sentence: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explain(Translate):
    """Plot a finished run's cross-attention while it translates: attention.png in its folder."""


def trained(options: Translate) -> tuple[Path, Translator[Bpe]]:
    """Load a finished run's folder and translator. ValueError for an empty sentence or unknown characters in it."""
    run = load_run(NAME, Config, options, vocabulary=True)
    config, bpe = run.config, run.decode(Bpe.from_json)
    network = EncoderDecoder(bpe.size, config.transformer)
    params = run.params(partial(init_encoder_decoder, network))
    if not len(bpe.encode([options.sentence])[0]):
        raise UserError("--sentence is empty: give at least one word")
    if unknown := bpe.unknown(options.sentence):
        raise UserError(f"--sentence has characters that never occur in the run's training text: {' '.join(unknown)}")
    return run.folder, Translator(network, params, bpe, BOS, EOS, config.beams, config.length_penalty)


def translate(options: Translate) -> None:
    """Print the translation."""
    print(*trained(options)[1]([options.sentence]))


def explain(options: Explain) -> None:
    """Plot the cross-attention of all layers and heads between the sentence and its translation."""
    folder, translator = trained(options)
    print(draw_attention(translator, options.sentence, folder), folder / "attention.png", sep="\n")


if __name__ == "__main__":
    experiment.run(NAME, PRESETS, build, __doc__, {"translate": (translate, Translate), "explain": (explain, Explain)})
