"""Question answering on stories: a Transformer that attends to facts, one sentence each, and answers with a word.

    python experiments/question_answering.py                                  # eleven tasks of our own grammar
    python experiments/question_answering.py --preset babi --data-dir DIR     # the 20 bAbI tasks, 1,000 questions each
    python experiments/question_answering.py explain --task 2                 # plot the attention to the facts

One network learns all tasks jointly (``--tasks 3``: only one). By default blocks share their parameters, as in the
Universal Transformer (Dehghani et al. 2018, arXiv:1807.03819: 8.5 % mean error on bAbI, 1,000 questions per task,
joint; MemN2N, arXiv:1503.08895: 12.4 %). The test stories of our grammar use names and places that occur in no training
story. The network sees such words, and the names of persons in bAbI's files, as anonymous slots, redrawn for each
story. Since stories are short, some test questions equal training questions except for names: 43 % of
two-argument-relations, 18 % of positions, 13 % of one-supporting-fact, 10 % of negation and path-finding, and almost
none of the others. A tenth of the training questions is for validation. Expected with the default preset: a mean error
of 3 %, nearly all on positions, in 70 CPU minutes. It also writes samples/answers.txt and attention.png.
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
from jaxai.nn import Reader, TransformerConfig, apply_with_statistics, init_reader
from jaxai.ops import map_batches
from jaxai.run import Run, load_run
from jaxai.typing import Array, PyTree

NAME = "question_answering"
MEMN2N = (0.0, 11.4, 21.9, 13.4, 14.4, 2.8, 18.3, 9.3, 1.9, 6.5, 0.3, 0.1, 0.2, 6.9, 0.0, 2.7, 40.4, 9.4, 88.0, 0.0)
"""Error in per cent on each of bAbI's tasks, learned jointly from 1,000 questions of each: Sukhbaatar et al. 2015,
arXiv:1503.08895, table 1, position encoding, linear start, random noise; mean 12.4, eleven tasks above 5 %."""
SPARE_SLOTS = 4  # for words, besides names, that occur in a test story but in no training file
ROWS = 500  # batch size for answering questions
SMALL = TransformerConfig(
    embed_dim=32, num_layers=2, num_heads=2, hidden_dim=32, position="learned", max_length=17, mimetic=True
)
UNIVERSAL = dataclasses.replace(
    SMALL, embed_dim=128, num_layers=6, num_heads=4, hidden_dim=256, max_length=129, share_layers=True
)
MUON = train.Adam(learning_rate=3e-3, beta2=0.98, warmup=200, final_rate=0.0, clip=1.0, muon=True)
BRIEF = dataclasses.replace(MUON, warmup=5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Training):
    """Options of this experiment."""

    tasks: tuple[int, ...] = ()
    """Numbers of the tasks to learn; by default all."""
    count: int = 10_000
    """Training questions per task of our grammar; not used with bAbI's files."""
    test_count: int = 1000
    """Test questions per task of our grammar."""
    transformer: TransformerConfig = UNIVERSAL
    """Options of the Transformer; it reads a story's last max_length - 1 facts."""
    slow: tuple[str, ...] = ()
    """Titles of slowly learned tasks, whose questions occur ``times`` times per epoch."""
    times: int = 6
    batch_size: int = 128
    shapes: int = 4
    """Number of story lengths to pad to: more mean less padding, but each compiles another program."""
    optimizer: train.Adam = MUON
    decay_steps: int = 18000
    """Steps over which the learning rate schedule runs."""
    eval_every: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least(2, "count")
        self.check_at_least(1, "test_count", "times", "batch_size", "shapes", "decay_steps", "eval_every")
        if (length := self.transformer.max_length) < 2:
            raise UserError(f"--transformer.max-length must be at least 2, a question and a fact, got {length}")


PRESETS = {
    "default": Config(steps=18000, slow=("positions", "path-finding")),
    "babi": Config(steps=8000, decay_steps=8000, transformer=dataclasses.replace(UNIVERSAL, dropout=0.1)),
    "debug": Config(
        steps=20, count=200, test_count=20, transformer=SMALL, batch_size=32, shapes=1, optimizer=BRIEF, eval_every=10
    ),
}


