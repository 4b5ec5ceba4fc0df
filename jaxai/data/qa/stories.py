"""Generate stories with questions by a grammar modelled on eleven of the bAbI tasks (arXiv:1502.05698).

Test stories use names and places that occur in no training story.
"""

import logging
import random
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from jaxai.data.dataset import check_split
from jaxai.data.qa.babi import Question, Questions
from jaxai.errors import UserError

logger = logging.getLogger("jaxai.data")
WOMEN = ("anna", "clara", "emma", "helen", "julia", "laura", "nora", "sophie", "alice", "greta", "mia", "vera")
MEN = ("adam", "bruno", "david", "felix", "hugo", "leo", "oscar", "peter", "carl", "ivan", "max", "tom")
TRAIN_NAMES, TEST_NAMES = WOMEN[:8] + MEN[:8], WOMEN[8:] + MEN[8:]
TRAIN_PLACES = (
    *("attic", "balcony", "barn", "bathroom", "bedroom", "cellar", "garage", "garden"),
    *("hallway", "kitchen", "library", "museum", "office", "park", "school", "stable"),
)
TEST_PLACES = ("bakery", "cinema", "harbour", "market", "pantry", "station", "studio", "theatre")
COLOURS, FORMS = ("blue", "green", "red", "yellow"), ("circle", "rectangle", "square", "star")
OPEN_WORDS = frozenset(TRAIN_NAMES + TRAIN_PLACES + COLOURS + FORMS)
"""Words that are read as slots, so that a network cannot memorise them: test stories have other names and places."""

MOST_NAMES, MOST_PLACES = 4, 6  # in a story: the number of slots must be at least their sum
OBJECTS = ("apple", "book", "football", "milk")
MOVES = ("went to", "moved to", "journeyed to", "travelled to", "went back to")
TAKES = ("got", "took", "grabbed", "picked up")
DROPS = ("dropped", "left", "discarded", "put down")
THEN = ("then", "after that", "following that", "afterwards")
NUMBERS = ("none", "one", "two", "three")
PLURALS = {"cat": "cats", "fox": "foxes", "lion": "lions", "mouse": "mice", "sheep": "sheep", "wolf": "wolves"}
SHAPES = tuple(f"{colour} {form}" for colour in COLOURS for form in FORMS)
STEPS = {"north": (0, 1), "south": (0, -1), "east": (1, 0), "west": (-1, 0)}
OPPOSITE = {"north": "south", "south": "north", "east": "west", "west": "east"}
SIDES = {"north": "above", "south": "below", "east": "to the right of", "west": "to the left of"}
COMPASS = {side: f"{side} of" for side in STEPS}
PATHS = tuple((first, second) for first in STEPS for second in STEPS if second != OPPOSITE[first])

Edge = tuple[str, str, str]
"""(thing, side, other): ``thing`` is on that side of ``other``, for instance north."""


class Story(NamedTuple):
    """Facts, a question and its answer as strings, and the indices of the facts that imply the answer."""

    facts: list[str]
    question: str
    answer: str
    support: tuple[int, ...]


def load_stories(split: str, count: int, seed: int) -> Questions:
    """Generate ``count`` questions of each task with a split's names and places; logged (logger ``jaxai.data``).

    Tasks are numbered as in ``STORY_TASKS``. Raises ``ValueError`` as ``generate`` does, and for an unknown split.
    """
    check_split(split)
    names, places = (TRAIN_NAMES, TRAIN_PLACES) if split == "train" else (TEST_NAMES, TEST_PLACES)
    numbers = dict(enumerate(STORY_TASKS, 1))
    tasks = {i: tuple(generate(task, count, seed, names=names, places=places)) for i, task in numbers.items()}
    source = f"stories {split}: {count:,} questions of each of {len(tasks)} tasks from our own grammar, seed {seed}"
    logger.info(source)
    return Questions(f"stories {split}", tasks, numbers, source, True, OPEN_WORDS)


