"""Questions from bAbI's files or from our own grammar."""

import os
from collections.abc import Collection, Sequence

from jaxai.data.qa.babi import BABI_TASKS, Question, Questions, load_babi
from jaxai.data.qa.stories import STORY_TASKS, load_stories
from jaxai.errors import UserError


def load_questions(
    folder: str | os.PathLike | None, split: str, tasks: Collection[int] = (), *, count: int, seed: int
) -> Questions:
    """Load the questions of some tasks, by default all: bAbI's from ``folder``; without it, ``count`` per task of ours.

    Raises ``ValueError`` for an unknown task, and as `load_babi` and `load_stories` do.
    """
    known = BABI_TASKS if folder else range(1, len(STORY_TASKS) + 1)
    if strange := set(tasks) - set(known):
        raise UserError(f"task {min(strange)}: there are {known[0]} to {known[-1]}")
    return load_babi(folder, split, tasks or known) if folder else load_stories(split, count, seed).only(tasks)


def with_titles(questions: Questions, chosen: Sequence[Question], titles: Collection[str]) -> list[Question]:
    """Select from ``chosen`` the questions of tasks with these titles.

    Titles of our grammar that bAbI's files lack are ignored; ``ValueError`` for a title known to neither.
    """
    if strange := set(titles) - {*questions.titles.values(), *STORY_TASKS}:
        raise UserError(f"task {min(strange)}: the tasks are {', '.join(questions.titles.values())}")
    return [question for question in chosen if questions.titles[question.task] in titles]
