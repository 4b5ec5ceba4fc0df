"""Read and write stories with questions in the format of the bAbI tasks (Weston et al. 2015, arXiv:1502.05698).

train = load_babi("data", "train")                    # a folder of qa1_..._train.txt, or the archive
write_babi(train, "copy", "train")
for question in train.tasks[1]: ...
"""

import dataclasses
import functools
import gzip
import hashlib
import io
import itertools
import logging
import lzma
import os
import re
import sys
import tarfile
import zlib
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from jaxai.data.dataset import Dataset, check_split
from jaxai.data.text.corpus import read_utf8
from jaxai.errors import MissingFileError, UserError

logger = logging.getLogger("jaxai.data")

Sentence = tuple[str, ...]
Files = dict[str, Path | bytes]

BABI_TASKS = range(1, 21)
FILE = re.compile(r"qa([0-9]{1,2})(?:_([A-Za-z0-9-]+))?_(train|test)\.txt")
ARCHIVES = ("en*.tar*", "tasks_1-20*.tar*", "babi*.tar*")  # --data-dir may hold other data's archives too
ARCHIVE_LIMIT = 400_000_000  # bytes unpacked: the full release, with all languages and sizes, has about 150 million
FILE_LIMIT = 16_000_000  # bytes: the longest official file, task 3 with 10,000 questions, has 5.3 million
STORY_LIMIT = 1_000  # lines: the longest official story has below 400; a question stores all preceding facts


