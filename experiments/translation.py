"""English to German or French: a Transformer with encoder and decoder, from parallel text to BLEU.

    python experiments/translation.py                                       # LibreOffice's interface texts, embedded
    python experiments/translation.py --preset multi30k --data-dir DIR      # Multi30k's raw files: train.en, train.de
    python experiments/translation.py translate --sentence "Open the file."  # by a finished run
    python experiments/translation.py explain --sentence "Open the file."    # by a finished run: where it looks

Byte pairs of both languages in one vocabulary (Sennrich et al. 2016), batches of sentences of one length, label
smoothing, an average of the weights over the last steps, beam search. ``multi30k`` has the size of Transformer-Tiny (Wu
et al. 2021, arXiv:2105.14462: 41.02 on test_2016_flickr, lower-cased). Scores are sacrebleu's, on plain text, with
their signatures: lower-cased as in the literature and, where the run is not, cased too. Expected of ``multi30k``,
English to German: BLEU 40.3 after 46 minutes on 2 CPU cores.
The run's folder ends with summary.json, model.safetensors, vocabulary.json, samples/translations.txt, attention.png.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxai import experiment, plots, train
from jaxai.config import Finished, Training
from jaxai.data.text import BOS, EOS, PAD, Bpe, bucketed, evaluation_batches, framed, load_pairs, train_bpe
from jaxai.distributed.mesh import data_axis_size
from jaxai.errors import UserError
from jaxai.metrics.text import translation_scores
from jaxai.nn import EncoderDecoder, TransformerConfig, apply_with_statistics
from jaxai.nn.decoding import Translator
from jaxai.run import Run, load_run
from jaxai.typing import Array, PyTree

NAME = "translation"
ROWS = 64  # sentence pairs of a validation batch
DRAWN = 50  # characters of the test sentence whose attention is drawn
SMALL = TransformerConfig(
    embed_dim=128, num_layers=4, num_heads=4, hidden_dim=256, gated=True, activation="silu", norm="rms", dropout=0.3
)
MUON = train.Adam(learning_rate=4e-3, beta2=0.98, warmup=300, final_rate=0.0, clip=1.0, muon=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Training):
    """Options of this experiment."""

    source: str = "en"
    """The language to translate from: the ending of its files."""
    target: str = "de"
    test: str = "test"
    """The files that the final scores are from."""
    vocabulary_size: int = 4000
    """Tokens of the byte pair encoding, both languages together."""
    lowercase: bool = False
    """Fold the case of all text."""
    transformer: TransformerConfig = SMALL
    """Of encoder and decoder each."""
    tokens_per_batch: int = 4096
    """Tokens of either side of a batch, padding included."""
    shapes: int = 8
    """Shapes of batches: more leave less to padding, but each is a program to compile."""
    label_smoothing: float = 0.1
    """The share of a target's probability that goes to all tokens alike (arXiv:1512.00567)."""
    optimizer: train.Adam = MUON
    decay_steps: int = 1500
    """Steps over which the learning rate takes its course."""
    ema_half_life: float = 40_000
    """Of the average of the weights, in sentence pairs."""
    beams: int = 5
    length_penalty: float = 1.0
    """A translation's score is its log-probability over its length to this power."""
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
            raise UserError("--transformer.position learned has an end, sentences have none: leave it rotary")


PRESETS = {
    "default": Config(steps=1500, transformer=dataclasses.replace(SMALL, num_layers=2)),
    "multi30k": Config(
        steps=6000,
        decay_steps=6000,
        test="test_2016_flickr",
        lowercase=True,
        transformer=dataclasses.replace(SMALL, dropout=0.2),
        optimizer=dataclasses.replace(MUON, learning_rate=3e-3),
        eval_every=500,
    ),
    "debug": Config(
        steps=20,
        vocabulary_size=400,
        transformer=TransformerConfig(embed_dim=32, num_layers=1, num_heads=2, hidden_dim=32),
        tokens_per_batch=1024,
        shapes=2,
        beams=2,
        eval_every=10,
    ),
}