def build(config: Config) -> experiment.Task:
    """The joint training on the questions of all tasks."""
    if config.preset == "babi" and not config.data_dir:
        raise UserError("--preset babi needs --data-dir, a folder with bAbI's files")
    load = partial(qa.load_questions, config.data_dir, tasks=config.tasks, seed=config.seed)
    learned, test = load("train", count=config.count), load("test", count=config.test_count)
    training, held_out = qa.held_out(learned)
    training += (config.times - 1) * qa.with_titles(learned, training, config.slow)
    slots = qa.MOST_NAMES + qa.MOST_PLACES if learned.embedded else learned.most_names + SPARE_SLOTS
    encoder = qa.Encoder.fit(learned, test, slots=slots, max_facts=config.transformer.max_length - 1)
    network = Reader(encoder.vocabulary.size, encoder.vocabulary.labels, config.transformer)
    validation, tested = encoder.encode(held_out), encoder.encode(test.all)
    answer = jax.jit(partial(likeliest, network))

    def evaluate(run: Run, step: int, state: train.TrainState) -> dict[str, float]:
        found = map_batches(partial(answer, state.params), qa.story_of(validation), ROWS)
        return {"validation_error": float((found != validation["answer"]).mean())}

    def finish(run: Run, result: train.Result) -> dict[str, Any]:
        params = jax.device_get(result.state.params)
        found = map_batches(partial(answer, params), qa.story_of(tested), ROWS)
        run.write_sample("answers.txt", qa.answers_text(test.all[::50], encoder.decode(found, test.all, tested)[::50]))
        draw_attention(run.folder / "attention.png", network, params, encoder, test.all[0])
        return {"embedded": learned.embedded, **qa.task_errors(test, found != tested["answer"], tested["task"])}

    return experiment.Task(
        identity=learned.identity() | {"test": test.fingerprint},
        source=learned.source,
        batches=partial(encoder.batches, training, config.batch_size, seed=config.seed, shapes=config.shapes),
        batch_size=config.batch_size,
        trainer=train.Supervised(
            init_params=partial(init_reader, network, encoder.max_words),
            loss_fn=partial(loss_fn, network),
            tx=train.optimizer(config.optimizer, config.decay_steps),
        ),
        evaluate=evaluate,
        eval_every=config.eval_every,
        finish=finish,
        report=report,
        show=["loss", "validation_error"],
        steps_per_call=1,  # batches differ in shape
        vocabulary=encoder.to_json(),
    )


def loss_fn(network: Reader, params: PyTree, batch: dict[str, Array], key: Array) -> tuple[Array, dict[str, Array]]:
    """Mean cross-entropy of the answers, in nats, and the accuracy."""
    logits, _ = network.apply({"params": params}, *qa.story_of(batch), train=True, rngs={"dropout": key})
    return train.cross_entropy(cast(Array, logits), batch["answer"])


def likeliest(network: Reader, params: PyTree, story: tuple[Array, Array, Array]) -> Array:
    """The most probable label of each question."""
    return cast(Array, network.apply({"params": params}, *story)[0]).argmax(-1)


def draw_attention(path: Path, network: Reader, params: PyTree, encoder: qa.Encoder, asked: qa.Question) -> str | None:
    """Plot each head's attention from the question to each fact, and return the predicted answer."""
    arrays = encoder.encode([asked])
    logits, statistics = apply_with_statistics(network, params, *qa.story_of(arrays))
    (said,) = encoder.decode(np.asarray(logits.argmax(-1)), [asked], arrays)
    lines = qa.reading_lines(asked, arrays, said)
    plots.save_reading(path, statistics["attention"].weights[:, 0, 0, :, : len(lines)], lines)
    return said


def report(run: Run, summary: dict[str, Any]) -> None:
    """Print each task's error, on bAbI with the published one, and the mean error."""
    for name, error in summary["test_errors"].items():
        published = "" if summary["embedded"] else f"   MemN2N {MEMN2N[int(name.split()[0]) - 1]:5.1f}"
        print(f"{name:40} {100 * error:5.1f} % wrong{published}")
    print(f"mean error {100 * summary['mean_error']:.2f} %, {summary['failed']} tasks above 5 %")
    print(f"{summary['parameters']:,} parameters, trained in {summary['train_seconds']} s")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explain(Finished):
    """Plot the attention of a finished run to a story of a task: attention.png in its folder."""

    task: int = 2
    """Number of the task."""
    seed: int = 1
    """Seed that selects the story."""
    data_dir: Path | None = None
    """Folder with bAbI's files, for a run that was trained on them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least(0, "seed")


def explain(options: Explain) -> None:
    """Answer a question of our grammar or of the test files, and plot the attention to its story."""
    run = load_run(NAME, Config, options, vocabulary=True)
    if run.config.tasks and options.task not in run.config.tasks:
        raise UserError(f"--task {options.task}: this run learned {', '.join(map(str, run.config.tasks))}")
    if run.identity["data"]["embedded"] and options.data_dir:
        raise UserError(f"{run.folder} was trained on our own stories: leave --data-dir out")
    if not run.identity["data"]["embedded"] and not options.data_dir:
        raise UserError(f"{run.folder} was trained on bAbI's files: give --data-dir")
    questions = qa.load_questions(options.data_dir, "test", [options.task], count=1, seed=options.seed).all
    question, path = questions[options.seed % len(questions)], run.folder / "attention.png"
    encoder = run.decode(qa.Encoder.from_json)
    network = Reader(encoder.vocabulary.size, encoder.vocabulary.labels, run.config.transformer)
    params = run.params(partial(init_reader, network, encoder.max_words))
    said = draw_attention(path, network, params, encoder, question)
    print(*map(" ".join, question.facts), f"{' '.join(question.question)}? {said}", path, sep="\n")


if __name__ == "__main__":
    experiment.run(NAME, PRESETS, build, __doc__, {"explain": (explain, Explain)})