def generate(task: str, count: int, seed: int, *, names: Sequence[str], places: Sequence[str]) -> list[Question]:
    """Generate ``count`` questions of a task, each with its own story.

    They depend on the arguments alone; a larger count only appends questions. Raises ``ValueError`` for an unknown
    task, a count below 1, a negative seed, fewer than 4 names or 6 places, and names or places that are not distinct
    lower-case words.
    """
    if task not in GRAMMARS:
        raise UserError(f"task {task!r} is unknown; choose one of: {', '.join(STORY_TASKS)}")
    if count < 1 or seed < 0:
        raise UserError(f"count is {count} and seed {seed}; choose at least 1 and 0")
    _check_words("names", names, MOST_NAMES)
    _check_words("places", places, MOST_PLACES)
    number = STORY_TASKS.index(task) + 1
    # The words are part of the seed; otherwise test stories would be training stories with other names.
    draws = _Draws(" ".join([task, str(seed), *names, *places]))
    return [_question(number, GRAMMARS[task](draws, names, places)) for _ in range(count)]


def _check_words(argument: str, words: Sequence[str], least: int) -> None:
    if len(words) < least or len(set(words)) < len(words):
        raise UserError(f"{argument} are {len(set(words))} different words of {len(words)}; give {least} or more")
    if bad := [word for word in words if not (word.isalpha() and word == word.lower())]:
        raise UserError(f"{argument} have {bad[0]!r}; give single words in lower case")


def _question(number: int, story: Story) -> Question:
    # Interning stores each word once: 110,000 questions take 130 MB instead of 310.
    facts = tuple(tuple(map(sys.intern, fact.split())) for fact in story.facts)
    return Question(number, facts, tuple(story.question.split()), story.answer, story.support)


class _Draws:
    """Random choices based on ``random()`` with a string seed, a stream that Python guarantees across versions."""

    def __init__(self, seed: str) -> None:
        self.random = random.Random(seed).random

    def below(self, n: int) -> int:
        return int(self.random() * n)

    def between(self, low: int, high: int) -> int:
        """A random integer in ``low`` ... ``high``, both included."""
        return low + int(self.random() * (high - low + 1))

    def choice[T](self, items: Sequence[T]) -> T:
        return items[int(self.random() * len(items))]

    def sample[T](self, items: Iterable[T], count: int) -> list[T]:
        left = list(items)
        return [left.pop(int(self.random() * len(left))) for _ in range(count)]


class _World:
    """People who move, and take and drop objects, with the facts that caused the current state."""

    def __init__(self, draws: _Draws, people: list[str], places: list[str]) -> None:
        self.draws, self.people, self.places = draws, people, places
        self.facts: list[str] = []
        self.moves: dict[str, list[tuple[int, str]]] = {person: [] for person in people}  # fact and place
        self.held: dict[str, list[str]] = {person: [] for person in people}
        self.handled: dict[str, list[int]] = {person: [] for person in people}  # facts in which they took or dropped
        self.lying: dict[str, str] = {}  # where objects were dropped
        self.last: dict[str, tuple[int, str]] = {}  # object -> when it was taken or dropped last, and by whom
        self.seen: dict[str, list[str]] = {}  # object -> the places where it has been
        self.carried: list[tuple[str, str, str, tuple[int, int, int]]] = []  # object, from, to, supporting facts

    def place(self, person: str) -> str:
        """The person's place; before the first move, a private place with the person's name."""
        return self.moves[person][-1][1] if self.moves[person] else person

    def whereabouts(self, thing: str) -> str:
        """The object's place: where it was dropped, or where its carrier is."""
        return self.lying.get(thing) or self.place(self.last[thing][1])

    def act(self, person: str, walking: int) -> None:
        """Add a fact: a move with ``walking`` percent probability, else taking or dropping an object if possible."""
        here, hands = self.place(person), self.held[person]
        taken = {thing for held in self.held.values() for thing in held}
        near = [thing for thing in OBJECTS if thing not in taken and self.lying.get(thing, here) == here]
        near = near if len(hands) < 3 else []
        if not (near or hands) or self.draws.below(100) < walking:
            self.move(person)
        elif not hands or (near and self.draws.below(2)):
            self.take(person, self.draws.choice(near))
        else:
            self.drop(person, self.draws.choice(hands))

    def move(self, person: str) -> None:
        here, now = self.place(person), len(self.facts)
        there = self.draws.choice([place for place in self.places if place != here])
        for thing in self.held[person]:
            if self.moves[person]:
                support = (self.last[thing][0], now, self.moves[person][-1][0])
                self.carried.append((thing, here, there, support))
            self.seen[thing].append(there)
        self.moves[person].append((now, there))
        self.facts.append(_moved(self.draws, person, there))

    def take(self, person: str, thing: str) -> None:
        self.held[person].append(thing)
        self.lying.pop(thing, None)
        self.seen.setdefault(thing, [self.place(person)])
        self._handle(person, thing, TAKES)

    def drop(self, person: str, thing: str) -> None:
        self.held[person].remove(thing)
        self.lying[thing] = self.place(person)
        self._handle(person, thing, DROPS)

    def _handle(self, person: str, thing: str, verbs: tuple[str, ...]) -> None:
        self.last[thing] = len(self.facts), person
        self.handled[person].append(len(self.facts))
        there = " there" if self.draws.below(2) else ""
        self.facts.append(f"{person} {self.draws.choice(verbs)} the {thing}{there}")