def build(config: Config) -> experiment.Task:
    """The training on sentence pairs, evaluated by the loss and in the end by BLEU."""
    if config.preset == "multi30k" and not config.data_dir:
        raise UserError("--preset multi30k needs --data-dir, a folder with train.en, train.de, val.en and so on")
    names = {"train": "train", "val": "val", "test": config.test}
    splits = {key: load_pairs(config.data_dir, name, config.source, config.target) for key, name in names.items()}
    pairs, val, test = splits.values()
    bpe = train_bpe(pairs.sources + pairs.targets, config.vocabulary_size, lowercase=config.lowercase)
    network = EncoderDecoder(bpe.size, config.transformer)
    sides = bpe.encode(pairs.sources), framed(bpe.encode(pairs.targets))
    held_out = evaluation_batches(bpe.encode(val.sources), framed(bpe.encode(val.targets)), ROWS)
    summed = jax.jit(partial(summed_loss, network))

    def batches(**rows: int) -> train.Batches:
        how = {"seed": config.seed, "shapes": config.shapes, "multiple": data_axis_size()}
        return bucketed(*sides, config.tokens_per_batch, **how, **rows)

    def evaluate(run: Run, step: int, state: train.TrainState) -> dict[str, float]:
        sums = np.array([jax.device_get(summed(state.ema_params, batch)) for batch in held_out])
        return {"validation_loss": float(sums[:, 0].sum() / sums[:, 1].sum())}

    def finish(run: Run, result: train.Result) -> dict[str, Any]:
        translator = translator_of(config, network, jax.device_get(result.state.ema_params))
        found = {key: translate_all(translator, bpe, splits[key].sources) for key in ("val", "test")}
        rows = zip(test.sources, test.targets, found["test"], strict=True)
        run.write_sample(
            "translations.txt", "".join(f"{source}\n= {target}\n> {said}\n\n" for source, target, said in rows)
        )
        example = min(test.sources, key=lambda sentence: abs(len(sentence) - DRAWN))
        draw_attention(translator, bpe, example, run.folder / "attention.png")
        return {key: scores(splits[key].targets, said, config.lowercase) for key, said in found.items()}

    return experiment.Task(
        identity=pairs.identity() | {"val": val.fingerprint, "test": test.fingerprint},
        source=pairs.source,
        batches=batches,
        trainer=train.Supervised(
            init_params=partial(init_params, network),
            loss_fn=partial(loss_fn, network, config.label_smoothing),
            tx=train.optimizer(config.optimizer, config.decay_steps),
            ema_half_life=config.ema_half_life,
        ),
        evaluate=evaluate,
        eval_every=config.eval_every,
        finish=finish,
        report=report,
        show=["loss", "validation_loss"],
        steps_per_call=1,  # batches of several shapes
        vocabulary=bpe.to_json(),
    )


def init_params(network: EncoderDecoder, key: Array) -> PyTree:
    """The network's parameters before training."""
    token = jnp.zeros((1, 1), jnp.int32)
    return network.init(key, token, token, jnp.ones(1, jnp.int32))["params"]


def loss_fn(
    network: EncoderDecoder, smoothing: float, params: PyTree, batch: dict[str, Array], key: Array
) -> tuple[Array, dict[str, Array]]:
    """The smoothed cross-entropy of the target's next tokens, in nats."""
    logits = next_logits(network, params, batch, train=True, rngs={"dropout": key})
    return train.smoothed_cross_entropy(logits, batch["target"][:, 1:], smoothing, padding=PAD)


def summed_loss(network: EncoderDecoder, params: PyTree, batch: dict[str, Array]) -> tuple[Array, Array]:
    """The sum of -log p over a batch's target tokens, and how many these are."""
    losses = train.token_losses(next_logits(network, params, batch), batch["target"][:, 1:])
    weights = (batch["target"][:, 1:] != PAD).astype(jnp.float32)
    return (weights * losses).sum(), weights.sum()


