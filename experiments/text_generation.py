"""Text that writes itself, character by character: a Transformer as small as nanoGPT's.

    python experiments/text_generation.py                       # preset nanogpt_cpu: minutes on a CPU
    python experiments/text_generation.py --preset nanogpt      # for a GPU or, for hours, a CPU
    python experiments/text_generation.py sample --prompt "ROMEO:"                    # by a finished run
    python experiments/text_generation.py explain --prompt "ROMEO: What is the time?" # what it looks at

The text is eight plays of Shakespeare that the package carries, or any UTF-8 file: ``--text FILE``. The first nine
tenths are trained on, the rest validates. ``nanogpt_cpu`` and ``nanogpt`` are network, batch, schedule and evaluation
of nanoGPT's documented commands for Shakespeare (Karpathy 2022). Expected of ``nanogpt_cpu`` on the text that nanoGPT
takes: a validation loss of 1.89 nats a character, in 80 s on 2 CPU cores.
The run's folder ends with summary.json, model.safetensors, vocabulary.json and samples/sample.txt.
"""

import codecs
import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from jaxai import cli, pictures
from jaxai.data.text import BYTES, Vocabulary, characters, load_text, ordered, split, windows
from jaxai.nn.generation import generate
from jaxai.nn.transformer import LanguageModel, Shape, init_cache
from jaxai.ops.sampling import Sampling
from jaxai.train.loop import Every, fit
from jaxai.train.optim import Adam, optimizer
from jaxai.train.run import finished_folder, open_run, read_config, write_json
from jaxai.train.sharding import make_mesh, processes
from jaxai.train.state import TrainState
from jaxai.train.supervised import init_state, train_step
from jaxai.train.weights import fill, load_weights, save_weights
from jaxai.typing import Array, PyTree