def _moved(draws: _Draws, who: str, place: str) -> str:
    return f"{who} {draws.choice(MOVES)} the {place}"


def _acted(
    draws: _Draws, names: Sequence[str], places: Sequence[str], people: int, facts: tuple[int, int], walking: int
) -> _World:
    """Simulate a world with 2 to ``people`` people and a number of facts in the given range."""
    who = draws.sample(names, draws.between(2, people))
    world = _World(draws, who, draws.sample(places, draws.between(4, MOST_PLACES)))
    for _ in range(draws.between(*facts)):
        world.act(draws.choice(who), walking)
    return world


def _one_fact(draws: _Draws, names: Sequence[str], places: Sequence[str]) -> Story:
    world = _acted(draws, names, places, MOST_NAMES, (2, 10), 100)
    person = draws.choice([person for person in world.people if world.moves[person]])
    return Story(world.facts, f"where is {person}", world.place(person), (world.moves[person][-1][0],))


def _two_facts(draws: _Draws, names: Sequence[str], places: Sequence[str]) -> Story:
    while True:
        world = _acted(draws, names, places, 3, (2, 12), 50)
        things = [thing for thing in world.last if world.whereabouts(thing) in world.places]
        if things:
            break
    thing = draws.choice(things)
    handled, person = world.last[thing]
    moves = [index for index, _ in world.moves[person] if index < handled or thing not in world.lying]
    return Story(world.facts, f"where is the {thing}", world.whereabouts(thing), (handled, moves[-1]))


def _three_facts(draws: _Draws, names: Sequence[str], places: Sequence[str]) -> Story:
    """Ask only about a place that the object has visited exactly once."""
    while True:
        world = _acted(draws, names, places, 3, (6, 16), 60)
        ways = [way for way in world.carried if world.seen[way[0]].count(way[2]) == 1]
        if ways:
            break
    thing, before, place, support = draws.choice(ways)
    return Story(world.facts, f"where was the {thing} before the {place}", before, support)


def _two_arguments(draws: _Draws, names: Sequence[str], places: Sequence[str]) -> Story:
    edges = _map(draws, draws.sample(places, draws.between(3, 5)))
    b, side, a, index = draws.choice(_legs(edges))
    if draws.below(2):
        return Story(_told(edges, COMPASS), f"what is {COMPASS[side]} the {b}", a, (index,))
    return Story(_told(edges, COMPASS), f"what is the {a} {COMPASS[side]}", b, (index,))