def next_logits(network: EncoderDecoder, params: PyTree, batch: dict[str, Array], **how: Any) -> Array:
    """The logits [B, T, V] of the target's tokens after the first."""
    source, target = batch["source"], batch["target"]
    logits, _ = network.apply({"params": params}, source, target[:, :-1], (source != PAD).sum(-1), **how)
    return cast(Array, logits)


def translator_of(config: Config, network: EncoderDecoder, params: PyTree) -> Translator:
    """Beam search with the options of a config."""
    return Translator(network, params, BOS, EOS, config.beams, config.length_penalty)


def translate_all(translator: Translator, bpe: Bpe, sentences: Sequence[str]) -> list[str]:
    """The translations of sentences."""
    return [bpe.decode(tokens) for tokens in translator(bpe.encode(sentences))]


def scores(references: Sequence[str], hypotheses: Sequence[str], lowercase: bool) -> dict[str, Any]:
    """BLEU and chrF without regard to case and, where the texts have it, with."""
    found: dict[str, Any] = {"lowercase": translation_scores(hypotheses, references, lowercase=True)}
    return found if lowercase else found | {"cased": translation_scores(hypotheses, references)}


def draw_attention(translator: Translator, bpe: Bpe, source: str, path: Path) -> str:
    """Draw each decoder head's attention to the source's first 48 tokens, and return the translation that it reads."""
    (target,) = translate_all(translator, bpe, [source])
    tokens, written = (
        bpe.encode([source])[0][: plots.WRITTEN_OUT],
        framed(bpe.encode([target]))[0][: plots.WRITTEN_OUT + 1],
    )
    _, statistics = apply_with_statistics(translator.network, translator.params, tokens[None], written[None, :-1])
    names = [[bpe.tokens[i] for i in side] for side in (written[1:], tokens)]
    plots.save_attention_maps(path, plots.by_head(statistics["cross_attention"].weights), *names)
    return target


def report(run: Run, summary: dict[str, Any]) -> None:
    """Print scores, loss and size."""
    for case, found in summary["test"].items():
        print(f"test, {case}: BLEU {found['bleu']:.2f} ({found['bleu_signature']})")
        print(f"test, {case}: chrF {found['chrf']:.2f} ({found['chrf_signature']})")
    print(f"validation loss {summary['validation_loss']:.4f} nats a token")
    print(f"{summary['parameters']:,} parameters, trained in {summary['train_seconds']} s")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Translate(Finished):
    """Let a finished run translate."""

    sentence: str
    """What to translate."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sentence.strip():
            raise UserError("--sentence is empty: give at least one word")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explain(Translate):
    """Draw which words a finished run looks at while it translates: attention.png in its folder."""


def trained(options: Translate) -> tuple[Path, Bpe, Translator]:
    """A finished run's folder, encoding and translator. ValueError for a sentence that has none of its tokens."""
    run = load_run(NAME, Config, options, vocabulary=True)
    bpe = run.decode(Bpe.from_json)
    network = EncoderDecoder(bpe.size, run.config.transformer)
    translator = translator_of(run.config, network, run.params(partial(init_params, network)))
    if not len(bpe.encode([options.sentence])[0]):
        raise UserError("--sentence has no words: give at least one")
    if unknown := bpe.unknown(options.sentence):
        raise UserError(f"--sentence has characters that the run's texts never have: {' '.join(unknown)}")
    return run.folder, bpe, translator


def translate(options: Translate) -> None:
    """Print the translation."""
    _, bpe, translator = trained(options)
    print(*translate_all(translator, bpe, [options.sentence]))


def explain(options: Explain) -> None:
    """Draw the cross-attention of all layers and heads over the sentence and its translation."""
    folder, bpe, translator = trained(options)
    path = folder / "attention.png"
    print(draw_attention(translator, bpe, options.sentence, path), path, sep="\n")


if __name__ == "__main__":
    commands = {"translate": (translate, Translate), "explain": (explain, Explain)}
    experiment.run(NAME, PRESETS, build, __doc__, commands)
