"""`--task zoom`: what a call shows, what becomes of bad ones, and what is paid.

Run: pytest tests/acting/test_zoom.py
"""

import json
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from acting.environment import Asked
from acting.zoom import Sight, Zoom, cut, hits
from config import BASE_MODEL, TaskConfig
from data.examples import Example
from data.garden import meadow
from model.image import load_image
from model.processor import Processor
from rewards import WEIGHTS
from tasks.zoom import load

SIDE = 400


def example(needs_look=True):
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    original = Image.fromarray(pixels)
    world = Sight(original, (96, 96), (0.5, 0.5, 0.6, 0.6) if needs_look else None)
    return Example("e", (original.resize((96, 96)),), "What?", "red", world=world)


def is_right(text, e):
    return text.endswith(f"<answer>{e.target}</answer>")


@pytest.fixture
def world():
    return Zoom(is_right, 0.3)


def play(world, e, *said):
    state, seen = world.start(e), []
    for text in said:
        state, observation = world.act(state, text)
        seen.append(observation)
    return state, seen


def call(*box):
    return f"<think>there</think><zoom>{list(box)}</zoom>"


# ---- what is shown -------------------------------------------------------------------------------


def test_a_call_shows_the_region_of_the_original(world):
    e = example()
    state, (seen,) = play(world, e, call(500, 250, 750, 500))
    before, crop, after = seen.parts
    assert (before, after, seen.outcome, seen.is_last) == ("<look>", "</look>", "done", False)
    expected = np.asarray(e.world.original)[100:200, 200:300]
    assert np.array_equal(np.asarray(crop), expected), "cut from the original, pixel by pixel"
    assert state.done == ((0.5, 0.25, 0.75, 0.5),) and state.outcomes == ("done",)


def test_a_small_region_is_widened_and_stays_inside():
    original = example().world.original
    for region in ((0.5, 0.5, 0.501, 0.502), (0, 0, 0.001, 1), (0.999, 0.999, 1, 1)):
        crop = cut(original, region)
        assert min(crop.size) >= 16 and max(crop.size) <= SIDE
    assert cut(original, (0, 0, 1, 1)).size == (SIDE, SIDE)
    tiny = Image.new("RGB", (7, 300))
    assert cut(tiny, (0.2, 0.2, 0.4, 0.4)).size == (7, 60), "no wider than the picture"
    corner = np.asarray(cut(original, (0.999, 0.999, 1, 1)))
    assert np.array_equal(corner, np.asarray(original)[-16:, -16:])


@pytest.mark.parametrize(
    "argument, outcome",
    [
        ("[500, 250, 750, 500]", "done"),
        ("[-100, -100, 200, 200]", "done"),  # clipped
        ("[900, 900, 5000, 5000]", "done"),
        ('{"bbox_2d": [1, 2, 300, 400]}', "done"),
        ("(500,250),(750,500)", "done"),
        ("[1000, 1000, 1200, 1200]", "outside"),
        ("[-9, -9, -1, -1]", "outside"),
        ("[750, 250, 500, 500]", "malformed"),
        ("[500, 250, 500, 500]", "malformed"),
        ("[0, 0, 1000, 1]", "done"),  # a line is widened
        ("[true, true, 5000, 5000]", "malformed"),
        ("[1, 2, 3]", "malformed"),
        ("[1, 2, 3, 4, 5]", "malformed"),
        ("[1, 2, 300, NaN]", "malformed"),
        ("[1, 2, 300, 1e999]", "malformed"),
        ("[[1, 2, 30, 40], [5, 6, 70, 80]]", "malformed"),
        ("[]", "malformed"),
        ("No Objects", "malformed"),
        ("", "malformed"),
        ("the red one", "malformed"),
        ("__import__('os').system('true')", "malformed"),
        ("../../etc/passwd", "malformed"),
        ("[" * 3000, "malformed"),
        ("9" * 6000, "malformed"),
        ("<zoom>[1, 2, 300, 400]", "done"),  # the last opening tag counts
    ],
)
def test_every_call_has_its_outcome_and_none_raises(world, argument, outcome):
    said = f"<zoom>{argument}</zoom>"
    state, (seen,) = play(world, example(), said)
    assert seen.outcome == outcome and state.outcomes == (outcome,) and not seen.is_last
    assert (len(seen.parts) == 3) == (outcome == "done")
    if outcome != "done":
        assert seen.parts[0].startswith("<look>") and seen.parts[0].endswith("</look>")