@dataclasses.dataclass(frozen=True)
class Question:
    """A question and the preceding facts of its story, as lower-cased words without punctuation.

    ``answer`` is one label, even if it is a list ("football,milk"). ``support`` holds the indices of the facts that
    imply the answer, in the order of the file.
    """

    task: int
    facts: tuple[Sentence, ...]
    question: Sentence
    answer: str
    support: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Questions(Dataset):
    """Questions by task number, and the tasks' ``titles``.

    ``open_words`` are interchangeable names, which a network can read as anonymous slots.
    """

    name: str
    tasks: dict[int, tuple[Question, ...]] = dataclasses.field(repr=False)
    titles: dict[int, str]
    source: str
    embedded: bool
    open_words: frozenset[str] = dataclasses.field(default=frozenset(), repr=False)

    @property
    def all(self) -> tuple[Question, ...]:
        """The questions of all tasks, concatenated."""
        return tuple(itertools.chain.from_iterable(self.tasks.values()))

    @property
    def most_names(self) -> int:
        """The largest number of different ``open_words`` in one story with its question."""
        return max(len(self.open_words.intersection(q.question, *q.facts)) for q in self.all)

    def only(self, tasks: Iterable[int]) -> "Questions":
        """Select the questions of the given tasks, in the given order; all tasks if none are given."""
        return dataclasses.replace(self, tasks={task: self.tasks[task] for task in tuple(tasks) or self.tasks})

    @functools.cached_property
    def fingerprint(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """A prefix of the SHA-256 of the tasks in the format of ``to_lines``, in hexadecimal."""
        digest = hashlib.sha256()
        for task, questions in self.tasks.items():
            digest.update("\n".join([f"task {task}", *to_lines(questions), ""]).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()[:16]


def held_out(questions: Questions) -> tuple[list[Question], list[Question]]:
    """Split each task's questions into the first nine tenths, for training, and the rest."""
    train, rest = [], []
    for task in questions.tasks.values():
        cut = len(task) * 9 // 10
        train, rest = [*train, *task[:cut]], [*rest, *task[cut:]]
    return train, rest


def load_babi(folder: str | os.PathLike, split: str, tasks: Iterable[int] = BABI_TASKS) -> Questions:
    """Load ``qaN_TITLE_SPLIT.txt`` for every N in ``tasks``, from a folder or the release's archive.

    The files may be in ``folder`` or up to two levels below it, or else in an archive there (``en*.tar.xz``,
    ``tasks_1-20*.tar.gz``), which is read in memory. ``folder/babi`` is searched first, and ``folder`` may itself be an
    archive. If there are several versions, ``en`` is used; for another, such as ``en-10k``, give its folder. The source
    is logged in one line (logger ``jaxai.data``). ``open_words`` are the words capitalised inside a sentence: in the
    official files, the names of persons, and of the animals in task 16.

    Raises ``FileNotFoundError`` for a missing folder or task file; ``ValueError``, with file and line, for lines that
    are not ``N sentence.`` or ``N question?<tab>answer<tab>numbers of facts``, numbers that name no fact before them,
    files without a question, not UTF-8 or too large, damaged archives and an unknown split.
    """
    check_split(split)
    where, files = _find(Path(folder).expanduser())
    chosen = _by_task(where, files, split)
    wanted = tuple(tasks)
    missing = [task for task in wanted if task not in chosen]
    if missing:
        names = ", ".join(f"qa{task}_*_{split}.txt" for task in missing)
        raise MissingFileError(f"{where}: no file {names}; add what is missing from the same release")
    questions, titles, names = {}, {}, set()
    for task in wanted:
        file, titles[task] = chosen[task]
        label = f"{where}/{file}"
        text = _text(files[file], label)
        questions[task] = parse(text, task, label)
        names |= _names(text)
    name = f"{PurePosixPath(where).name} {split}"
    count = sum(map(len, questions.values()))
    source = f"bAbI {name}: {count:,} questions of {len(wanted)} tasks from {where}"
    logger.info(source)
    return Questions(f"bAbI {name}", questions, titles, source, False, frozenset(names))


def parse(text: str, task: int, where: str) -> tuple[Question, ...]:
    """Parse the questions of a task's file; ``ValueError`` messages begin with ``where`` and the line number."""
    questions: list[Question] = []
    facts: list[Sentence] = []
    lines: dict[int, int] = {}  # the number of a fact's line -> its index
    previous = 0
    for at, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            number, fields = _fields(line, previous)
            if number == 1:
                facts, lines = [], {}
            if len(fields) == 1:
                lines[number] = len(facts)
                facts.append(_words(fields[0]))
            else:
                questions.append(_question(task, tuple(facts), lines, *fields))
        except ValueError as error:
            raise UserError(f"{where}, line {at}: {error}") from None
        previous = number
    if not questions:
        raise UserError(f"{where}: no question in it; give a file of the bAbI tasks")
    return tuple(questions)


def _fields(line: str, previous: int) -> tuple[int, list[str]]:
    """The line's number and its fields: one for a fact, three for a question."""
    match = re.match(r"\s*([0-9]{1,4})\s+(?=\S)", line)
    if not match:
        raise UserError("does not begin with the line's number; write `N sentence.`")
    number = int(match[1])
    if number not in (1, previous + 1):
        raise UserError(f"number {number} after {previous}; they count on by one, and 1 begins a story")
    if number > STORY_LIMIT:
        raise UserError(f"a story of more than {STORY_LIMIT:,} lines; begin the next with number 1")
    fields = line[match.end() :].split("\t")
    if len(fields) not in (1, 3):
        raise UserError(f"{len(fields) - 1} tabs; a fact has none, a question two: before its answer and its support")
    return number, fields


def _question(
    task: int, facts: tuple[Sentence, ...], lines: dict[int, int], question: str, answer: str, support: str
) -> Question:
    label = " ".join(answer.lower().split())
    if not label:
        raise UserError("the question has no answer between its tabs")
    for number in support.split():
        if not re.fullmatch("[0-9]{1,4}", number) or int(number) not in lines:
            raise UserError(f"support {number[:20]!r} is not the number of an earlier fact of the story")
    return Question(task, facts, _words(question), label, tuple(lines[int(number)] for number in support.split()))


def _words(sentence: str) -> Sentence:
    words = tuple(sys.intern(bare) for word in sentence.lower().split() if (bare := word.strip(".,?!")))
    if not words:
        raise UserError("no word behind the line's number")
    return words


def _names(text: str) -> set[str]:
    """Capitalised words other than the first of a sentence, lower-cased."""
    inside = [word.strip(".,?!") for line in text.split("\n") for word in line.split("\t")[0].split()[2:]]
    return {word.lower() for word in inside if word[:1].isupper()}


def to_lines(questions: Iterable[Question]) -> list[str]:
    """The lines of a task's file; the inverse of ``parse``.

    A question whose facts begin with all facts of the previous question continues that question's story.
    """
    result: list[str] = []
    facts: tuple[Sentence, ...] = ()
    lines: list[int] = []  # of the facts of this story
    count = 0
    for question in questions:
        new = len(question.facts) - len(facts)
        if question.facts[: len(facts)] != facts or count + new >= STORY_LIMIT:
            facts, lines, count = (), [], 0
        for fact in question.facts[len(facts) :]:
            count += 1
            lines.append(count)
            result.append(f"{count} {' '.join(fact)}.")
        facts = question.facts
        count += 1
        support = " ".join(str(lines[index]) for index in question.support)
        result.append(f"{count} {' '.join(question.question)}?\t{question.answer}\t{support}")
    return result


def write_babi(questions: Questions, folder: str | os.PathLike, split: str) -> list[Path]:
    """Write ``qaN_TITLE_SPLIT.txt`` for every task into ``folder``, creating it if necessary; return the files."""
    check_split(split)
    root = Path(folder).expanduser()
    root.mkdir(parents=True, exist_ok=True)
    paths = []
    for task, part in questions.tasks.items():
        paths.append(root / f"qa{task}_{questions.titles[task]}_{split}.txt")
        paths[-1].write_text("\n".join([*to_lines(part), ""]), encoding="utf-8")
    return paths


def _find(folder: Path) -> tuple[str, Files]:
    """The location of the task files, and the files by name."""
    if not folder.exists():
        raise MissingFileError(f"folder {folder} does not exist; give the one that holds the bAbI tasks")
    if folder.is_file():
        groups = _in_archive(folder)
    else:
        groups = next(filter(None, map(_groups, (folder / "babi", folder))), {})
    if not groups:
        raise MissingFileError(f"{folder}: no bAbI files (qa1_..._train.txt) nor an archive of them ({ARCHIVES[0]})")
    choice = [name for name in groups if PurePosixPath(name).name == "en"] or list(groups)
    if len(choice) > 1:
        raise UserError(f"{folder}: bAbI files in {', '.join(sorted(choice)[:8])}; give one of these folders")
    return choice[0], groups[choice[0]]


def _groups(root: Path) -> dict[str, Files]:
    """The task files by folder; if there are none, those of an archive."""
    groups: dict[str, Files] = defaultdict(dict)
    for level in ("", "*/", "*/*/"):
        for path in root.glob(f"{level}qa*.txt"):
            if FILE.fullmatch(path.name):
                groups[path.parent.as_posix()][path.name] = path
    archives = sorted(path for pattern in ARCHIVES for path in root.glob(pattern) if path.is_file())
    return groups or (_in_archive(archives[0]) if archives else {})


def _in_archive(path: Path) -> dict[str, Files]:
    """The task files of an archive by folder inside it. Nothing is written to disk."""
    groups: dict[str, Files] = defaultdict(dict)
    try:
        with tarfile.open(fileobj=io.BytesIO(_unpacked(path)), mode="r:") as archive:
            for member in archive:
                inside = PurePosixPath(member.name)
                if not (member.isfile() and member.name.isprintable() and FILE.fullmatch(inside.name)):
                    continue
                if member.size > FILE_LIMIT:  # for a sparse file, this size includes the holes
                    raise UserError(f"{path}: {member.name} has {member.size:,} bytes, no bAbI task has so many")
                content = archive.extractfile(member)
                groups[f"{path.as_posix()}/{inside.parent}"][inside.name] = content.read() if content else b""
    except (tarfile.TarError, OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise UserError(f"{path}: damaged archive or none ({error}); fetch it again") from error
    return groups


def _unpacked(path: Path) -> bytes:
    """The bytes of a tar file, at most ``ARCHIVE_LIMIT``: tarfile trusts the sizes that headers claim."""
    opener = {".gz": gzip.open, ".tgz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    with opener(path, "rb") as file:
        content = file.read(ARCHIVE_LIMIT + 1)
    if len(content) > ARCHIVE_LIMIT:
        raise UserError(f"{path}: unpacks to more than {ARCHIVE_LIMIT:,} bytes; unpack it and give the folder")
    return content


def _by_task(where: str, files: Files, split: str) -> dict[int, tuple[str, str]]:
    """Map each task to its file name for a split, and its title."""
    chosen: dict[int, tuple[str, str]] = {}
    for file in sorted(files):
        match = FILE.fullmatch(file)
        if match and match[3] == split:
            task = int(match[1])
            if task in chosen:
                raise UserError(f"{where}: {chosen[task][0]} and {file} are both task {task}; leave one")
            chosen[task] = file, match[2] or f"task-{task}"
    return chosen


def _text(content: Path | bytes, where: str) -> str:
    if isinstance(content, Path):
        return read_utf8(content)
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 ({error.reason} at offset {error.start:,}); fetch it again") from error
