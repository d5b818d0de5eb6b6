"""The puzzles of the garden: every answer is recomputed from the boxes, every cause can be seen.

What is guaranteed about data/garden/puzzles.py, the pictures drawn for it, and the hasty answers
of all questions: measures are those of the boxes; the states that a change question tells are those
of the second picture; causes and stages of growth look different; answers and hasty answers are in
the grammar of their kind (answers.py). Answers are checked by a second reader, which parses the
prompt text and never calls the generator's helpers. Run: pytest tests/data/garden/test_puzzles.py
"""

import json
import random
import re
from collections import Counter
from functools import partial
from itertools import combinations, permutations

import numpy as np
import pytest
from PIL import Image

from answers import (
    Box,
    has_tag,
    parse_answer,
    parse_boxes,
    parse_calls,
    parse_choice,
    parse_name,
    parse_number,
    parse_sequence,
)
from data.garden import drawing
from data.garden.drawing import CENTRE_RGB, PETAL_RGB, draw_scene, draw_stage, paint_flower
from data.garden.puzzles import (
    another_view,
    ask_change,
    ask_measure,
    ask_next,
    ask_order,
    ask_why,
    sample_stages,
)
from data.garden.questions import (
    PORTRAIT_QUESTIONS,
    SCENE_QUESTIONS,
    ask_det,
    ask_look,
    coarse_box,
)
from data.garden.world import (
    CAUSES,
    CENTRES,
    COLOURS,
    SHAPES,
    SPECIES,
    STAGES,
    Flower,
    Placed,
    box_1000,
    random_flower,
    sample_scene,
)
from rewards import iou
from runtime.errors import InputError


def scenes(count, seed=0, most=7):
    rng = random.Random(seed)
    for index in range(count):
        yield rng, sample_scene(rng, 1 + index % most)


def colours_in(text):
    return [word for word in re.findall("[a-z]+", text) if word in COLOURS]


def the(scene, colour):
    """The only flower of this colour."""
    (found,) = [p for p in scene if p.flower.colour == colour]
    return found


def centre(p):
    """Centre of the box in cm: 96 pixels are 24 cm."""
    return (p.x0 + p.x1) / 2 / 96 * 24, (p.y0 + p.y1) / 2 / 96 * 24


def width(p):
    return (p.x1 - p.x0) / 96 * 24


# ---- measuring -----------------------------------------------------------------------------------


def measured(scene, prompt):
    """The length that a prompt asks for, in cm, from the pixels of the boxes."""
    assert prompt.startswith("The picture is 24 cm wide. ")
    if "How wide is" in prompt:
        (colour,) = colours_in(prompt)
        return width(the(scene, colour))
    first, second = (the(scene, colour) for colour in colours_in(prompt))
    if "By how much do the widths" in prompt:
        return abs(width(first) - width(second))
    assert "left to right" in prompt
    return abs(centre(first)[0] - centre(second)[0])


def measure_questions(count, seed):
    for rng, scene in scenes(count, seed):
        question = ask_measure(rng, scene)
        if question is not None:
            yield scene, question


def test_lengths_are_those_of_the_boxes():
    asked, answers = Counter(), Counter()
    for scene, question in measure_questions(900, seed=1):
        if question.prompt.endswith("?"):
            assert parse_number(question.answer) == measured(scene, question.prompt)
            asked[question.prompt.split()[7]] += 1  # how "wide", by "how" much, how "far"
            answers[question.answer] += 1
    assert set(asked) == {"wide", "how", "far"} and min(asked.values()) > 60
    assert answers["0"] > 5, "two flowers can be equally wide"
    assert any(answer.endswith(".5") for answer in answers), "middles lie on half centimetres"
    assert max(answers.values()) < 0.3 * sum(answers.values()), "no length is a good guess"