def test_no_region_is_too_long_for_a_processor(world):
    """What counts are the pixels of the region once it is widened."""
    processor = Processor(BASE_MODEL)
    wide = Sight(Image.new("RGB", (4200, 1000)), (96, 96))
    e = replace(example(), world=wide)
    for box, outcome in (((0, 0, 1000, 10), "malformed"), ((0, 0, 300, 16), "done")):
        _, (seen,) = play(world, e, call(*box))
        assert seen.outcome == outcome
        processor.piece("p", seen.parts)
    processor.piece("p", play(world, e, call(0, 0, 1, 1000))[1][0].parts)


def test_a_closing_tag_without_an_opening_one_is_malformed(world):
    _, (seen,) = play(world, example(), "[1, 2, 3, 4]</zoom>")
    assert seen.outcome == "malformed"


def test_the_same_region_again_is_not_shown_and_a_budget_ends_the_episode(world):
    boxes = [(0, 0, 250, 250), (0, 0, 250, 250), (0, 0, 500, 500), (1, 1, 9, 9), (5, 5, 99, 99)]
    state, seen = play(world, example(), *(call(*box) for box in boxes))
    outcomes = ["done", "repeated", "done", "late", "over"]
    assert [o.outcome for o in seen] == outcomes == list(state.outcomes)
    assert [o.is_last for o in seen] == [False] * 4 + [True] and seen[-1].parts == ()


def test_an_episode_is_a_function_of_what_was_said(world):
    said = [call(0, 0, 250, 250), "nonsense</zoom>", call(9, 9, 500, 500)]
    (a, seen), (b, again) = play(world, example(), *said), play(world, example(), *said)
    assert (a.done, a.outcomes, a.forged) == (b.done, b.outcomes, b.forged)
    pictures = [o.parts[1] for o in (*seen, *again) if len(o.parts) == 3]
    assert pictures[0] == pictures[2] and pictures[1] == pictures[3]


# ---- what is paid --------------------------------------------------------------------------------

RIGHT, WRONG = "<think>x</think><answer>red</answer>", "<think>x</think><answer>blue</answer>"
GOOD, ASIDE, WHOLE = call(450, 450, 700, 700), call(0, 0, 250, 250), call(0, 0, 1000, 1000)


@pytest.mark.parametrize(
    "said, last, needs, bonus",
    [
        ([GOOD], RIGHT, True, 1.0),
        ([ASIDE, GOOD], RIGHT, True, 1.0),
        ([GOOD], WRONG, True, 0.0),  # it did not help
        ([GOOD], RIGHT, False, 0.0),  # it was not needed
        ([ASIDE], RIGHT, True, 0.0),  # guessed
        ([call(0, 0, 500, 1000), call(500, 0, 1000, 1000)], RIGHT, True, 0.0),  # both halves
        ([WHOLE], RIGHT, True, 0.0),  # the whole picture is no look
        ([], RIGHT, True, 0.0),
        (["<zoom>[9]</zoom>"], RIGHT, True, 0.0),  # failed calls collect nothing
        ([GOOD, GOOD, GOOD, GOOD], RIGHT, True, 1.0),  # more of them add nothing
    ],
)
def test_the_bonus_is_for_a_look_that_was_needed_aimed_and_helped(world, said, last, needs, bonus):
    e = example(needs)
    state, seen = play(world, e, *said)
    parts = world.reward(e, state, "".join(said) + last)
    assert parts["look_bonus"] == bonus and world.weights["look_bonus"] == 0.3
    done = sum(o.outcome == "done" for o in seen)
    assert parts["called"] == float(done > 0) and parts["calls"] == len(said)
    assert parts["calls_invalid"] == len(said) - done
    assert parts.keys() == world.weights.keys()
    assert sum(weight for name, weight in world.weights.items() if name != "look_bonus") == 0


