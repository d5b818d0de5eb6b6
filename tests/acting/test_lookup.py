"""`--task lookup`: what a call reads, and that nothing but reading tells the answer.

Run: pytest tests/acting/test_lookup.py
"""

import re
from collections import Counter

import pytest

from acting.lookup import Lookup, Shelf
from config import TaskConfig
from data.examples import Example
from rewards import WEIGHTS
from tasks.lookup import load

SHELF = Shelf(("round red", "thin blue", "7"), ("week 11", "week 22", "week 33"), needed=2)


def play(*said):
    world, seen = Lookup(), []
    state = world.start(Example("e", (), "When?", "22", world=SHELF))
    for text in said:
        state, observation = world.act(state, text)
        seen.append(observation)
    return world, state, seen


@pytest.mark.parametrize(
    "argument, shown",
    [
        ("thin blue", "week 22"),
        (" Thin  BLUE. ", "week 22"),
        ("2", "week 22"),
        ("7", "week 33"),  # a title that is a number is that title
        ("4", "outside"),
        ("0", "outside"),
        ("blue", "outside"),
        ("week 22", "outside"),
        ("../../etc/passwd", "outside"),
        ("__class__", "outside"),
        ("", "malformed"),
        ("x" * 5000, "malformed"),
        ("9" * 300, "outside"),
    ],
)
def test_a_call_reads_the_fact_with_that_title_or_says_why_not(argument, shown):
    _, state, (seen,) = play(f"<fact>{argument}</fact>")
    if shown.startswith("week"):
        assert seen.parts == ("<look>", shown, "</look>") and state.outcomes == ("done",)
    else:
        assert seen.outcome == shown and "week" not in "".join(seen.parts)


def test_two_of_the_facts_may_be_read():
    calls = [f"<fact>{title}</fact>" for title in ("1", "round red", "3", "2")]
    world, state, seen = play(*calls)
    assert [o.outcome for o in seen] == ["done", "repeated", "late", "over"] and seen[3].is_last
    parts = world.reward(state.example, state, "".join(calls) + "<answer>11</answer>")
    assert parts["read_needed"] == 0.0 and (parts["calls"], parts["calls_invalid"]) == (4.0, 3.0)
    assert set(world.weights.values()) == {0.0} and parts.keys() == world.weights.keys()


@pytest.fixture(scope="module")
def task():
    return load(TaskConfig(task="lookup", train_size=200, held_out_size=100), None)


def test_a_demonstration_reads_the_right_fact_and_answers_with_its_colour(task):
    read = [bool(e.reasoning.calls) for e in task.train]
    assert 0.4 * 200 < sum(read) < 0.6 * 200, "half of them show how to read"
    for split in (task.train, *task.splits.values()):
        for e in split:
            if split is task.train and not e.reasoning.calls:
                continue
            titles = re.search(r"Facts: (.*?)\. To read", e.question)[1].split(", ")
            assert tuple(titles) == e.world.titles and len(set(titles)) == 6
            ((thought, call),) = e.reasoning.calls
            said = f"<think>{thought}</think>{call}"
            state, seen = task.environment.act(task.environment.start(e), said)
            assert seen.parts[1] == f"its fruit is {e.target}"
            text = f"{said}<think>{e.reasoning.thought}</think><answer>{e.target}</answer>"
            assert task.environment.reward(e, state, text)["read_needed"] == 1.0
            assert task.reward(text, e, WEIGHTS, 0.0).total == 1.5
            assert task.scores(text, e) == {"strict": 1.0, "format": 1.0}
            wrong = text.replace(f"<answer>{e.target}", "<answer>green")
            assert task.scores(wrong, e)["strict"] == 0.0


def test_no_colour_and_no_place_of_the_list_is_a_good_guess(task):
    fruits = Counter(e.target for e in task.train)
    places = Counter(e.world.needed for e in task.train)
    assert fruits.most_common(1)[0][1] < 0.25 * 200 and len(fruits) == 7
    own = [e.world.titles[e.world.needed - 1].split()[1] == e.target for e in task.train]
    assert sum(own) < 0.25 * 200, "the flower's own colour is no hint"
    assert max(places.values()) < 0.3 * 200 and len(places) == 6
    seen = Counter((e.world.titles[e.world.needed - 1], e.target) for e in task.train)
    assert max(seen.values()) <= 5, "made anew for every question"


def test_out_of_distribution_all_titles_are_alike(task):
    for e in task.splits["ood"]:
        shape, colour = e.world.titles[e.world.needed - 1].split()
        assert all(shape in title or colour in title for title in e.world.titles)
