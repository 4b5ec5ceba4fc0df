"""Text that writes itself, character by character: a Transformer as small as nanoGPT's, or char-rnn's LSTM.

    python experiments/text_generation.py                       # preset nanogpt_cpu: minutes on a CPU
    python experiments/text_generation.py --preset fast         # the best that we know for five minutes on a CPU
    python experiments/text_generation.py --preset rnn          # two layers of LSTM (Karpathy 2015)
    python experiments/text_generation.py --preset nanogpt --platform gpu    # bfloat16; on a CPU, for hours, take
                                                                # --dtype float32
    python experiments/text_generation.py sample --prompt "ROMEO:"                    # by a finished run
    python experiments/text_generation.py explain --prompt "ROMEO: What is the time?" # what it looks at

The text is eight plays of Shakespeare that the package carries, or any UTF-8 file: ``--text FILE``. The first nine
tenths are trained on, the rest validates. ``nanogpt_cpu`` and ``nanogpt`` are network, batch, schedule and evaluation
of nanoGPT's documented commands for Shakespeare (Karpathy 2022). ``rnn`` has char-rnn's network, sequences and batch,
with Adam and a cosine in place of RMSprop; its state goes on from batch to batch. ``fast`` has rotary positions, gated
layers and Muon, chosen on the embedded plays. Expected of ``nanogpt_cpu`` on the text that nanoGPT
takes: a validation loss of 1.91 nats a character, in 1 to 3 minutes on 2 CPU cores; of ``fast`` 1.57 in 5 minutes.
nanoGPT keeps the parameters with the least validation loss; ours are the last, which matters to ``nanogpt`` alone (1.47
after 2,000 steps, 1.70 at the end).
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

from jaxai import cli, plots
from jaxai.config import Finished, Training, resumable
from jaxai.data.text.corpus import BYTES, Vocabulary, characters, load_text, ordered, split, streams, windows
from jaxai.distributed.mesh import make_mesh, processes
from jaxai.errors import UserError
from jaxai.nn.decoding.generation import generate
from jaxai.nn.decoding.sampling import Sampling
from jaxai.nn.rnn import RecurrentLanguageModel, RNNConfig, reset_state
from jaxai.nn.rnn import init_state as init_recurrent
from jaxai.nn.transformer import TransformerConfig, init_cache
from jaxai.nn.transformer_models import LanguageModel
from jaxai.run.files import write_json
from jaxai.run.folder import finished_folder, open_run, read_config
from jaxai.run.weights import parameter_count, read_weights, save_weights
from jaxai.train.loop import Every, Result, fit
from jaxai.train.optim import Adam, optimizer
from jaxai.train.state import TrainState
from jaxai.train.supervised import init_state, train_step
from jaxai.train.utilization import language_model_operations, utilization
from jaxai.typing import Array, PyTree

NAME = "text_generation"
FILES = ("vocabulary.json", "model.safetensors")  # of a finished run
WRITTEN_OUT = 48  # tokens whose attention is drawn as maps
NANOGPT = Adam(beta2=0.99, warmup=100, final_rate=0.1, weight_decay=0.1, decay="matrices", clip=1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Training):
    """Options of this experiment."""

    text: Path | None = resumable(None)
    """A UTF-8 file; without it eight plays of Shakespeare."""
    vocabulary: Literal["characters", "bytes"] = "characters"
    """What the text is made of; bytes for any alphabet."""
    network: Literal["transformer", "recurrent"] = "transformer"
    transformer: TransformerConfig = TransformerConfig(position="learned", max_length=64, bias=False)
    """The Transformer's."""
    rnn: RNNConfig = RNNConfig()
    """The recurrent network's."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of activations; parameters are float32. The Transformer alone."""
    length: int = 64
    """Tokens of a training window, T."""
    batch_size: int = 12
    optimizer: Adam = NANOGPT
    decay_steps: int = 2000
    """Steps over which the learning rate takes its course."""
    eval_every: int = 250
    eval_batches: int = 20
    """Random batches that estimate the loss, as in nanoGPT; 0: all of the validation text in order."""
    steps_per_call: int | None = resumable(None)
    """Steps that the device takes without the host in between; by default 1 on a CPU, elsewhere some 30 ms of them."""
    accumulation_steps: int = resumable(1)
    """Of a batch, whose gradients are computed one after the other: less memory; the Transformer alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least(2, "length")
        self.check_at_least(1, "batch_size", "decay_steps", "eval_every", "accumulation_steps")
        if self.steps_per_call is not None:
            self.check_at_least(1, "steps_per_call")
        self.check_at_least(0, "eval_batches")
        if self.data_dir:
            raise UserError("--data-dir is not read by this experiment: give the file as --text FILE")
        if self.network == "recurrent" and self.eval_batches:
            raise UserError("--network recurrent reads in order, it has no random windows: give --eval-batches 0")
        if self.network == "recurrent" and self.dtype != "float32":
            raise UserError(f"--dtype {self.dtype} needs --network transformer: the recurrent network is float32")
        if self.accumulation_steps > 1 and (self.network == "recurrent" or self.batch_size % self.accumulation_steps):
            raise UserError(
                "--accumulation-steps wants --network transformer and a divisor of --batch-size, got "
                f"{self.accumulation_steps}"
            )
        if (
            self.network == "transformer"
            and self.transformer.position == "learned"
            and self.length > self.transformer.max_length
        ):
            raise UserError(f"--length {self.length} needs --transformer.max-length of at least that")


PRESETS = {
    "nanogpt_cpu": Config(steps=2000, steps_per_call=10),
    "nanogpt": Config(
        steps=5000,
        transformer=TransformerConfig(
            embed_dim=384, num_layers=6, num_heads=6, position="learned", max_length=256, bias=False, dropout=0.2
        ),
        length=256,
        batch_size=64,
        dtype="bfloat16",
        decay_steps=5000,
        eval_batches=200,
    ),
    "fast": Config(
        steps=1200,
        transformer=TransformerConfig(hidden_dim=256, gated=True, activation="silu", norm="rms", bias=False),
        length=128,
        batch_size=16,
        optimizer=dataclasses.replace(NANOGPT, learning_rate=1e-2, warmup=50, final_rate=0.0, muon=True),
        decay_steps=1200,
        eval_every=600,
        eval_batches=0,
        steps_per_call=10,
    ),
    "rnn": Config(
        steps=8000,
        network="recurrent",
        length=50,
        batch_size=50,
        optimizer=Adam(learning_rate=2e-3, final_rate=0.05, clip=5.0),
        decay_steps=8000,
        eval_every=1000,
        eval_batches=0,
        steps_per_call=10,
    ),
    "debug": Config(steps=20, transformer=TransformerConfig(embed_dim=32, num_layers=2), length=32, eval_every=10),
}


def main(config: Config) -> None:
    """Load, train, validate, write."""
    text = load_text(config.text)
    vocabulary = BYTES if config.vocabulary == "bytes" else characters(text.string)
    training, validation = split(vocabulary.encode(text.string))
    if len(validation) <= config.length:
        count = f"the {len(validation):,} tokens that validate"
        raise UserError(f"--length {config.length} does not fit into {count}: give less, or a longer --text")
    network = build(config.network, vocabulary.size, config.transformer, config.rnn, config.dtype)
    mesh = make_mesh(config.devices, batch_size=config.batch_size, shape=config.mesh)
    if config.network == "recurrent":
        batches = streams(training, config.batch_size, config.length, **processes(mesh))
    else:
        batches = windows(training, config.batch_size, config.length, seed=config.seed, **processes(mesh))
    tx = optimizer(config.optimizer, config.decay_steps)
    run = open_run(NAME, config, text.identity())
    if summary := run.finished(config.steps):
        report(summary)
        return
    saved = vocabulary.to_json() | {"beginning": text.string[:WRITTEN_OUT]}
    write_json(run.folder / "vocabulary.json", saved)

    def init() -> TrainState:
        key_params, key = jax.random.split(jax.random.key(config.seed))
        params = network.init(key_params, jnp.zeros((1, 1), jnp.int32))["params"]
        carry = empty_state(network, config.batch_size, 0) if config.network == "recurrent" else None
        return init_state(params, tx, key, carry=carry)

    loss: Any = carried_loss if config.network == "recurrent" else loss_fn
    evaluate = jax.jit(partial(total_loss, network))
    validate = partial(losses, evaluate, config, training, validation)
    result = fit(
        partial(train_step, loss_fn=partial(loss, network), tx=tx, accumulation_steps=config.accumulation_steps),
        init,
        batches,
        config,
        run=run,
        mesh=mesh,
        every=[Every(config.eval_every, validate)],
        show=["loss", "validation_loss"],
        steps_per_call=config.steps_per_call,
    )
    params = jax.device_get(result.state.params)
    save_weights(run.folder / "model.safetensors", params, run.identity, saved)
    prompt, key = text.string[:1], jax.random.key(config.seed)
    pieces = write(network, params, config.length, vocabulary.encode(prompt), 1000, key, Sampling())
    run.samples.mkdir(exist_ok=True)
    (run.samples / "sample.txt").write_text("".join([prompt, *decoded(vocabulary, pieces)]), encoding="utf-8")
    summary = {
        "steps": int(result.state.step),
        "data": text.source,
        **validate(int(result.state.step), result.state),
        "parameters": parameter_count(params),
        **speed(config, network, params, mesh, result),
        "compile_seconds": round(result.compile_seconds, 1),
        "train_seconds": round(result.train_seconds, 1),
    }
    run.write_summary(summary)
    report(summary)


Network = LanguageModel | RecurrentLanguageModel


def build(network: str, vocabulary: int, transformer: TransformerConfig, rnn: RNNConfig, dtype: str) -> Network:
    """The network of a config."""
    if network == "recurrent":
        return RecurrentLanguageModel(vocabulary, rnn)
    return LanguageModel(vocabulary, transformer, jnp.dtype(dtype))


def speed(
    config: Config, network: Network, params: dict[str, Any], mesh: jax.sharding.Mesh, result: Result
) -> dict[str, float | None]:
    """Iterations/s of the training alone and, for a Transformer on devices whose peak is known, the share of it."""
    rate = int(result.state.step) / max(result.train_seconds - result.evaluation_seconds, 1e-9)
    found: dict[str, float | None] = {"iterations_per_second": round(rate, 2), "mfu": None}
    if isinstance(network, LanguageModel):
        counted = parameter_count(params) - params["embedding"].get("positions", np.empty(0)).size
        token = language_model_operations(counted, network.config.num_layers, network.config.embed_dim, config.length)
        kind = mesh.devices.flat[0].device_kind
        found["mfu"] = utilization(rate * config.batch_size * config.length * token, kind, mesh.size)
    return found


def empty_state(network: Network, batch: int, context: int) -> PyTree:
    """What a network knows before any token: a recurrent state, or a cache with room for ``context`` tokens."""
    if isinstance(network, RecurrentLanguageModel):
        return init_recurrent(network.config, batch)
    return init_cache(network.config, batch, context, network.dtype)


def loss_fn(network: LanguageModel, params: PyTree, batch: dict[str, Array], key: Array) -> tuple[Array, dict]:
    """Mean cross-entropy of the next tokens, in nats."""
    logits, _ = network.apply({"params": params}, batch["input"], train=True, rngs={"dropout": key})
    return next_token_losses(cast(Array, logits), batch["target"]).mean(), {}


def carried_loss(
    network: RecurrentLanguageModel, params: PyTree, batch: dict[str, Array], key: Array, carry: PyTree
) -> tuple[Array, tuple[dict, PyTree]]:
    """The same from the state that the last batch ended with, and the state after this one."""
    state, how = reset_state(carry, batch["first"]), {"train": True, "rngs": {"dropout": key}}
    logits, out = network.apply({"params": params}, batch["input"], cache=state, **how)
    return next_token_losses(cast(Array, logits), batch["target"]).mean(), ({}, cast(dict, out)["cache"])


def next_token_losses(logits: Array, targets: Array) -> Array:
    """-log softmax(logits)[target], [B, T]."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets)


