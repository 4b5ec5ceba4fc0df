"""Questions as a run sees them: split, chosen, encoded, scored, written out."""

import dataclasses

import numpy as np
import pytest

from jaxai.data.qa import (
    Encoder,
    answers_text,
    held_out,
    load_questions,
    load_stories,
    reading_lines,
    task_errors,
    with_titles,
    write_babi,
)


def test_errors_by_task():
    stories = load_stories("test", 4, 0)
    task = np.repeat(np.arange(1, 12, dtype=np.int32), 4)
    wrong = np.zeros(44, bool)
    wrong[:3] = True
    found = task_errors(stories, wrong, task)
    assert found["test_errors"]["1 one-supporting-fact"] == 0.75
    assert found["mean_error"] == pytest.approx(0.75 / 11)
    assert found["failed"] == 1


def test_a_tenth_of_each_task_validates():
    train, val = held_out(load_stories("train", 20, 0))
    assert [len(train), len(val)] == [198, 22]
    assert {question.task for question in val} == set(range(1, 12))


def test_tasks_by_title():
    stories = load_stories("train", 10, 0)
    train, _ = held_out(stories)
    slow = "positions", "path-finding"
    assert {question.task for question in with_titles(stories, train, slow)} == {10, 11}
    assert len(with_titles(stories, train, slow)) == 18
    files = dataclasses.replace(stories, titles=stories.titles | {10: "positional-reasoning"})  # as bAbI's
    assert {question.task for question in with_titles(files, train, slow)} == {11}
    with pytest.raises(ValueError, match="task walking: the tasks are one-supporting-fact"):
        with_titles(stories, train, ["walking"])


def test_questions_of_files_and_of_the_grammar(tmp_path):
    ours = load_questions(None, "train", [2, 5], count=3, seed=0)
    assert ours.tasks == {task: load_stories("train", 3, 0).tasks[task] for task in (2, 5)}
    write_babi(load_stories("train", 3, 0), tmp_path, "train")
    files = load_questions(tmp_path, "train", [2, 5], count=100, seed=1)
    assert [question.answer for question in files.all] == [question.answer for question in ours.all]
    for folder, least, most in ((None, 0, 11), (tmp_path, 21, 20)):
        with pytest.raises(ValueError, match=f"task {least}: there are 1 to {most}"):
            load_questions(folder, "train", [least], count=1, seed=0)


def test_an_encoder_keeps_the_sizes_of_all_questions():
    train, test = load_stories("train", 5, 0), load_stories("test", 5, 0)
    encoder = Encoder.fit(train, test, slots=10, max_facts=4)
    every = *train.all, *test.all
    assert encoder.max_facts == 4
    assert encoder.max_words == max(len(line) for q in every for line in (*q.facts, q.question))
    assert Encoder.from_json(encoder.to_json()) == encoder
    arrays = encoder.encode(test.all)
    assert arrays["facts"].shape == (55, 4, encoder.max_words)
    whole = Encoder.fit(train, test, slots=10, max_facts=999)
    assert whole.max_facts == max(len(q.facts) for q in every)
    batch = next(whole.batches(train.all, 8, seed=0))
    assert batch["question"].shape == (8, encoder.max_words)


def test_stories_to_read():
    (question,) = load_stories("test", 1, 0).only([1]).all
    stories = load_stories("test", 1, 0)
    encoder = Encoder.fit(stories, stories, slots=10, max_facts=len(question.facts))
    lines = reading_lines(question, encoder.encode([question]), "nowhere")
    assert lines[0] == f"{' '.join(question.question)}? nowhere ({question.answer})"
    marked = [len(question.facts) - row for row, line in enumerate(lines[1:], 1) if line.startswith("* ")]
    assert sorted(marked) == sorted(question.support)
    assert lines[1].removeprefix("* ") == " ".join(question.facts[-1])
    assert answers_text([question], [None]).splitlines()[-1].endswith(f"? {question.answer} > None")