def test_the_thought_of_a_length_computes_the_answer_from_what_it_read():
    """It reads "red 6", "red 6, blue 5: 6 - 5 = 1" or "red at 3, blue at 9: ..."."""
    for scene, question in measure_questions(500, seed=2):
        if not question.prompt.endswith("?"):
            continue
        read, _, sum_up = question.thought.partition(": ")
        numbers = [float(number) for number in re.findall(r"[\d.]+", read)]
        flowers = [the(scene, colour) for colour in colours_in(read)]
        if "wide is" in question.prompt:
            assert numbers == [width(flowers[0])] == [float(question.answer)] and not sum_up
        else:
            value = width if "widths" in question.prompt else (lambda p: centre(p)[0])
            assert numbers == [value(p) for p in flowers]
            left, right, result = re.fullmatch(r"(\S+) - (\S+) = (\S+)", sum_up).groups()
            assert float(left) - float(right) == float(result) and result == question.answer
            assert sorted(numbers) == [float(right), float(left)]


def test_the_farthest_flower_has_a_clear_lead_and_a_letter_among_the_options():
    letters, counts = Counter(), Counter()
    for scene, question in measure_questions(1500, seed=3):
        match = re.fullmatch(r"Which is farthest from the (\w+) flower\? (.+)", question.prompt)
        if match is None:
            continue
        options = dict(option.split(" ") for option in match[2].split(", "))
        assert "".join(options) == "ABC"[: len(options)]
        x, y = centre(the(scene, match[1]))
        away = {}
        for letter, colour in options.items():
            u, v = centre(the(scene, colour))
            away[letter] = ((u - x) ** 2 + (v - y) ** 2) ** 0.5
        best, second = sorted(away, key=away.get, reverse=True)[:2]
        assert question.answer == best and away[best] >= 1.2 * away[second] - 1e-9
        assert match[1] not in options.values()
        shown = [p.flower.colour for p in scene]
        assert list(options.values()) == sorted(options.values(), key=shown.index)
        told, _, named = question.thought.partition(": ")
        assert named == options[best]
        for (letter, colour), words in zip(options.items(), told.split(", "), strict=True):
            assert words.split()[0] == colour and abs(int(words.split()[1]) - away[letter]) <= 0.5
        letters[question.answer] += 1
        counts[len(options)] += 1
    assert set(letters) == set("ABC") and letters["A"] < 0.6 * letters.total()
    assert set(counts) == {2, 3}, "three or four flowers of different colours"


def test_scenes_without_a_colour_of_its_own_are_not_measured():
    flower = SPECIES[0].flower
    twins = (Placed(flower, "small", 0, 0, 20, 20), Placed(flower, "small", 40, 0, 60, 20))
    for ask in (ask_measure, ask_why):
        assert ask(random.Random(0), twins) is None


def test_a_width_to_be_chosen_is_one_of_four_and_no_letter_is_a_good_guess():
    letters = Counter()
    for scene, question in measure_questions(1500, seed=4):
        asked, wide_is, options = question.prompt.partition("flower? A ")
        if not wide_is or "How wide" not in asked:
            continue
        widths = [int(option.split(" ")[-1]) for option in ("A " + options).split(", ")]
        assert widths == sorted(set(widths)) and set(widths) <= {5, 6, 7, 9, 10, 11}
        chosen = widths["ABCD".index(question.answer)]
        assert chosen == width(the(scene, colours_in(asked)[0]))
        assert question.thought.split()[1] == f"{chosen}"
        letters[question.answer] += 1
    assert set(letters) == set("ABCD") and max(letters.values()) < 0.5 * letters.total()


def test_whoever_does_not_measure_says_half_the_picture_or_the_first_letter():
    guesses = {question.hasty for _, question in measure_questions(300, seed=5)}
    assert guesses == {"12", "A"}


# ---- changes -------------------------------------------------------------------------------------


def size_of(p):
    return "large" if p.x1 - p.x0 >= 36 else "small"


def view_of(before, after):
    """How far the second picture is moved: the only step that puts all flowers on old places."""
    places = {centre(p) for p in before}
    steps = [
        (dx, dy)
        for dx in range(-2, 3)
        for dy in range(-2, 3)
        if {(x - dx, y - dy) for x, y in map(centre, after)} <= places
    ]
    assert len(steps) == 1, "flowers are five steps apart at least, so no two steps fit"
    return steps[0]


def numbered(text):
    """From "f1 small red, f2 gone" to {"f1": "small red", "f2": "gone"}."""
    return dict(item.split(" ", 1) for item in re.split(", (?=f)", text))


