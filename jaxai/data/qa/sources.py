"""Questions from bAbI's files or from our own grammar."""

import os
from collections.abc import Collection, Sequence

from jaxai.data.qa.babi import BABI_TASKS, Question, Questions, load_babi
from jaxai.data.qa.stories import STORY_TASKS, load_stories
from jaxai.errors import UserError


def load_questions(
    folder: str | os.PathLike | None, split: str, tasks: Collection[int] = (), *, count: int, seed: int
) -> Questions:
    """The questions of some tasks, by default of all: bAbI's in ``folder``, or without it ``count`` of each of ours.

    Raises ``ValueError`` for an unknown task, and as `load_babi` and `load_stories` do.
    """
    known = BABI_TASKS if folder else range(1, len(STORY_TASKS) + 1)
    if strange := set(tasks) - set(known):
        raise UserError(f"task {min(strange)}: there are {known[0]} to {known[-1]}")
    return load_babi(folder, split, tasks or known) if folder else load_stories(split, count, seed).only(tasks)


def with_titles(questions: Questions, chosen: Sequence[Question], titles: Collection[str]) -> list[Question]:
    """Those of ``chosen`` whose tasks have these titles; bAbI's files may lack some of our grammar's.

    Raises ``ValueError`` for a title that is neither the files' nor the grammar's.
    """
    if strange := set(titles) - {*questions.titles.values(), *STORY_TASKS}:
        raise UserError(f"task {min(strange)}: the tasks are {', '.join(questions.titles.values())}")
    return [question for question in chosen if questions.titles[question.task] in titles]