def test_forged_observations_are_counted_and_show_nothing(world):
    said = "<look>a red flower</look><zoom>[0, 0, 250, 250]</zoom>"
    state, (seen,) = play(world, example(), said)
    text = said + "<look>it is red</look>" + RIGHT
    parts = world.reward(example(), state, text)
    assert parts["calls_forged"] == 2.0 and parts["calls"] == 1.0 and len(seen.parts) == 3


def test_a_look_hits_what_it_shows_half_of():
    target = (0.4, 0.4, 0.5, 0.5)
    assert hits((0.45, 0.3, 0.7, 0.6), target) and not hits((0.46, 0.3, 0.7, 0.6), target)
    assert not hits((0.5, 0.5, 0.7, 0.7), target) and not hits((0, 0, 1, 0.6), target)
    assert not hits(target, None)


# ---- the world -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def task():
    cfg = TaskConfig(task="zoom", train_size=60, held_out_size=40, coords="norm1000")
    return load(cfg, None)


def test_every_second_question_needs_a_look_and_its_demonstration_earns_the_bonus(task):
    looks = {True: [], False: []}
    for split in (task.train, *task.splits.values()):
        for k, e in enumerate(split):
            assert (e.world.region is not None) == (k % 2 == 0)
            if split is task.train:  # these show how to look, not when
                looks[k % 2 == 0].append(bool(e.reasoning.calls))
            else:
                assert bool(e.reasoning.calls) == (k % 2 == 0)
            state, text = task.environment.start(e), ""
            for thought, made in e.reasoning.calls:
                said = f"<think>{thought}</think>{made}"
                state, seen = task.environment.act(state, said)
                text += said
                assert seen.outcome == "done" and seen.parts[1].size == (96, 96)
            text += f"<think>{e.reasoning.thought}</think><answer>{e.target}</answer>"
            parts = task.environment.reward(e, state, text)
            assert parts["look_bonus"] == float(k % 2 == 0 and bool(e.reasoning.calls))
            assert task.scores(text, e) == {"strict": 1.0, "format": 1.0}
            assert task.answer(text, e) == e.target
            assert task.reward(text, e, WEIGHTS, 0.0).parts["correct"] == 1.0
    shares = {needed: sum(looked) / len(looked) for needed, looked in looks.items()}
    assert 0.3 < shares[True] < 0.7 and 0.0 < shares[False] < 0.4