def _carrying(draws: _Draws, names: Sequence[str], places: Sequence[str]) -> tuple[_World, str]:
    """A world, and one of its people who carries 0, 1, 2 or 3 objects, with equal probability."""
    wanted = draws.below(4)
    while True:
        world = _acted(draws, names, places, 3, (3, 10), 30)
        while len(world.facts) <= 12:
            people = [p for p in world.people if world.handled[p] and len(world.held[p]) == wanted]
            if people:
                return world, draws.choice(people)
            world.act(draws.choice(world.people), 30)


def _counting(draws: _Draws, names: Sequence[str], places: Sequence[str]) -> Story:
    world, person = _carrying(draws, names, places)
    question = f"how many objects is {person} carrying"
    return Story(world.facts, question, NUMBERS[len(world.held[person])], tuple(world.handled[person]))


def _lists(draws: _Draws, names: Sequence[str], places: Sequence[str]) -> Story:
    """The answer is a sorted set; in the official task it is in the order of taking."""
    world, person = _carrying(draws, names, places)
    answer = ",".join(sorted(world.held[person])) or "nothing"
    return Story(world.facts, f"what is {person} carrying", answer, tuple(world.handled[person]))


def _negation(draws: _Draws, names: Sequence[str], places: Sequence[str]) -> Story:
    """Ask about the place where a person is (half of the questions), is said not to be, or another place."""
    people, rooms = draws.sample(names, draws.between(2, 4)), draws.sample(places, draws.between(3, 5))
    case = draws.choice(("yes", "yes", "not", "elsewhere"))
    while True:
        facts, state = _presence(draws, people, rooms)
        known = [person for person in state if state[person][0] == (case != "not")]
        if known:
            break
    person = draws.choice(known)
    _, place, index = state[person]
    if case == "elsewhere":
        place = draws.choice([room for room in rooms if room != place])
    return Story(facts, f"is {person} in the {place}", "yes" if case == "yes" else "no", (index,))


def _presence(draws: _Draws, people: list[str], rooms: list[str]) -> tuple[list[str], dict[str, tuple[bool, str, int]]]:
    """Facts about where people are or are not, and each person's latest state: (is there, place, index of the fact)."""
    facts: list[str] = []
    state: dict[str, tuple[bool, str, int]] = {}
    for index in range(draws.between(2, 10)):
        person = draws.choice(people)
        there, place, _ = state.get(person, (False, "", 0))
        positive = draws.below(5) < 3
        if positive or not there:  # if a person is known to be somewhere, only that place is negated
            place = draws.choice([room for room in rooms if room != place])
        if not positive:
            facts.append(f"{person} is {draws.choice(('not', 'no longer'))} in the {place}")
        else:
            facts.append(f"{person} is in the {place}" if draws.below(2) else _moved(draws, person, place))
        state[person] = positive, place, index
    return facts, state


def _coreference(draws: _Draws, names: Sequence[str], places: Sequence[str]) -> Story:
    people, rooms = draws.sample(names, draws.between(3, 4)), draws.sample(places, draws.between(4, MOST_PLACES))
    facts: list[str] = []
    state: dict[str, tuple[str, tuple[int, ...]]] = {}
    who: list[str] = []
    for _ in range(draws.between(2, 4)):
        who = draws.sample(people, draws.between(1, 2))
        pronoun = "they" if len(who) == 2 else "she" if who[0] in WOMEN else "he"
        route, named = draws.sample(rooms, draws.between(1, 3)), len(facts)
        facts.append(_moved(draws, " and ".join(who), route[0]))
        facts += [f"{draws.choice(THEN)} {_moved(draws, pronoun, room)}" for room in route[1:]]
        support = (named,) if len(route) == 1 else (named, len(facts) - 1)
        state |= dict.fromkeys(who, (route[-1], support))
    earlier = [person for person in state if person not in who]  # else 2 in 3 questions would be about the last route
    person = draws.choice(earlier if earlier and draws.below(2) else list(state))
    return Story(facts, f"where is {person}", *state[person])