NAME = "text_generation"
FILES = ("vocabulary.json", "model.safetensors")  # of a finished run
WRITTEN_OUT = 48  # tokens whose attention is drawn as maps
NANOGPT = Adam(beta2=0.99, warmup=100, final_rate=0.1, weight_decay=0.1, decay="matrices", clip=1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(cli.Common):
    """Options of this experiment."""

    text: Path | None = None
    """A UTF-8 file; without it eight plays of Shakespeare."""
    vocabulary: Literal["characters", "bytes"] = "characters"
    """What the text is made of; bytes for any alphabet."""
    shape: Shape = Shape(position="learned", max_length=64, bias=False)
    """The Transformer's."""
    length: int = 64
    """Tokens of a training window, T."""
    batch_size: int = 12
    optimizer: Adam = NANOGPT
    horizon: int = 2000
    """Steps over which the learning rate takes its course."""
    eval_every: int = 250
    eval_batches: int = 20
    """Random batches that estimate the loss, as in nanoGPT; 0: all of the validation text."""
    steps_per_call: int = 1
    """Steps that the device takes without the host in between."""
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least(2, "length")
        self.check_at_least(1, "batch_size", "horizon", "eval_every", "steps_per_call", "checkpoint_every")
        self.check_at_least(0, "eval_batches")
        if self.shape.position == "learned" and self.length > self.shape.max_length:
            raise ValueError(f"--length {self.length} needs --shape.max-length of at least that")


PRESETS = {
    "nanogpt_cpu": Config(steps=2000, steps_per_call=10),
    "nanogpt": Config(
        steps=5000,
        shape=Shape(width=384, layers=6, heads=6, position="learned", max_length=256, bias=False, dropout=0.2),
        length=256,
        batch_size=64,
        horizon=5000,
        eval_batches=200,
        checkpoint_every=50,
    ),
    "debug": Config(steps=20, shape=Shape(width=32, layers=2), length=32, eval_every=10, checkpoint_every=10),
}


def main(config: Config) -> None:
    """Load, train, validate, write."""
    text = load_text(config.text)
    vocabulary = BYTES if config.vocabulary == "bytes" else characters(text.string)
    training, validation = split(vocabulary.encode(text.string))
    if len(validation) <= config.length:
        count = f"the {len(validation):,} tokens that validate"
        raise ValueError(f"--length {config.length} does not fit into {count}: give less, or a longer --text")
    network = LanguageModel(vocabulary.size, config.shape)
    batches = windows(training, config.batch_size, config.length, seed=config.seed, **processes())
    mesh = make_mesh(config.devices, batch_size=config.batch_size)
    run = open_run(NAME, config, text.identity())
    if summary := run.finished(config.steps):
        report(summary)
        return
    write_json(run.folder / "vocabulary.json", vocabulary.to_json())
    tx = optimizer(config.optimizer, config.horizon)

    def init() -> TrainState:
        key_params, key = jax.random.split(jax.random.key(config.seed))
        params = network.init(key_params, jnp.zeros((1, 1), jnp.int32))["params"]
        return init_state(params, tx, key)

    evaluate = jax.jit(partial(total_loss, network))
    validate = partial(losses, evaluate, config, training, validation)
    result = fit(
        partial(train_step, loss_fn=partial(loss_fn, network), tx=tx),
        init,
        batches,
        run=run,
        steps=config.steps,
        checkpoint_every=config.checkpoint_every,
        every=[Every(config.eval_every, validate)],
        show=["loss", "validation_loss"],
        mesh=mesh,
        shard_parameters=config.shard_parameters,
        tensorboard=config.tensorboard,
        steps_per_call=config.steps_per_call,
    )
    params = jax.device_get(result.state.params)
    save_weights(run.folder / "model.safetensors", params)
    prompt, key = text.string[:1], jax.random.key(config.seed)
    pieces = write(network, params, config.length, vocabulary.encode(prompt), 1000, key, Sampling())
    run.samples.mkdir(exist_ok=True)
    (run.samples / "sample.txt").write_text("".join([prompt, *decoded(vocabulary, pieces)]), encoding="utf-8")
    summary = {
        "steps": int(result.state.step),
        "data": text.source,
        **validate(int(result.state.step), result.state),
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "compile_seconds": round(result.compile_seconds, 1),
        "train_seconds": round(result.train_seconds, 1),
    }
    run.write_summary(summary)
    report(summary)


def loss_fn(network: LanguageModel, params: PyTree, batch: dict[str, Array], key: Array) -> tuple[Array, dict]:
    """Mean cross-entropy of the next tokens, in nats."""
    logits, _ = network.apply({"params": params}, batch["input"], train=True, rngs={"dropout": key})
    return next_token_losses(cast(Array, logits), batch["target"]).mean(), {}


def next_token_losses(logits: Array, targets: Array) -> Array:
    """-log softmax(logits)[target], [B, T]."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets)


def total_loss(network: LanguageModel, params: PyTree, batch: dict[str, Array]) -> tuple[Array, Array]:
    """The weighted sum of the losses of a batch, and of the weights."""
    logits, _ = network.apply({"params": params}, batch["input"])
    weight = batch["weight"]
    return (weight * next_token_losses(cast(Array, logits), batch["target"])).sum(), weight.sum()


def losses(
    evaluate: Callable[[PyTree, dict[str, np.ndarray]], tuple[Array, Array]],
    config: Config,
    training: np.ndarray,
    validation: np.ndarray,
    done: int,
    state: TrainState,
) -> dict[str, float]:
    """``validation_loss`` in nats a token, and where random batches estimate it ``training_loss`` too."""

    def mean(batches: Iterable[dict[str, np.ndarray]]) -> float:
        sums = np.array([jax.device_get(evaluate(state.params, batch)) for batch in batches])
        return float(sums[:, 0].sum() / sums[:, 1].sum())

    if not config.eval_batches:
        return {"validation_loss": mean(ordered(validation, config.batch_size, config.length))}
    estimates = {}
    for name, ids in (("training_loss", training), ("validation_loss", validation)):
        batches = windows(ids, config.batch_size, config.length, seed=config.seed + 1)
        batches.set_state({"next_index": done})
        weight = {"weight": np.ones((config.batch_size, config.length), np.float32)}
        estimates[name] = mean(next(batches) | weight for _ in range(config.eval_batches))
    return estimates


def report(summary: dict[str, Any]) -> None:
    """Tell a person what came out."""
    loss = summary["validation_loss"]
    print(f"validation loss {loss:.4f} nats a token ({loss / np.log(2):.3f} bits)")
    print(f"{summary['parameters']:,} parameters, trained in {summary['train_seconds']} s")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompted(cli.Finished):
    """A finished run and the beginning of a text."""

    preset: str = next(iter(PRESETS))
    """Whose run: that in runs/text_generation/PRESET, unless there is a workdir."""
    prompt: str = "\n"
    """What the text begins with."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.prompt:
            raise ValueError("--prompt is empty: give at least one character")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample(Prompted):
    """Let a finished run write."""

    tokens: int = 500
    """How many to write."""
    sampling: Annotated[Sampling, tyro.conf.arg(name="")] = Sampling()
    seed: int = 0
    """Of the draws."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least(0, "tokens", "seed")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explain(Prompted):
    """Draw what a finished run looks at in a text: attention.png in its folder."""

    prompt: str = "ROMEO:\nWhat is the time?"
    """The text: up to 48 tokens as maps of all heads, a longer one as entropies and masses."""


def sample(options: Sample) -> None:
    """Print the prompt and what the network writes after it, as it comes."""
    network, params, vocabulary, context = finished_run(finished_folder(NAME, options, FILES))
    prompt = vocabulary.encode(options.prompt)
    print(options.prompt, end="", flush=True)
    key = jax.random.key(options.seed)
    for piece in decoded(vocabulary, write(network, params, context, prompt, options.tokens, key, options.sampling)):
        print(piece, end="", flush=True)
    print()


def explain(options: Explain) -> None:
    """Draw the attention of all layers and heads over the prompt."""
    folder = finished_folder(NAME, options, FILES)
    network, params, vocabulary, context = finished_run(folder)
    whole = vocabulary.encode(options.prompt)
    ids = whole[:context]
    out: Any = network.apply({"params": params}, jnp.asarray(ids)[None], statistics=True)[1]
    blocks = out["statistics"]
    blocks = jax.tree.map(lambda *x: np.stack(x), *blocks) if isinstance(blocks, tuple) else blocks
    found, path = blocks["attention"], folder / "attention.png"
    if len(ids) <= WRITTEN_OUT:
        names = [repr(vocabulary.decode(ids[i : i + 1]))[1:-1] for i in range(len(ids))]
        pictures.save_attention_maps(path, np.swapaxes(found.weights[:, 0], 1, 2), names, names)
    else:
        pictures.save_attention_statistics(path, found.entropy[:, 0], found.mass[:, 0])
    print(f"the first {len(ids)} of {len(whole)} tokens: {path}")


def finished_run(folder: Path) -> tuple[LanguageModel, PyTree, Vocabulary, int]:
    """Network, parameters, vocabulary and context of a run."""
    config = read_config(folder)
    try:
        vocabulary = Vocabulary.from_json(json.loads((folder / "vocabulary.json").read_text()))
        network, length = LanguageModel(vocabulary.size, Shape(**config["shape"])), config["length"]
    except (ValueError, KeyError, TypeError) as error:
        message = f"{folder} holds no run of this experiment, or a damaged vocabulary.json ({error}): train one first"
        raise ValueError(message) from error
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    weights = folder / "model.safetensors"
    return network, fill(shapes, load_weights(weights), weights), vocabulary, length


def write(
    network: LanguageModel,
    params: PyTree,
    context: int,
    prompt: np.ndarray,
    count: int,
    key: Array,
    sampling: Sampling,
) -> Iterator[np.ndarray]:
    """The ids after a prompt [T], a few at a time; the network sees ``context`` of them at most."""
    empty = init_cache(network.shape, 1, context)
    pieces = generate(partial(advance, network), params, empty, prompt[None], count, key, sampling, context=context)
    return (piece[0] for piece in pieces)


def advance(network: LanguageModel, params: PyTree, cache: PyTree, tokens: Array) -> tuple[Array, PyTree]:
    """The logits after tokens that follow those in the cache, and the cache with them."""
    logits, out = network.apply({"params": params}, tokens, cache=cache)
    return cast(Array, logits)[:, -1], out["cache"]


def decoded(vocabulary: Vocabulary, pieces: Iterable[np.ndarray]) -> Iterator[str]:
    """The text of the pieces; a character whose bytes are in two pieces comes with the second."""
    if vocabulary.characters is not None:
        yield from map(vocabulary.decode, pieces)
        return
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for piece in pieces:
        yield decoder.decode(piece.astype(np.uint8).tobytes())
    yield decoder.decode(b"", final=True)


if __name__ == "__main__":
    cli.run(main, PRESETS, __doc__, commands={"sample": (sample, Sample), "explain": (explain, Explain)})
