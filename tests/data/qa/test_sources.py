"""Questions from files or from the grammar, by task and by title."""

import dataclasses

import pytest

from jaxai.data.qa import (
    held_out,
    load_questions,
    with_titles,
    write_babi,
)
from jaxai.data.qa.stories import load_stories


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
