"""`--task walk`: moves, the edge of the bed, detours, and what arriving is.

Run: pytest tests/acting/test_walk.py
"""

import pickle
from collections import Counter
from functools import partial

import numpy as np
import pytest
from PIL import Image

from acting.walk import Bed, Walk
from config import TaskConfig
from data.examples import Example
from data.garden.bed import draw_bed, place, way
from data.garden.world import Flower
from rewards import WEIGHTS
from runtime.errors import InputError
from tasks.walk import load

FLOWERS = {(2, 1): Flower(5, "round", "red", "yellow"), (0, 3): Flower(4, "thin", "blue", "white")}
PICK = "<think>here</think><answer>pick</answer>"


def example(start=(1, 1), goal=(2, 1)):
    bed = Bed(4, (0, 0), 4, start, goal, partial(draw_bed, tuple(FLOWERS.items()), (0, 0), 4, 7))
    return Example("e", (bed.draw(start),), "Walk to the red flower.", "pick", world=bed)


def go(*words):
    return [f"<think>x</think><go>{word}</go>" for word in words]


def play(said, **where):
    world, e, seen = Walk(), example(**where), []
    state = world.start(e)
    for text in said:
        state, observation = world.act(state, text)
        seen.append(observation)
    return world, state, seen


def test_moves_go_where_they_say_and_the_bed_is_shown_again():
    world, state, seen = play(go("north", "east", "South", " west "))
    assert state.done == ((1, 0), (2, 0), (2, 1), (1, 1))
    for cell, observation in zip(state.done, seen, strict=True):
        before, picture, after = observation.parts
        assert (before, after) == ("<look>", "</look>")
        assert np.array_equal(np.asarray(picture), np.asarray(state.example.world.draw(cell)))
    pictures = [np.asarray(o.parts[1], dtype=int) for o in seen]
    changed = np.abs(pictures[0] - pictures[1]).sum(-1) > 0
    rows, columns = np.nonzero(changed)
    assert rows.max() < 27 and columns.min() >= 24 and columns.max() < 75, "only the gardener moves"
    assert seen[0].region == (0.25, 0.0, 0.5, 0.25)


def test_the_edge_holds_and_other_words_lead_nowhere():
    _, state, seen = play(go("north", "north", "up", "", "northwest", "<go>west"))
    outcomes = ["done", "outside", "malformed", "malformed", "malformed", "done"]
    assert [o.outcome for o in seen] == outcomes and state.done == ((1, 0), (0, 0))


def test_a_walk_without_end_is_ended():
    _, state, seen = play(go(*["east", "west"] * 6)[:11])
    assert [o.outcome for o in seen[8:]] == ["done", "late", "over"] and seen[10].is_last


def test_a_completion_can_be_walked_again():
    said = go("north", "up", "north", "east", "south")
    world, state, _ = play(said)
    again = world.replay(state.example, "".join(said) + PICK)
    assert (again.done, again.outcomes) == (state.done, state.outcomes)
    endless = go(*["east", "west"] * 9)
    assert world.place(world.replay(state.example, "".join(endless))) == (2, 1), "nine moves"


@pytest.fixture(scope="module")
def task():
    return load(TaskConfig(task="walk", train_size=60, held_out_size=40), None)


def test_some_training_demonstrations_pick_too_early_and_say_so_truly(task):
    early = [e for e in task.train if len(e.reasoning.calls) < e.world.distance]
    assert 0.6 * 60 < len(early) < 0.9 * 60
    for e in early:
        said = "".join(f"<think>{t}</think>{call}" for t, call in e.reasoning.calls)
        state = task.environment.replay(e, said)
        here, there = map(place, (task.environment.place(state), e.world.goal))
        assert here != there and e.reasoning.thought.startswith(f"at {here}, ")
        assert e.reasoning.thought.endswith(f" {there}")
        assert task.scores(said + PICK, e)["strict"] == 0.0


