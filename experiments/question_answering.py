"""Stories and questions: a Transformer that reads facts as sentences and answers with a word.

    python experiments/question_answering.py                                  # eleven tasks of our own grammar
    python experiments/question_answering.py --preset babi --data-dir DIR     # the 20 bAbI tasks, 1,000 questions each
    python experiments/question_answering.py --tasks 3                        # one task by itself
    python experiments/question_answering.py explain --task 2                 # what it looks at, as a picture

One network learns all tasks together (``--tasks`` chooses some). By default blocks share their parameters, as in the
Universal Transformer (Dehghani et al. 2018, arXiv:1807.03819: 8.5 % mean error on bAbI's 1,000 examples, joint; MemN2N,
arXiv:1503.08895: 12.4 %). The stories of our grammar that test have names and places that no training story has: the
reader sees such words as anonymous slots, drawn anew for each story, and so are the persons of bAbI's files. Stories
are small: up to names, 43 % of the test questions of two-argument-relations are training questions too, 18 % of
positions, 13 % of one-supporting-fact, 10 % of negation and path-finding, and next to none of the others. A tenth of
the training questions validates. Expected of the default: a mean error of 3 %, all of it on positions, after 70 minutes
on one CPU core.
The run's folder ends with summary.json, model.safetensors, vocabulary.json, samples/answers.txt, attention.png.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxai import cli, plots
from jaxai.config import Finished, Training
from jaxai.data.qa.babi import TASKS as BABI_TASKS
from jaxai.data.qa.babi import Question, Questions, load_babi
from jaxai.data.qa.questions import Vocabulary, decode, encode, question_batches
from jaxai.data.qa.stories import MOST_NAMES, MOST_PLACES, load_stories
from jaxai.data.qa.stories import TASKS as STORY_TASKS
from jaxai.distributed.mesh import make_mesh, processes
from jaxai.errors import UserError
from jaxai.nn.reader import Reader
from jaxai.nn.transformer import TransformerConfig
from jaxai.run.files import write_json
from jaxai.run.folder import finished_folder, open_run, read_config
from jaxai.run.weights import parameter_count, read_weights, save_weights
from jaxai.train.loop import Every, fit
from jaxai.train.optim import Adam, optimizer
from jaxai.train.state import TrainState
from jaxai.train.supervised import cross_entropy, init_state, train_step
from jaxai.typing import Array, PyTree

NAME = "question_answering"
FILES = ("vocabulary.json", "model.safetensors")  # of a finished run
MEMN2N = (0.0, 11.4, 21.9, 13.4, 14.4, 2.8, 18.3, 9.3, 1.9, 6.5, 0.3, 0.1, 0.2, 6.9, 0.0, 2.7, 40.4, 9.4, 88.0, 0.0)
"""Per cent wrong on each of bAbI's tasks, learned jointly from 1,000 questions of each: Sukhbaatar et al. 2015,
arXiv:1503.08895, table 1, position encoding, linear start, random noise; mean 12.4, eleven tasks above 5 %."""
UNKNOWN = 4  # words of a test file that no training file has, in one story, besides names
ROWS = 500  # questions that are answered at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Training):
    """Options of this experiment."""

    tasks: tuple[int, ...] = ()
    """The numbers of the tasks to learn; none: all."""
    count: int = 10_000
    """Questions of each task of our grammar to learn from; bAbI's files have theirs."""
    test_count: int = 1000
    """Questions of each task of our grammar that test."""
    transformer: TransformerConfig = TransformerConfig(
        embed_dim=128,
        num_layers=6,
        num_heads=4,
        hidden_dim=256,
        position="learned",
        max_length=129,
        share_layers=True,
        mimetic=True,
    )
    """The Transformer's; a story's last max_length - 1 facts are read."""
    slow: tuple[str, ...] = ()
    """The titles of tasks that are learned last: each of their questions comes ``times`` times an epoch."""
    times: int = 6
    batch_size: int = 128
    shapes: int = 4
    """Numbers of facts that stories are padded to: more leave less to padding, but each is a program to compile."""
    optimizer: Adam = Adam(learning_rate=3e-3, beta2=0.98, warmup=200, final_rate=0.0, clip=1.0, muon=True)
    decay_steps: int = 18000
    """Steps over which the learning rate takes its course."""
    eval_every: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least(2, "count")
        self.check_at_least(1, "test_count", "times", "batch_size", "shapes", "decay_steps", "eval_every")
        if self.transformer.max_length < 2:
            raise UserError(
                f"--transformer.max-length must be at least 2, a question and a fact, got {self.transformer.max_length}"
            )
        known = BABI_TASKS if self.data_dir else range(1, len(STORY_TASKS) + 1)
        if strange := set(self.tasks) - set(known):
            raise UserError(f"--tasks {min(strange)}: there are {known[0]} to {known[-1]}")