@pytest.mark.parametrize("p_shifted", [0.0, 1.0])
def test_prompt_and_thought_say_how_every_flower_looks_before_and_after(p_shifted):
    moved, gone = 0, 0
    for rng, scene in scenes(400, seed=4):
        question = ask_change(rng, scene, p_shifted=p_shifted)
        before = numbered(question.prompt.removeprefix("What changed? ").removesuffix("."))
        assert list(before) == [f"f{k}" for k in range(1, len(scene) + 1)]
        listed = [f"{size_of(p)} {p.flower.colour} {list(box_1000(p))}" for p in scene]
        assert list(before.values()) == listed
        dx, dy = view_of(scene, question.after) if question.after else (0, 0)
        moved += (dx, dy) != (0, 0)
        seen = {
            (x - dx, y - dy): f"{list(box_1000(p))} {size_of(p)} {p.flower.colour}"
            for p in question.after
            for x, y in [centre(p)]
        }
        states = numbered(question.thought.removeprefix("now "))
        expected = [seen.get(centre(p), "gone") for p in scene]
        verdicts = {number: state.split()[-1] for number, state in states.items()}
        looks = [state.removesuffix(f" {verdicts[number]}") for number, state in states.items()]
        assert list(zip(states, looks, strict=True)) == list(zip(before, expected, strict=True))
        gone += expected.count("gone")
        # The calls follow from prompt and thought alone.
        calls = []
        for number, old in before.items():
            (size, colour), new = old.split()[:2], states[number].split("] ")[-1].split()
            if new == ["gone"]:
                calls.append(("remove", number))
                continue
            assert verdicts[number] in ("same", "size", "colour")
            assert (verdicts[number] == "same") == (new[:2] == [size, colour])
            if verdicts[number] == "size":
                calls.append(("change_size", number, new[0]))
            elif verdicts[number] == "colour":
                calls.append(("change_colour", number, new[1]))
        assert parse_calls(question.answer) == calls
        assert parse_calls(question.hasty) == calls[:1]
    assert gone > 100 and (moved > 200 if p_shifted else moved == 0)


def test_one_to_three_changes_are_asked_for_unless_their_number_is_given():
    drawn = Counter()
    for rng, scene in scenes(300, seed=5):
        drawn[len(parse_calls(ask_change(rng, scene).answer))] += 1
        for n in range(1, len(scene) + 1):
            assert len(parse_calls(ask_change(rng, scene, n_changes=n).answer)) == n
        for n in (0, len(scene) + 1):
            with pytest.raises(InputError, match="n_changes"):
                ask_change(rng, scene, n_changes=n)
    assert set(drawn) == {1, 2, 3} and min(drawn.values()) > 30


def test_another_view_keeps_all_flowers_inside_and_moves_them_by_one_step():
    possible = 0
    for rng, scene in scenes(300, seed=6, most=4):
        view = another_view(rng, scene)
        if view is None:
            low = [min(p.x0 for p in scene), min(p.y0 for p in scene)]
            high = [max(p.x1 for p in scene), max(p.y1 for p in scene)]
            assert low == [0, 0] and high == [96, 96], "there was room for a step"
            continue
        possible += 1
        (step,) = {
            (q.x0 - p.x0, q.y0 - p.y0, q.x1 - p.x1, q.y1 - p.y1)
            for p, q in zip(scene, view, strict=True)
        }
        assert step[:2] == step[2:] and set(step) <= {-8, -4, 0, 4, 8} and any(step)
        assert [(p.flower, p.size) for p in view] == [(p.flower, p.size) for p in scene]
        assert all(0 <= value <= 96 for p in view for value in (p.x0, p.y0, p.x1, p.y1))
    assert possible > 200
    assert another_view(random.Random(0), ()) is None, "nothing is left to be seen"


# ---- causes --------------------------------------------------------------------------------------