def test_a_demonstration_takes_the_shortest_way_and_is_right(task):
    for name, split in task.splits.items():
        for e in split:
            assert e.images[0].size == (96, 96)
            assert e.world.side == (4 if name == "ood" else 3)
            state, text = task.environment.start(e), ""
            for thought, call in e.reasoning.calls:
                said = f"<think>{thought}</think>{call}"
                state, seen = task.environment.act(state, said)
                assert seen.outcome == "done" and seen.parts[1].size == e.images[0].size
                text += said
            text += PICK
            parts = task.environment.reward(e, state, text)
            assert (parts["arrived"], parts["detour"]) == (1.0, 0.0)
            assert len(e.reasoning.calls) == e.world.distance >= 1
            assert task.reward(text, e, WEIGHTS, 0.0).total == 1.5
            assert task.scores(text, e) == {"strict": 1.0, "format": 1.0}


def test_only_picking_at_the_flower_is_right(task):
    e = example()
    cases = [
        (go("east"), PICK, 1.0),
        (go("north", "east", "south"), PICK, 1.0),  # a detour
        (go("east", "east"), PICK, 0.0),  # past it
        ([], PICK, 0.0),  # not arrived
        (go("east"), "<think>here</think><answer>red</answer>", 0.0),
        (go("east"), "<think>here</think>", 0.0),
    ]
    for said, last, right in cases:
        text = "".join(said) + last
        assert (
            task.scores(text, e)["strict"]
            == right
            == task.reward(text, e, WEIGHTS, 0).parts["correct"]
        )
    state = task.environment.replay(e, "".join(go("north", "east", "south")))
    assert task.environment.reward(e, state, "")["detour"] == 2.0


def test_a_small_bed_is_somewhere_on_the_lawn_and_holds_all(task):
    corners = Counter(e.world.corner for e in task.train)
    assert len(corners) == 4
    for e in task.train:
        assert e.world.holds(e.world.start) and e.world.holds(e.world.goal)
        (left, top), picture = e.world.corner, np.asarray(e.images[0], dtype=int)
        green = picture[..., 1] > picture[..., 0] + 15
        bed = green[24 * top : 24 * top + 72, 24 * left : 24 * left + 72]
        lawn = green.copy()
        lawn[24 * top : 24 * top + 72, 24 * left : 24 * left + 72] = True
        assert lawn.mean() > 0.97 and bed.mean() < 0.2
    assert all(e.world.corner == (0, 0) for e in task.splits["ood"])


def test_the_edge_of_a_small_bed_holds():
    bed = Bed(4, (1, 1), 3, (1, 1), (3, 3), partial(draw_bed, (), (1, 1), 3, 7))
    e, world = Example("e", (bed.draw(bed.start),), "?", "pick", world=bed), Walk()
    outcomes = []
    state = world.start(e)
    for said in go("north", "west", "east", "east", "east"):
        state, seen = world.act(state, said)
        outcomes.append(seen.outcome)
    assert outcomes == ["outside", "outside", "done", "done", "outside"]


def test_ways_are_shortest_and_every_move_is_needed(task):
    moves = Counter(move for e in task.train for _, move in e.reasoning.calls)
    assert len(moves) == 4 and min(moves.values()) > 5
    steps = way((0, 3), (2, 1), "red")
    assert steps[0] == ("at 3 21, red 15 9", "east"), "cm from the upper left"
    assert [move for _, move in steps] == ["east", "east", "north", "north"]
    assert way((1, 1), (1, 1), "red") == []


def test_examples_go_to_other_processes_and_data_from_outside_are_refused(task):
    again = pickle.loads(pickle.dumps(task.train[0]))
    a, b = (np.asarray(e.world.draw(e.world.goal)) for e in (again, task.train[0]))
    assert np.array_equal(a, b) and isinstance(again.images[0], Image.Image)
    with pytest.raises(InputError, match="the garden's beds alone"):
        load(TaskConfig(task="walk", data="rows.jsonl"), None)
