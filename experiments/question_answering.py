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
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np

from jaxai import experiment, plots, train
from jaxai.config import Finished, Training
from jaxai.data import qa
from jaxai.errors import UserError
from jaxai.nn import Reader, TransformerConfig, apply_with_statistics
from jaxai.ops import map_batches
from jaxai.run import Run, load_run
from jaxai.typing import Array, PyTree

NAME = "question_answering"
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
    optimizer: train.Adam = train.Adam(learning_rate=3e-3, beta2=0.98, warmup=200, final_rate=0.0, clip=1.0, muon=True)
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


def build(config: Config) -> experiment.Task:
    """The training on the questions of all tasks together."""
    if config.preset == "babi" and not config.data_dir:
        raise UserError("--preset babi needs --data-dir, a folder with bAbI's files")
    learned, test = load(config, "train"), load(config, "test")
    training, val = qa.held_out(learned)
    training += (config.times - 1) * slow_questions(config, learned, training)
    slots = qa.MOST_NAMES + qa.MOST_PLACES if learned.embedded else learned.most_names + UNKNOWN
    vocabulary = qa.Vocabulary.build(learned.all, slots, learned.open_words)
    longest = max(len(question.facts) for question in (*learned.all, *test.all))
    sizes = {
        "max_facts": min(config.transformer.max_length - 1, longest),
        "max_words": max(len(line) for q in (*learned.all, *test.all) for line in (*q.facts, q.question)),
    }
    network = Reader(vocabulary.size, vocabulary.labels, config.transformer)
    encoded = {"validation": qa.encode(val, vocabulary, **sizes), "test": qa.encode(test.all, vocabulary, **sizes)}
    how = {"seed": config.seed, "shapes": config.shapes, **sizes}
    answer = jax.jit(partial(likeliest, network))

    def evaluate(run: Run, step: int, state: train.TrainState) -> dict[str, float]:
        wrong = answers(answer, state.params, encoded["validation"]) != encoded["validation"]["answer"]
        return {"validation_error": float(wrong.mean())}

    def finish(run: Run, result: train.Result) -> dict[str, Any]:
        params = jax.device_get(result.state.params)
        found = answers(answer, params, encoded["test"])
        said = qa.decode(found, test.all, encoded["test"], vocabulary)
        run.write_sample("answers.txt", qa.answers_text(test.all[::50], said[::50]))
        draw_attention(run.folder / "attention.png", network, params, vocabulary, sizes, test.all[0])
        wrong = found != encoded["test"]["answer"]
        return {"embedded": learned.embedded, **qa.task_errors(test, wrong, encoded["test"]["task"])}

    return experiment.Task(
        identity=learned.identity() | {"test": test.fingerprint},
        source=learned.source,
        batches=partial(qa.question_batches, training, vocabulary, config.batch_size, **how),
        batch_size=config.batch_size,
        trainer=train.Supervised(
            init_params=partial(init_params, network, sizes["max_words"]),
            loss_fn=partial(loss_fn, network),
            tx=train.optimizer(config.optimizer, config.decay_steps),
        ),
        evaluate=evaluate,
        eval_every=config.eval_every,
        finish=finish,
        report=report,
        show=["loss", "validation_error"],
        steps_per_call=1,  # batches of several shapes
        vocabulary=vocabulary.to_json() | sizes,
    )


def load(config: Config, split: str) -> qa.Questions:
    """The questions of a split: bAbI's files, or as many as asked for from our grammar."""
    known = qa.BABI_TASKS if config.data_dir else range(1, len(qa.STORY_TASKS) + 1)
    if strange := set(config.tasks) - set(known):
        raise UserError(f"--tasks {min(strange)}: there are {known[0]} to {known[-1]}")
    if config.data_dir:
        return qa.load_babi(config.data_dir, split, config.tasks or qa.BABI_TASKS)
    count = config.count if split == "train" else config.test_count
    return qa.load_stories(split, count, config.seed).only(config.tasks)


def slow_questions(config: Config, questions: qa.Questions, training: list[qa.Question]) -> list[qa.Question]:
    """Those of the tasks that ``config.slow`` names."""
    titles = list(questions.titles.values()) if config.data_dir else qa.STORY_TASKS
    if strange := set(config.slow) - {*titles, *qa.STORY_TASKS}:  # the default names our grammar's, also for bAbI
        raise UserError(f"--slow {min(strange)}: the tasks are {', '.join(titles)}")
    return [question for question in training if questions.titles[question.task] in config.slow]