def test_the_asked_flower_has_the_answered_cause_and_another_flower_another_one():
    causes = Counter()
    for rng, scene in scenes(400, seed=7):
        question = ask_why(rng, scene)
        if question is None:
            continue
        asked = scene.index(the(scene, *colours_in(question.prompt)))
        assert question.ailing[asked] == question.answer
        assert len(question.ailing) == min(2, len(scene))
        assert len(set(question.ailing.values())) == len(question.ailing), "two equal causes"
        assert set(question.ailing) <= set(range(len(scene)))
        assert question.thought == f"{scene[asked].flower.colour} {question.answer}"
        assert question.hasty == "drought"
        causes[question.answer] += 1
    assert set(causes) == set(CAUSES) and max(causes.values()) < 0.45 * causes.total()


REACH = 8  # pixels: shade and dry soil reach 3 or 4 beyond the box, and their edges are smooth


def near(scene, places, reach):
    """Which pixels are within `reach` of the boxes of these flowers, (96, 96) bool."""
    mask = np.zeros((96, 96), bool)
    for place in places:
        p = scene[place]
        mask[max(0, p.y0 - reach) : p.y1 + reach, max(0, p.x0 - reach) : p.x1 + reach] = True
    return mask


def pixels(image):
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("cause", CAUSES)
def test_a_cause_changes_pixels_at_its_flower_and_nowhere_else(cause):
    for index, (rng, scene) in enumerate(scenes(14, seed=8)):
        place = rng.randrange(len(scene))
        healthy = pixels(draw_scene(scene, index))
        ill = pixels(draw_scene(scene, index, ailing={place: cause}))
        changed = np.abs(ill - healthy).sum(-1) > 0
        assert changed[near(scene, [place], 0)].mean() > 0.3
        assert not changed[~near(scene, [place], REACH)].any()


def test_two_causes_are_drawn_as_each_of_them_alone():
    for index, (rng, scene) in enumerate(scenes(24, seed=9)):
        question = ask_why(rng, scene)
        if question is None or len(question.ailing) < 2:
            continue
        both = pixels(draw_scene(scene, index, ailing=question.ailing))
        first, second = question.ailing.items()
        for (place, cause), (other, _) in ((first, second), (second, first)):
            alone = pixels(draw_scene(scene, index, ailing={place: cause}))
            own = near(scene, [place], REACH) & ~near(scene, [other], REACH)
            assert (both == alone)[own].all()


def test_the_three_causes_look_different_on_every_flower_even_at_the_edge():
    """At least 30 pixels of each pair differ by a step that is seen through noise and grain.

    None of them looks like wilting alone, which is what a cause of another name draws."""
    looks_of = (*CAUSES, "no cause")
    for index, (_, scene) in enumerate(scenes(7, seed=10)):
        for place in range(len(scene)):
            looks = {c: pixels(draw_scene(scene, index, ailing={place: c})) for c in looks_of}
            for a, b in combinations(looks_of, 2):
                different = np.abs(looks[a] - looks[b]).max(-1) > 24
                assert different.sum() >= 30, (a, b, scene[place])


def test_the_colour_of_a_wilted_flower_can_still_be_told():
    def petals(colour, seed):
        flower = Flower(5, "round", colour, "green")
        layer = Image.new("RGBA", (64, 64))
        paint_flower(layer, flower, (0, 0, 64, 64), random.Random(seed), wilted=True)
        shown, counts = np.unique(np.asarray(layer).reshape(-1, 4), axis=0, return_counts=True)
        counts[shown[:, 3] < 255] = 0
        return shown[counts.argmax(), :3].astype(float)  # the commonest colour: the petals'

    # Far apart, for the eye sees them through grain and at a few pixels only.
    typical = {c: np.mean([petals(c, seed) for seed in range(4)], axis=0) for c in COLOURS}
    assert min(np.abs(typical[a] - typical[b]).sum() for a, b in combinations(COLOURS, 2)) > 60
    for colour in COLOURS:
        for seed in range(4, 10):
            own = petals(colour, seed)
            assert min(COLOURS, key=lambda c: np.abs(typical[c] - own).sum()) == colour
            assert own.sum() < sum(PETAL_RGB[colour]), "wilted petals are darker"