def _deduction(draws: _Draws, names: Sequence[str], places: Sequence[str]) -> Story:
    kinds = draws.sample(PLURALS, draws.between(3, 5))
    fears = {kind: draws.choice([other for other in kinds if other != kind]) for kind in kinds}
    people = {name: draws.choice(kinds) for name in draws.sample(names, draws.between(2, 4))}
    said = {kind: f"{PLURALS[kind]} are afraid of {PLURALS[fears[kind]]}" for kind in kinds}
    said |= {name: f"{name} is a {kind}" for name, kind in people.items()}
    order = draws.sample(said, len(said))
    name = draws.choice(list(people))
    support = order.index(name), order.index(people[name])
    return Story([said[key] for key in order], f"what is {name} afraid of", fears[people[name]], support)


def _positions(draws: _Draws, names: Sequence[str], places: Sequence[str]) -> Story:
    """Ask about two shapes connected by a third, only along directions in which they differ."""
    edges = _map(draws, draws.sample(SHAPES, draws.between(3, 5)))
    start, way, end, support = draws.choice(_ways(edges))
    side, yes = draws.choice(way), draws.below(2)
    asked = SIDES[side if yes else OPPOSITE[side]]
    return Story(_told(edges, SIDES), f"is the {end} {asked} the {start}", "yes" if yes else "no", support)


def _path_finding(draws: _Draws, names: Sequence[str], places: Sequence[str]) -> Story:
    wanted = draws.choice(PATHS)
    while True:
        edges = _map(draws, draws.sample(places, draws.between(4, MOST_PLACES)))
        ways = [way for way in _ways(edges) if way[1] == wanted]
        if ways:
            break
    start, (first, second), end, support = draws.choice(ways)
    answer = f"{first[0]},{second[0]}"
    return Story(_told(edges, COMPASS), f"how do you go from the {start} to the {end}", answer, support)


def _map(draws: _Draws, things: Sequence[str]) -> list[Edge]:
    """A random tree of neighbours on a grid, with distinct cells, shuffled edges and random edge directions."""
    cells, edges = {things[0]: (0, 0)}, []
    for thing in things[1:]:
        taken = set(cells.values())
        free = [
            (other, side, cell)
            for other, (x, y) in cells.items()
            for side, (right, up) in STEPS.items()
            if (cell := (x + right, y + up)) not in taken
        ]
        other, side, cells[thing] = draws.choice(free)
        edges.append((thing, side, other) if draws.below(2) else (other, OPPOSITE[side], thing))
    return draws.sample(edges, len(edges))


def _told(edges: list[Edge], words: dict[str, str]) -> list[str]:
    return [f"the {a} is {words[side]} the {b}" for a, side, b in edges]


def _legs(edges: list[Edge]) -> list[tuple[str, str, str, int]]:
    """All single steps: start, direction, end, and the index of the fact that states it."""
    legs = [(b, side, a, index) for index, (a, side, b) in enumerate(edges)]
    return legs + [(a, OPPOSITE[side], b, index) for index, (a, side, b) in enumerate(edges)]


def _ways(edges: list[Edge]) -> list[tuple[str, tuple[str, str], str, tuple[int, int]]]:
    """All paths of two steps: start, the two directions, end, the indices of the two facts."""
    legs = _legs(edges)
    return [
        (start, (first, second), end, (i, j))
        for start, first, middle, i in legs
        for other, second, end, j in legs
        if other == middle and i != j
    ]


GRAMMARS: dict[str, Callable[[_Draws, Sequence[str], Sequence[str]], Story]] = {
    "one-supporting-fact": _one_fact,
    "two-supporting-facts": _two_facts,
    "three-supporting-facts": _three_facts,
    "two-argument-relations": _two_arguments,
    "counting": _counting,
    "lists": _lists,
    "negation": _negation,
    "coreference": _coreference,
    "deduction": _deduction,
    "positions": _positions,
    "path-finding": _path_finding,
}
STORY_TASKS = tuple(GRAMMARS)