PRESETS = {
    "default": Config(steps=18000, slow=("positions", "path-finding")),
    "babi": Config(steps=8000, decay_steps=8000, transformer=dataclasses.replace(Config.transformer, dropout=0.1)),
    "debug": Config(
        steps=20,
        count=200,
        test_count=20,
        transformer=TransformerConfig(
            embed_dim=32, num_layers=2, num_heads=2, hidden_dim=32, position="learned", max_length=17, mimetic=True
        ),
        batch_size=32,
        shapes=1,
        optimizer=dataclasses.replace(Config.optimizer, warmup=5),
        eval_every=10,
    ),
}


def main(config: Config) -> None:
    """Load, train, answer, score."""
    if config.preset == "babi" and not config.data_dir:
        raise UserError("--preset babi needs --data-dir, a folder with bAbI's files")
    learned, test = load(config, "train"), load(config, "test")
    train, val = held_out(learned)
    train += (config.times - 1) * slow_questions(config, learned, train)
    slots = MOST_NAMES + MOST_PLACES if learned.embedded else most_names(learned) + UNKNOWN
    vocabulary = Vocabulary.build(learned.all, slots, learned.open_words)
    width = max(len(line) for q in (*learned.all, *test.all) for line in (*q.facts, q.question))
    sizes = {"max_facts": config.transformer.max_length - 1, "max_words": width}
    sizes["max_facts"] = min(sizes["max_facts"], max(len(q.facts) for q in (*learned.all, *test.all)))
    network = Reader(vocabulary.size, vocabulary.labels, config.transformer)
    mesh = make_mesh(config.devices, batch_size=config.batch_size, shape=config.mesh)
    batches = question_batches(
        train, vocabulary, config.batch_size, seed=config.seed, shapes=config.shapes, **sizes, **processes(mesh)
    )
    tx = optimizer(config.optimizer, config.decay_steps)
    encoded = {"validation": encode(val, vocabulary, **sizes), "test": encode(test.all, vocabulary, **sizes)}
    run = open_run(NAME, config, learned.identity() | {"test": test.fingerprint})
    if summary := run.finished(config.steps):
        report(summary)
        return
    write_json(run.folder / "vocabulary.json", saved := vocabulary.to_json() | sizes)

    def init() -> TrainState:
        key_params, key = jax.random.split(jax.random.key(config.seed))
        return init_state(init_params(network, width, key_params), tx, key)

    answer = jax.jit(partial(likeliest, network))

    def validate(done: int, state: TrainState) -> dict[str, float]:
        wrong = answers(answer, state.params, encoded["validation"]) != encoded["validation"]["answer"]
        return {"validation_error": float(wrong.mean())}

    result = fit(
        partial(train_step, loss_fn=partial(loss_fn, network), tx=tx),
        init,
        batches,
        config,
        run=run,
        mesh=mesh,
        every=[Every(config.eval_every, validate)],
        show=["loss", "validation_error"],
        steps_per_call=1,  # batches of several shapes
    )
    params = jax.device_get(result.state.params)
    save_weights(run.folder / "model.safetensors", params, run.identity, saved)
    found = answers(answer, params, encoded["test"])
    run.samples.mkdir(exist_ok=True)
    said = decode(found, test.all, encoded["test"], vocabulary)
    write_answers(run.samples / "answers.txt", test.all, said)
    reader = Loaded(network, params, vocabulary, sizes)
    draw_attention(run.folder / "attention.png", reader, test.all[0])
    summary = {
        "steps": int(result.state.step),
        "data": learned.source,
        "embedded": learned.embedded,
        **validate(int(result.state.step), result.state),
        **errors(test, found != encoded["test"]["answer"], encoded["test"]["task"]),
        "parameters": parameter_count(params),
        "compile_seconds": round(result.compile_seconds, 1),
        "train_seconds": round(result.train_seconds, 1),
    }
    run.write_summary(summary)
    report(summary)