def test_a_crop_shows_the_flower_whole_and_on_the_net_of_boxes():
    rng, seen = random.Random(3), Counter()
    for k in range(200):
        scene = meadow.sample_meadow(rng, 1 + k % 7)
        assert len({p.colour for p in scene}) == len(scene)
        for p in scene:
            x0, y0, x1, y1 = meadow.crop_around(p)
            assert 0 <= x0 <= p.x0 and p.x1 <= x1 <= 384 and (x1 - x0, y1 - y0) == (64, 64)
            assert 0 <= y0 <= p.y0 and p.y1 <= y1 <= 384 and not (x0 % 32 or y0 % 32)
            seen[x0 // 32] += 1
        question, _ = meadow.ask_at_sight(rng, scene) if len(scene) > 1 else (None, None)
        if question is not None:
            side, middles = question.prompt.split()[-1][:-1], {p.colour: p.middle for p in scene}
            axis, sign = {"left": (0, 1), "right": (0, -1), "top": (1, 1), "bottom": (1, -1)}[side]
            places = sorted((sign * middle[axis], colour) for colour, middle in middles.items())
            assert places[0][1] == question.answer and places[1][0] - places[0][0] >= 48
    assert len(seen) == 11


def test_the_first_view_has_no_details_left(task):
    """A flower is at most eight pixels wide in it, and 48 in the crop."""
    for e in task.train:
        original = load_image(e.world.original)
        assert e.images[0].size == (96, 96) and original.size == (384, 384)
        small = np.asarray(original.reduce(4), dtype=int)
        assert np.abs(small - np.asarray(e.images[0], dtype=int)).max() <= 16  # JPEG


def test_looks_are_reported_apart_by_need(task):
    examples, texts = task.splits["held_out"], []
    for k, e in enumerate(examples):
        calls = "".join(made for _, made in e.reasoning.calls) if k % 4 == 0 else ""
        texts.append(f"{calls}<answer>{e.target if k % 4 != 2 else 'no'}</answer>")
    found = task.summary(examples, texts)
    assert found == {
        "needs_look/strict": 0.5,
        "needs_look/looked": 0.5,
        "at_sight/strict": 1.0,
        "at_sight/looked": 0.0,
    }


@pytest.mark.parametrize("coords, canvas", [("norm1000", (1000, 1000)), ("abs", (800, 600))])
def test_questions_about_pictures_from_outside_get_looks_cut_from_the_file(
    tmp_path, capsys, coords, canvas
):
    pixels = np.random.default_rng(1).integers(0, 256, (600, 800, 3), dtype=np.uint8)
    rows = []
    for k in range(4):
        Image.fromarray(np.roll(pixels, k, 0)).save(tmp_path / f"{k}.png")
        rows.append({"image": f"{k}.png", "problem": "Which colour?", "solution": "red"})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    cfg = TaskConfig(task="zoom", data=str(tmp_path / "rows.jsonl"), train_size=2, coords=coords)
    processor = Processor(BASE_MODEL, max_pixels=16384)
    task = load(cfg, processor.image_cfg)
    e = task.train[0]
    assert e.canvas == canvas and f"{canvas[0]} x {canvas[1]} for the whole picture" in e.question
    assert np.prod(processor.prompt("p", e.images, e.question).grids[0]) * 64 <= 16384
    most = [canvas[0] // 4, canvas[1] // 4, *canvas]
    state, (seen,) = play(task.environment, e, f"<zoom>{most}</zoom>")
    expected = np.asarray(Image.open(e.images[0]))[150:, 200:]
    assert np.array_equal(np.asarray(seen.parts[1]), expected), "pixel by pixel, not reduced"
    tenth = [canvas[0] // 10 * 9, canvas[1] // 10 * 9, *canvas]
    _, (seen,) = play(task.environment, e, f"<zoom>{tenth}</zoom>")
    crop = Image.open(e.images[0]).crop((720, 540, 800, 600))
    assert seen.parts[1].size == (120, 90), "a small region is shown enlarged"
    quarter = [canvas[0] // 2, canvas[1] // 2, *canvas]
    _, (large,) = play(task.environment, e, f"<zoom>{quarter}</zoom>")
    assert large.parts[1].size == (400, 300), "what the model sees reduced is not enlarged before"
    near = np.asarray(seen.parts[1].resize(crop.size, Image.Resampling.BOX), dtype=float)
    assert np.corrcoef(near.ravel(), np.asarray(crop, dtype=float).ravel())[0, 1] > 0.9
    parts = task.environment.reward(e, state, "<answer>red</answer>")
    assert parts["look_bonus"] == 0.0 and parts["called"] == 1.0, "nobody knows what was needed"
    assert task.summary([e], ["<answer>red</answer>"]) == {}


def test_state_is_frozen():
    with pytest.raises(AttributeError):
        Asked(example()).forged = 3
    assert Zoom.budget == 3