def total_loss(
    network: Network, params: PyTree, batch: dict[str, Array], state: PyTree
) -> tuple[tuple[Array, Array], PyTree]:
    """The weighted sum of the losses of a batch, and of the weights; a recurrent network's state before and after."""
    logits, out = network.apply({"params": params}, batch["input"], cache=state)
    weight, after = batch["weight"], None if state is None else cast(dict, out)["cache"]
    return ((weight * next_token_losses(cast(Array, logits), batch["target"])).sum(), weight.sum()), after


def losses(
    evaluate: Callable[[PyTree, dict[str, np.ndarray], PyTree], tuple[tuple[Array, Array], PyTree]],
    config: Config,
    training: np.ndarray,
    validation: np.ndarray,
    done: int,
    state: TrainState,
) -> dict[str, float]:
    """``validation_loss`` in nats a token, and where random batches estimate it ``training_loss`` too."""

    def mean(batches: Iterable[dict[str, np.ndarray]]) -> float:
        sums, carry = [], jax.tree.map(jnp.zeros_like, state.carry)
        for batch in batches:
            values, carry = evaluate(state.params, batch, carry)
            sums.append(values)
        total, count = np.array(jax.device_get(sums)).sum(0)
        return float(total / count)

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
    rate = f", {summary['iterations_per_second']} iterations/s" if "iterations_per_second" in summary else ""
    mfu = f", MFU {summary['mfu']:.1%} of the bfloat16 peak" if summary.get("mfu") else ""
    print(f"{summary['parameters']:,} parameters, trained in {summary['train_seconds']} s{rate}{mfu}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompted(Finished):
    """A finished run and the beginning of a text."""

    preset: str = next(iter(PRESETS))
    """Whose run: that in runs/text_generation/PRESET, unless there is a workdir."""
    prompt: str | None = None
    """What the text begins with; by default as the text that was learned from does."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompt == "":
            raise UserError("--prompt is empty: give at least one character")


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
    """Draw what a finished run looks at in a prompt, up to 48 tokens as maps of all heads, a longer one as entropies
    and masses: attention.png in its folder."""


def sample(options: Sample) -> None:
    """Print the prompt and what the network writes after it, as it comes."""
    network, params, vocabulary, context, beginning = finished_run(finished_folder(NAME, options, FILES))
    prompt = options.prompt or beginning[:1]
    ids, key = vocabulary.encode(prompt), jax.random.key(options.seed)
    print(prompt, end="", flush=True)
    for piece in decoded(vocabulary, write(network, params, context, ids, options.tokens, key, options.sampling)):
        print(piece, end="", flush=True)
    print()


def explain(options: Explain) -> None:
    """Draw the attention of all layers and heads over the prompt."""
    folder = finished_folder(NAME, options, FILES)
    network, params, vocabulary, context, beginning = finished_run(folder)
    if not isinstance(network, LanguageModel):
        raise UserError(f"{folder} holds a recurrent network, which has no attention to draw: give another --workdir")
    whole = vocabulary.encode(options.prompt or beginning)
    ids = whole[:context]
    out: Any = jax.jit(partial(network.apply, statistics=True))({"params": params}, jnp.asarray(ids)[None])[1]
    blocks = out["statistics"]
    blocks = jax.tree.map(lambda *x: np.stack(x), *blocks) if isinstance(blocks, tuple) else blocks
    found, path = blocks["attention"], folder / "attention.png"
    if len(ids) <= WRITTEN_OUT:
        names = [repr(vocabulary.decode(ids[i : i + 1]))[1:-1] for i in range(len(ids))]
        plots.save_attention_maps(path, np.swapaxes(found.weights[:, 0], 1, 2), names, names)
    else:
        plots.save_attention_statistics(path, found.entropy[:, 0], found.mass[:, 0])
    print(f"the first {len(ids)} of {len(whole)} tokens: {path}")


def finished_run(folder: Path) -> tuple[Network, PyTree, Vocabulary, int, str]:
    """Network, parameters, vocabulary and context of a run, and the beginning of the text that it learned from."""
    config = read_config(folder)
    try:
        saved = json.loads((folder / "vocabulary.json").read_text())
        vocabulary, beginning = Vocabulary.from_json(saved), str(saved["beginning"])
        shapes = TransformerConfig(**config["transformer"]), RNNConfig(**config["rnn"])
        dtype, length = config.get("dtype", "float32"), config["length"]
        network = build(config["network"], vocabulary.size, *shapes, dtype)
    except (ValueError, KeyError, TypeError) as error:
        message = f"{folder} holds no run of this experiment, or a damaged vocabulary.json ({error}): train one first"
        raise UserError(message) from error
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    params = read_weights(folder / "model.safetensors", shapes, saved)
    return network, params, vocabulary, length, beginning


def write(
    network: Network,
    params: PyTree,
    context: int,
    prompt: np.ndarray,
    count: int,
    key: Array,
    sampling: Sampling,
) -> Iterator[np.ndarray]:
    """The ids after a prompt [T], a few at a time; a Transformer sees ``context`` of them at most."""
    limit = context if isinstance(network, LanguageModel) else None
    empty = empty_state(network, 1, context)
    pieces = generate(partial(advance, network), params, empty, prompt[None], count, key, sampling, context=limit)
    return (piece[0] for piece in pieces)


def advance(network: Network, params: PyTree, cache: PyTree, tokens: Array) -> tuple[Array, PyTree]:
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