def init_params(network: Reader, width: int, key: Array) -> PyTree:
    """Parameters for sentences of at most ``width`` words."""
    facts, count = jax.numpy.zeros((1, 1, width), "int32"), jax.numpy.ones(1, "int32")
    return network.init(key, facts, count, facts[:, 0])["params"]


def loss_fn(network: Reader, params: PyTree, batch: dict[str, Array], key: Array) -> tuple[Array, dict[str, Array]]:
    """Mean cross-entropy of the answers, in nats, and the accuracy."""
    story = batch["facts"], batch["fact_count"], batch["question"]
    logits, _ = network.apply({"params": params}, *story, train=True, rngs={"dropout": key})
    return train.cross_entropy(cast(Array, logits), batch["answer"])


def likeliest(network: Reader, params: PyTree, batch: dict[str, Array]) -> Array:
    """The likeliest label of each question."""
    logits, _ = network.apply({"params": params}, batch["facts"], batch["fact_count"], batch["question"])
    return cast(Array, logits).argmax(-1)


def answers(answer: Any, params: PyTree, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """The likeliest labels of all questions, int [n]."""
    story = {name: arrays[name] for name in ("facts", "fact_count", "question")}
    return map_batches(partial(answer, params), story, ROWS)


def draw_attention(
    path: Path, network: Reader, params: PyTree, vocabulary: qa.Vocabulary, sizes: dict[str, int], question: qa.Question
) -> str | None:
    """Draw how much each head looks at each fact from the question's place, and return the answer that is given."""
    arrays = qa.encode([question], vocabulary, **sizes)
    story = arrays["facts"], arrays["fact_count"], arrays["question"]
    logits, statistics = apply_with_statistics(network, params, *story)
    count = int(arrays["fact_count"][0])
    weights = np.asarray(statistics["attention"].weights[:, 0, 0, :, : count + 1])  # [layers, N, question and facts]
    (said,) = qa.decode(np.asarray(logits.argmax(-1)), [question], arrays, vocabulary)
    support = arrays["support"][0, :count]
    facts = zip(support, question.facts[len(question.facts) - count :], strict=True)
    marked = ["* " * bool(needed) + " ".join(fact) for needed, fact in facts]
    asked = f"{' '.join(question.question)}? {said} ({question.answer})"
    plots.save_reading(path, weights, [asked, *marked[::-1]])
    return said


def report(run: Run, summary: dict[str, Any]) -> None:
    """Print each task's error, beside the published one on bAbI, and their mean."""
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
    run = load_run(NAME, Config, options, vocabulary=True)
    vocabulary, *sizes = run.decode(
        lambda saved: (qa.Vocabulary.from_json(saved), int(saved["max_facts"]), int(saved["max_words"]))
    )
    network = Reader(vocabulary.size, vocabulary.labels, run.config.transformer)
    params = run.params(partial(init_params, network, sizes[1]))
    question = chosen_question(options, run.folder, run.config.tasks, run.identity["data"]["embedded"])
    path = run.folder / "attention.png"
    named = dict(zip(("max_facts", "max_words"), sizes, strict=True))
    said = draw_attention(path, network, params, vocabulary, named, question)
    print(*map(" ".join, question.facts), f"{' '.join(question.question)}? {said}", path, sep="\n")


def chosen_question(options: Explain, folder: Path, tasks: tuple[int, ...], embedded: bool) -> qa.Question:
    """The question that the options name, of the kind that the run has learned. ValueError for another kind."""
    if tasks and options.task not in tasks:
        raise UserError(f"--task {options.task}: this run learned {', '.join(map(str, tasks))}")
    if not embedded:
        if not options.data_dir:
            raise UserError(f"{folder} was trained on bAbI's files: give --data-dir")
        questions = qa.load_babi(options.data_dir, "test", [options.task]).all
        return questions[options.seed % len(questions)]
    if options.data_dir:
        raise UserError(f"{folder} was trained on our own stories: leave --data-dir out")
    if not 1 <= options.task <= len(qa.STORY_TASKS):
        raise UserError(f"--task {options.task}: there are 1 to {len(qa.STORY_TASKS)}")
    return qa.load_stories("test", 1, options.seed).tasks[options.task][0]


if __name__ == "__main__":
    experiment.run(NAME, PRESETS, build, __doc__, {"explain": (explain, Explain)})
