"""What a rater is asked: pairs of completions or single ones, in an order that a seed fixes.

Everything here is a pure function of the seed and the completions of the run. Each question of each
step draws its own numbers (counter-based, as sample.py draws tokens), so that a run that goes on
adds pairs and changes none of those that it had. Rewards play no part: to choose pairs by them
would tell a rater something, and bias what a reward model learns.

A pair is two different texts that answer one question at one step. Every tenth pair repeats an
earlier one with its sides swapped: how often a rater agrees with himself bounds what a reward model
can learn from him (data/ratings.py:agreement). Next: rating/session.py.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from reporting.page.saved_run import json_lines
from runtime.errors import InputError
from runtime.keyed_random import keyed

T = TypeVar("T")
REPEAT_EVERY = 10
APART = 5  # pairs at least between two showings: nobody shall remember the answer he gave
TEXTS_AT_ONCE = 4  # of a question, for scores: only scores of one question can be compared


class Completion(NamedTuple):
    """A completion of a run, without what a rater must not know."""

    id: str  # of its question
    step: int
    text: str


@dataclass(frozen=True)
class Item:
    """What is shown at once.

    Attributes:
        texts: (left, right), or the one text to score.
        is_repeat: an earlier pair with its sides swapped.
    """

    id: str
    step: int
    texts: tuple[str, ...]
    is_repeat: bool = False

    @property
    def key(self) -> tuple:
        """Equal for the same texts on the same sides."""
        return self.id, self.step, self.texts


def read_completions(run: Path) -> list[Completion]:
    """The completions in a run's directory, which may still be written.

    Raises InputError for a run without any, and for a row that is none.
    """
    path = run / "completions.jsonl"
    completions = []
    for number, row in enumerate(json_lines(path), start=1):
        completion = Completion(row.get("id"), row.get("step"), row.get("completion"))
        if [type(value) for value in completion] != [str, int, str] or completion.step < 0:
            raise InputError(f"{path}: row {number} is no completion of a run; remove it")
        completions.append(completion)
    if not completions:
        what = "has no completions yet; a run of train_grpo.py writes them at every step"
        raise InputError(f"{path}: {what}")
    return completions


def pairs(completions: Iterable[Completion], seed: int, count: int) -> list[Item]:
    """At most `count` pairs, repeats among them.

    First one of every question and step that has two different texts, then a second one, and so
    on. More of them begin with the same: `count` can grow.
    """
    groups: dict[tuple[int, str], set[str]] = defaultdict(set)
    for completion in completions:
        groups[completion.step, completion.id].add(completion.text)
    order = _in_random_order(groups, f"{seed}|groups")
    originals = _in_turns([_pairs_of(*key, groups[key], seed) for key in order], 1)
    return _with_repeats(originals, seed, count)


def singles(completions: Iterable[Completion], seed: int, count: int) -> list[Item]:
    """At most `count` completions to score, each text of a question once.

    Questions that have one text alone are left out: its score could be compared with no other.
    """
    first_steps: dict[str, dict[str, int]] = defaultdict(dict)
    for completion in completions:
        steps = first_steps[completion.id]
        steps[completion.text] = min(completion.step, steps.get(completion.text, completion.step))
    questions = [id for id, steps in first_steps.items() if len(steps) > 1]
    sources = [
        _singles_of(id, first_steps[id], seed) for id in _in_random_order(questions, f"{seed}|ids")
    ]
    return list(islice(_in_turns(sources, TEXTS_AT_ONCE), count))


def _pairs_of(step: int, id: str, texts: set[str], seed: int) -> Iterator[Item]:
    """All pairs of a group. Each text comes first or second by chance, so that side is no hint."""
    name = f"{seed}|pair|{step}|{id}"
    possible = _shuffled(list(combinations(sorted(texts), 2)), name)
    for number, pair in enumerate(possible):
        yield Item(id, step, tuple(_shuffled(pair, f"{seed}|sides|{number}|{step}|{id}")))


def _singles_of(id: str, steps: dict[str, int], seed: int) -> Iterator[Item]:
    for text in _in_random_order(steps, f"{seed}|texts|{id}"):
        yield Item(id, steps[text], (text,))


def _in_turns(sources: list[Iterator[Item]], at_once: int) -> Iterator[Item]:
    """A few of the first, a few of the second, ..., again and again until all are exhausted."""
    while sources:
        left = []
        for source in sources:
            items = list(islice(source, at_once))
            yield from items
            left += [source] if len(items) == at_once else []
        sources = left


def _with_repeats(originals: Iterator[Item], seed: int, count: int) -> list[Item]:
    items: list[Item] = []
    repeated: set[tuple] = set()
    while len(items) < count:
        position, item = len(items) + 1, None
        if position % REPEAT_EVERY == 0:
            possible = [old for old in items[:-APART] if not old.is_repeat]
            possible = [old for old in possible if old.key not in repeated]
            old = _shuffled(possible, f"{seed}|repeat|{position}")[0]
            repeated.add(old.key)
            item = replace(old, texts=old.texts[::-1], is_repeat=True)
        item = item or next(originals, None)
        if item is None:
            break
        items.append(item)
    return items


# ---- chance --------------------------------------------------------------------------------------


def _numbers(name: str, count: int) -> np.ndarray:
    """(count,) uint64, a function of the name."""
    return keyed(name).random_raw(count)


def _shuffled(items: Sequence[T], name: str) -> list[T]:
    return [items[i] for i in np.argsort(_numbers(name, len(items)), kind="stable")]


def _in_random_order(items: Iterable[Hashable], name: str) -> list:
    """Each item has its own number: others that come along leave the order of two as it is."""
    return sorted(items, key=lambda item: (_numbers(f"{name}|{item}", 1)[0], item))