# ---- growth --------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 4])
def test_every_order_of_the_stages_is_sorted_by_growth(count):
    for stages in permutations(STAGES, count):
        question = ask_order(random.Random(0), stages)
        shown = dict(zip("ABCD"[:count], stages, strict=True))
        assert question.prompt == f"Order the pictures {', '.join(shown)} by growth."
        answer = parse_sequence(question.answer)
        assert sorted(answer) == list(shown)
        places = [("sprout", "bud", "bloom", "seeds").index(shown[letter]) for letter in answer]
        assert places == sorted(places)
        assert parse_sequence(question.hasty) == list(shown), "hasty: the order that is shown"
        told = dict(item.split(" ") for item in question.thought.split(", "))
        assert told == shown and question.seen == ", ".join(stages)


@pytest.mark.parametrize(
    "stage, follows", [("sprout", "bud"), ("bud", "bloom"), ("bloom", "seeds")]
)
def test_the_next_stage_follows_and_the_hasty_answer_is_the_present_one(stage, follows):
    question = ask_next(random.Random(0), [stage])
    assert (question.answer, question.hasty, question.seen) == (follows, stage, stage)
    assert question.thought == f"{stage}, then {follows}"


def test_drawn_stages_are_different_ones_in_every_order():
    rng = random.Random(11)
    for count in (3, 4):
        drawn = Counter(tuple(sample_stages(rng, "order", count)) for _ in range(1200))
        assert set(drawn) == set(permutations(STAGES, count))
    assert {tuple(sample_stages(rng, "next")) for _ in range(60)} == {
        (stage,) for stage in STAGES[:-1]
    }


@pytest.mark.parametrize("stage", STAGES)
def test_a_plant_is_a_function_of_flower_stage_and_seed(stage):
    flower = SPECIES[0].flower
    first, again, other = (pixels(draw_stage(flower, stage, seed)) for seed in (5, 5, 6))
    assert first.shape == (64, 64, 3) and draw_stage(flower, stage, 5, size=32).size == (32, 32)
    assert (first == again).all() and (first != other).mean() > 0.5


GREY = (128, 128, 128)  # no part of a plant is grey


def alike(picture, rgb, tolerance=40):
    """How many pixels have this colour, up to jitter and light."""
    return int((np.abs(pixels(picture) - rgb).max(-1) <= tolerance).sum())


@pytest.mark.parametrize("colour", COLOURS)
def test_the_four_stages_can_be_told_by_what_they_show(colour, monkeypatch):
    """Bud and bloom show the petals' colour, a bloom more of it and its centre, seeds a brown head,
    a sprout nothing but little green."""
    monkeypatch.setattr(
        drawing, "background", lambda kind, seed, size: Image.new("RGB", (size, size), GREY)
    )
    centres = [name for name in CENTRES if name != colour]
    for seed in range(4):
        flower = Flower(5, "round", colour, centres[seed % len(centres)])
        shown = {stage: draw_stage(flower, stage, seed) for stage in STAGES}
        petal = {stage: alike(picture, PETAL_RGB[colour]) for stage, picture in shown.items()}
        assert petal["sprout"] <= 4 and petal["seeds"] <= 12
        assert petal["bud"] >= 25 and petal["bloom"] >= 3 * petal["bud"]
        assert alike(shown["bloom"], CENTRE_RGB[flower.centre]) >= 20
        brown = {stage: alike(picture, (104, 76, 40), 24) for stage, picture in shown.items()}
        assert brown["seeds"] >= 80 > 3 * max(brown[stage] for stage in STAGES[:2])
        plant = {s: 64 * 64 - alike(picture, GREY, 4) for s, picture in shown.items()}
        assert 60 <= plant["sprout"] < 0.8 * min(plant[stage] for stage in STAGES[1:])


# ---- looking closely -----------------------------------------------------------------------------


def test_a_look_tells_the_truth_about_one_flower_and_what_ails_it():
    told = Counter()
    for rng, scene in scenes(300, seed=18):
        ailing = {0: "drought", len(scene) - 1: "snail"}
        question = ask_look(rng, scene, ailing)
        if question is None:
            assert all(n > 1 for n in Counter(p.flower.colour for p in scene).values())
            continue
        flower = the(scene, *colours_in(question.prompt))
        box, _, rest = question.answer.partition("], ")
        assert json.loads(box + "]") == list(box_1000(flower))
        wide, size, looks, middle, health = rest.split(", ")
        assert (int(wide), size) == (width(flower), size_of(flower))
        assert looks.split()[1:] == [flower.flower.shape, "petals"]
        assert middle == f"{flower.flower.centre} centre"
        assert health == ailing.get(scene.index(flower), "healthy")
        told[health] += 1
    assert min(told.values()) > 20 and len(told) == 3