def load(config: Config, split: str) -> Questions:
    """The questions of a split: bAbI's files, or as many as asked for from our grammar."""
    if config.data_dir:
        return load_babi(config.data_dir, split, config.tasks or BABI_TASKS)
    count = config.count if split == "train" else config.test_count
    stories = load_stories(split, count, config.seed)
    tasks = {task: stories.tasks[task] for task in config.tasks or stories.tasks}
    return dataclasses.replace(stories, tasks=tasks)


def most_names(questions: Questions) -> int:
    """How many different names one story has at most, its question among it."""
    return max(len(questions.open_words.intersection(q.question, *q.facts)) for q in questions.all)


def held_out(questions: Questions) -> tuple[list[Question], list[Question]]:
    """The first nine tenths of each task's questions, and the rest."""
    train, val = [], []
    for task in questions.tasks.values():
        cut = len(task) * 9 // 10
        train, val = [*train, *task[:cut]], [*val, *task[cut:]]
    return train, val


def slow_questions(config: Config, questions: Questions, train: list[Question]) -> list[Question]:
    """Those of the tasks that ``config.slow`` names."""
    titles = list(questions.titles.values()) if config.data_dir else STORY_TASKS
    if strange := set(config.slow) - {*titles, *STORY_TASKS}:  # our grammar's are the default, also beside bAbI's files
        raise UserError(f"--slow {min(strange)}: the tasks are {', '.join(titles)}")
    return [question for question in train if questions.titles[question.task] in config.slow]


def init_params(network: Reader, width: int, key: Array) -> PyTree:
    """Parameters for sentences of at most so many words."""
    facts, count = jnp.zeros((1, 1, width), jnp.int32), jnp.ones(1, jnp.int32)
    return network.init(key, facts, count, facts[:, 0])["params"]


def loss_fn(network: Reader, params: PyTree, batch: dict[str, Array], key: Array) -> tuple[Array, dict[str, Array]]:
    """Mean cross-entropy of the answers, in nats, and the accuracy."""
    story = batch["facts"], batch["fact_count"], batch["question"]
    logits, _ = network.apply({"params": params}, *story, train=True, rngs={"dropout": key})
    return cross_entropy(cast(Array, logits), batch["answer"])


def likeliest(network: Reader, params: PyTree, batch: dict[str, Array]) -> Array:
    """The likeliest label of each question."""
    logits, _ = network.apply({"params": params}, batch["facts"], batch["fact_count"], batch["question"])
    return cast(Array, logits).argmax(-1)