# ---- hasty answers -------------------------------------------------------------------------------


def test_a_coarse_box_contains_the_box_and_ends_on_a_net_inside_the_frame():
    overlaps = []
    for _, scene in scenes(300, seed=12):
        for p in scene:
            coarse = coarse_box(p)
            corners = (coarse.x0, coarse.y0, coarse.x1, coarse.y1)
            assert all(0 <= value <= 96 and value % 16 == 0 for value in corners)
            grown = (p.x0 - coarse.x0, p.y0 - coarse.y0, coarse.x1 - p.x1, coarse.y1 - p.y1)
            assert all(0 <= pixels < 16 for pixels in grown), "to the next line, not beyond"
            assert (coarse.flower, coarse.size) == (p.flower, p.size)
            overlaps.append(iou(Box(p.x0, p.y0, p.x1, p.y1), Box(*corners)))
    assert max(overlaps) < 1.0, "no side is a multiple of the net, so no coarse box is exact"
    assert min(overlaps) > 0.1 and 0.4 < np.mean(overlaps) < 0.7


@pytest.mark.parametrize("categories", [("red",), ("blue", "white", "pink"), COLOURS])
def test_detection_asks_for_the_given_categories_only_present_or_not(categories):
    asked, absent = Counter(), 0
    for rng, scene in scenes(500, seed=13):
        question = ask_det(rng, scene, categories=categories)
        (colour,) = colours_in(question.prompt)
        asked[colour] += 1
        boxes, malformed = parse_boxes(question.answer, (1000, 1000))
        shown = [p for p in scene if p.flower.colour == colour]
        assert malformed == 0 and [box[:4] for box in boxes] == [thousandths(p) for p in shown]
        absent += not shown
    assert set(asked) == set(categories) and 0 < absent < 500
    if len(categories) == 1:  # there is no choice: it is absent where the scene lacks it
        assert absent > 200


def thousandths(p):
    return tuple(round(value * 1000 / 96) for value in (p.x0, p.y0, p.x1, p.y1))


def test_a_hasty_detection_lists_the_coarse_boxes_and_finds_something_where_nothing_is():
    for rng, scene in scenes(200, seed=14):
        question = ask_det(rng, scene, confidence="0.9")
        shown = [p for p in scene if p.flower.colour in question.prompt] or scene[:1]
        boxes, malformed = parse_boxes(question.hasty, (1000, 1000))
        assert malformed == 0 and {box.confidence for box in boxes} == {0.9}
        assert [box[:4] for box in boxes] == [thousandths(coarse_box(p)) for p in shown]


def test_a_hasty_count_counts_something_simpler():
    for rng, scene in scenes(300, seed=15):
        question = SCENE_QUESTIONS["count"](rng, scene)
        colours = len({p.flower.colour for p in scene})
        named = colours_in(question.prompt)
        assert question.hasty == str(len(scene) if named else colours)


# ---- grammar -------------------------------------------------------------------------------------


def is_boxes(text):
    read = parse_boxes(text, (1000, 1000))
    return read is not None and read[1] == 0


def is_one_box(text):
    return is_boxes(text) and len(parse_boxes(text, (1000, 1000))[0]) == 1


def is_measure(text):
    return parse_number(text) is not None or parse_choice(text) is not None


def is_word_of(*words):
    return lambda text: parse_name(text) == text and text in words


def on_flower(ask):
    return lambda rng, scene: ask(rng, random_flower(rng) if rng.random() < 0.5 else species(rng))


def species(rng):
    return rng.choice(SPECIES).flower


def on_stages(ask, kind):
    return lambda rng, scene: ask(rng, sample_stages(rng, kind, rng.choice((3, 4))))