def answers(answer: Callable[..., Array], params: PyTree, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """The likeliest labels of all questions, int [n], in parts of one size."""
    story = {name: arrays[name] for name in ("facts", "fact_count", "question")}
    n, found = len(story["question"]), []
    for first in range(0, n, ROWS):
        rows = np.arange(first, first + ROWS) % n
        found.append(np.asarray(answer(params, {name: array[rows] for name, array in story.items()})))
    return np.concatenate(found)[:n]


def errors(questions: Questions, wrong: np.ndarray, task: np.ndarray) -> dict[str, Any]:
    """Each task's share of wrong answers, their mean, and how many tasks fail by bAbI's measure, 5 %."""
    found = {f"{number} {questions.titles[number]}": float(wrong[task == number].mean()) for number in questions.tasks}
    values = list(found.values())
    return {"test_errors": found, "mean_error": float(np.mean(values)), "failed": sum(x > 0.05 for x in values)}


def write_answers(path: Path, questions: Sequence[Question], said: Sequence[str | None]) -> None:
    """One question in fifty with its story, the right answer and the one that was given."""
    lines = []
    for question, answer in list(zip(questions, said, strict=True))[::50]:
        lines += [*map(" ".join, question.facts), f"{' '.join(question.question)}? {question.answer} > {answer}", ""]
    path.write_text("\n".join(lines), encoding="utf-8")


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A trained network with what it needs to read."""

    network: Reader
    params: PyTree
    vocabulary: Vocabulary
    sizes: dict[str, int]


def draw_attention(path: Path, reader: Loaded, question: Question) -> str | None:
    """A picture of what each head looks at in the story from the question's place; the answer that is given."""
    arrays = encode([question], reader.vocabulary, **reader.sizes)
    story = arrays["facts"], arrays["fact_count"], arrays["question"]
    apply = jax.jit(partial(reader.network.apply, statistics=True))
    logits, out = cast(Any, apply({"params": reader.params}, *story))
    blocks = out["statistics"]
    blocks = jax.tree.map(lambda *x: np.stack(x), *blocks) if isinstance(blocks, tuple) else blocks
    count = int(arrays["fact_count"][0])
    weights = np.asarray(blocks["attention"].weights[:, 0, 0, :, : count + 1])  # [layers, N, question and facts]
    (said,) = decode(np.asarray(logits.argmax(-1)), [question], arrays, reader.vocabulary)
    facts = [" ".join(fact) for fact in question.facts[len(question.facts) - count :]]
    marked = [
        f"{'* ' if np.flip(arrays['support'][0, :count])[row] else ''}{fact}" for row, fact in enumerate(facts[::-1])
    ]
    asked = f"{' '.join(question.question)}? {said} ({question.answer})"
    plots.save_reading(path, weights, [asked, *marked])
    return said


def report(summary: dict[str, Any]) -> None:
    """Tell a person what came out."""
    for name, error in summary["test_errors"].items():
        published = "" if summary["embedded"] else f"   MemN2N {MEMN2N[int(name.split()[0]) - 1]:5.1f}"
        print(f"{name:40} {100 * error:5.1f} % wrong{published}")
    print(f"mean error {100 * summary['mean_error']:.2f} %, {summary['failed']} tasks above 5 %")
    print(f"{summary['parameters']:,} parameters, trained in {summary['train_seconds']} s")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explain(Finished):
    """Draw what a finished run looks at in a story of a task: attention.png in its folder."""

    task: int = 2
    """The number of the task."""
    seed: int = 1
    """Of the story."""
    data_dir: Path | None = None
    """bAbI's files, for a run that was trained on them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least(0, "seed")


def explain(options: Explain) -> None:
    """Answer a question of our grammar or of the test files, and draw the attention over its story."""
    folder = finished_folder(NAME, options, FILES)
    reader, config = finished_run(folder)
    if config["tasks"] and options.task not in config["tasks"]:
        raise UserError(f"--task {options.task}: this run learned {', '.join(map(str, config['tasks']))}")
    if config["data"]["embedded"]:
        if options.data_dir:
            raise UserError(f"{folder} was trained on our own stories: leave --data-dir out")
        if not 1 <= options.task <= len(STORY_TASKS):
            raise UserError(f"--task {options.task}: there are 1 to {len(STORY_TASKS)}")
        question = load_stories("test", 1, options.seed).tasks[options.task][0]
    elif options.data_dir:
        questions = load_babi(options.data_dir, "test", [options.task]).all
        question = questions[options.seed % len(questions)]
    else:
        raise UserError(f"{folder} was trained on bAbI's files: give --data-dir")
    path = folder / "attention.png"
    said = draw_attention(path, reader, question)
    print(*map(" ".join, question.facts), f"{' '.join(question.question)}? {said}", path, sep="\n")


def finished_run(folder: Path) -> tuple[Loaded, dict[str, Any]]:
    """What a run has learned, and its config. ValueError where its files are damaged or another run's."""
    config = read_config(folder)
    try:
        saved = json.loads((folder / "vocabulary.json").read_text())
        sizes = {name: int(saved[name]) for name in ("max_facts", "max_words")}
        vocabulary = Vocabulary.from_json(saved)
        network = Reader(vocabulary.size, vocabulary.labels, TransformerConfig(**config["transformer"]))
    except (ValueError, KeyError, TypeError) as error:
        message = f"{folder} holds no run of this experiment, or a damaged vocabulary.json ({error}): train one first"
        raise UserError(message) from error
    shapes = jax.eval_shape(partial(init_params, network, sizes["max_words"]), jax.random.key(0))
    params = read_weights(folder / "model.safetensors", shapes, saved)
    return Loaded(network, params, vocabulary, sizes), config


if __name__ == "__main__":
    cli.run(main, PRESETS, __doc__, commands={"explain": (explain, Explain)})