GRAMMAR = {  # kind -> (generator from rng and scene, is the text an answer of this kind)
    "cls": (on_flower(PORTRAIT_QUESTIONS["cls"]), lambda text: parse_name(text) is not None),
    "genus": (on_flower(PORTRAIT_QUESTIONS["genus"]), lambda text: parse_name(text) is not None),
    "attribute": (
        on_flower(PORTRAIT_QUESTIONS["attribute"]),
        is_word_of(*COLOURS, *CENTRES, *SHAPES, *"34568"),
    ),
    "caption": (SCENE_QUESTIONS["caption"], lambda text: parse_name(text) is not None),
    "det": (SCENE_QUESTIONS["det"], is_boxes),
    "ground": (SCENE_QUESTIONS["ground"], is_one_box),
    "look": (
        SCENE_QUESTIONS["look"],
        re.compile(
            r"\[\d+, \d+, \d+, \d+\], \d+, (small|large), \w+ \w+ petals, \w+ centre, healthy"
        ).fullmatch,
    ),
    "region": (
        SCENE_QUESTIONS["region"],
        lambda text: text.split()[0] in ("small", "large") and text.split()[1] in COLOURS,
    ),
    "count": (SCENE_QUESTIONS["count"], lambda text: text.isdigit() and parse_number(text) >= 0),
    "entail": (SCENE_QUESTIONS["entail"], is_word_of("yes", "no", "unknown")),
    "vqa": (SCENE_QUESTIONS["vqa"], is_word_of(*COLOURS, *SHAPES)),
    "measure": (ask_measure, is_measure),
    "change": (partial(ask_change, p_shifted=0.5), lambda text: parse_calls(text) is not None),
    "why": (ask_why, is_word_of("snail", "shade", "drought")),
    "order": (on_stages(ask_order, "order"), lambda text: len(parse_sequence(text) or []) >= 3),
    "next": (on_stages(ask_next, "next"), is_word_of("sprout", "bud", "bloom", "seeds")),
}
NOT_HASTY = (
    "cls",
    "genus",
    "attribute",
    "caption",
    "region",
    "look",
)  # coarse by another rule, or not at all


def test_every_generator_of_the_garden_has_a_grammar_here():
    assert set(GRAMMAR) == {*PORTRAIT_QUESTIONS, *SCENE_QUESTIONS} | {
        "measure", "change", "why", "order", "next",
    }  # fmt: skip


@pytest.mark.parametrize("kind", GRAMMAR)
def test_answers_and_hasty_answers_are_in_the_grammar_of_their_kind(kind):
    """Also: they survive the answer block, and no text has a tag or asks for a format."""
    make, is_answer = GRAMMAR[kind]
    asked = 0
    for index, (_, scene) in enumerate(scenes(300, seed=16)):
        question, again = (make(random.Random(index), scene) for _ in range(2))
        assert question == again, "the same rng asks the same"
        if question is None:
            continue
        asked += 1
        assert question.kind == kind and question.thought and question.seen
        assert bool(question.hasty) == (kind not in NOT_HASTY)
        for answer in filter(None, (question.answer, question.hasty)):
            assert is_answer(answer), question
            assert parse_answer(f"<answer>{answer}</answer>") == answer
        assert len(question.thought.split()) <= 70 and len(question.prompt.split()) <= 60
        for text in (question.answer, question.hasty, question.thought, question.seen):
            assert not has_tag(text)
        assert "<" not in question.prompt and "answer" not in question.prompt.lower()
    assert asked > 120


@pytest.mark.parametrize("kind, low, high", [
    ("det", 0.0, 0.0), ("ground", 0.0, 0.0), ("count", 0.1, 0.5), ("entail", 0.25, 0.42),
    ("vqa", 0.1, 0.6), ("measure", 0.05, 0.4), ("change", 0.3, 0.7), ("why", 0.25, 0.42),
    ("order", 0.02, 0.25), ("next", 0.0, 0.0),
])  # fmt: skip
def test_a_hasty_answer_is_right_by_luck_only(kind, low, high):
    make, _ = GRAMMAR[kind]
    asked = [make(rng, scene) for rng, scene in scenes(600, seed=17)]
    right = np.mean([question.hasty == question.answer for question in asked if question])
    assert low <= right <= high
