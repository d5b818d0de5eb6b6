"""The garden world: pictures repeat exactly, splits never meet, boxes are tight, answers are true.

Answers are checked by a second, independent reader: it parses the prompt *text*, tries every flower
of the scene under the strictest and under the loosest meaning of the words, and never calls the
generator's helpers. Puzzles (measuring, changes, causes, growth) have a file of their own,
tests/data/garden/test_puzzles.py. Run: `pytest tests/data/garden/test_world.py` (a few seconds).
"""

import json
import random
import time
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from data.garden import world
from data.garden.drawing import PETAL_RGB, draw_flower, draw_scene, paint_flower
from data.garden.questions import (
    PORTRAIT_QUESTIONS,
    SCENE_QUESTIONS,
    UNDECIDABLE,
    ask_caption,
    ask_cls,
    ask_count,
    ask_det,
    ask_entail,
    ask_ground,
    ask_vqa,
    references,
)
from data.garden.world import (
    CENTRES,
    COLOURS,
    GENERA,
    OOD_SPECIES,
    PETAL_COUNTS,
    RL_SPECIES,
    SHAPES,
    SPECIES,
    SPLITS,
    WELL_KNOWN,
    Flower,
    Placed,
    box_1000,
    change_scene,
    class_examples,
    random_flower,
    render_seed,
    sample_scene,
    shifted,
    species_answer,
)
from runtime.errors import InputError

WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")


def scenes(count, seed=0):
    rng = random.Random(seed)
    for index in range(count):
        yield rng, sample_scene(rng, 1 + index % 7)


def attributes(flower):
    return (flower.petals, flower.shape, flower.colour, flower.centre)


def distance(first, second):
    return sum(a != b for a, b in zip(attributes(first), attributes(second), strict=True))


# ---- species -------------------------------------------------------------------------------------


def test_there_are_40_species_with_distinct_names_and_attributes():
    assert len(SPECIES) == len({s.name for s in SPECIES}) == len({s.flower for s in SPECIES}) == 40
    assert [sum(s.genus == genus for s in SPECIES) for genus in GENERA] == [4] * 10
    names = [s.name.lower() for s in SPECIES]
    assert not any(a in b for a in names for b in names if a != b)


def test_species_of_a_genus_differ_in_one_or_two_attributes_and_genera_in_at_least_two():
    for a, b in combinations(SPECIES, 2):
        d = distance(a.flower, b.flower)
        assert (1 <= d <= 2) if a.genus == b.genus else d >= 2, (a, b)


def test_an_epithet_alone_never_identifies_a_species():
    assert min(Counter(s.epithet for s in SPECIES).values()) >= 2


def test_every_genus_gives_three_species_to_rl_and_one_to_ood():
    assert Counter(s.genus for s in RL_SPECIES) == dict.fromkeys(GENERA, 3)
    assert Counter(s.genus for s in OOD_SPECIES) == dict.fromkeys(GENERA, 1)
    assert not set(RL_SPECIES) & set(OOD_SPECIES)
    assert len(WELL_KNOWN) == 12 and len(set(WELL_KNOWN) & set(OOD_SPECIES)) == 3


def test_species_answers_are_fine_with_the_stated_probabilities():
    rng = random.Random(0)
    for group, expected in ((WELL_KNOWN, 0.85), (set(SPECIES) - set(WELL_KNOWN), 0.2)):
        drawn = [(s, species_answer(s, rng)) for s in sorted(group, key=str) for _ in range(400)]
        assert all(answer in (s.name, s.genus) for s, answer in drawn)
        assert abs(np.mean([answer == s.name for s, answer in drawn]) - expected) < 0.02


def test_a_flower_that_cannot_be_drawn_is_refused_by_name():
    with pytest.raises(InputError, match="petals=7"):
        Flower(7, "round", "red", "yellow")
    with pytest.raises(InputError, match="invisible"):
        Flower(5, "round", "white", "white")


# ---- seeds and splits ----------------------------------------------------------------------------


def test_rendering_seeds_of_splits_species_images_and_seeds_never_meet():
    seen = [
        seed
        for split in SPLITS
        for split_seed in (0, 2503)
        for _, seed, _ in class_examples(SPECIES, 5, split, split_seed)
    ]
    assert len(seen) == len(set(seen)) == 4 * 2 * 40 * 5
    corners = [
        render_seed(split, seed, subject, index)
        for split in SPLITS
        for seed in (0, 2**24 - 1)
        for subject in (0, 4095)
        for index in (0, 2**24 - 1)
    ]
    assert len(set(corners)) == len(corners)
    with pytest.raises(InputError, match="index"):
        render_seed("train", 0, 0, 2**24)
    with pytest.raises(InputError, match="split 'dev'"):
        list(class_examples(SPECIES, 1, "dev", 0))


def test_the_one_shot_set_is_part_of_the_four_shot_set():
    one, four = (list(class_examples(RL_SPECIES, shots, "train", 2503)) for shots in (1, 4))
    assert four[:30] == one and {s for _, _, s in one} == set(RL_SPECIES)
    assert len({identifier for identifier, _, _ in four}) == 120


# ---- pictures ------------------------------------------------------------------------------------


def test_pictures_and_scenes_are_functions_of_their_seed():
    flower = SPECIES[0].flower
    first, again, other = (np.asarray(draw_flower(flower, seed)) for seed in (5, 5, 6))
    assert first.shape == (64, 64, 3) and first.dtype == np.uint8
    assert (first == again).all() and (first != other).mean() > 0.5
    scene = sample_scene(random.Random(1), 3)
    assert scene == sample_scene(random.Random(1), 3)
    drawn = [np.asarray(draw_scene(scene, seed)) for seed in (5, 5, 6)]
    assert drawn[0].shape == (96, 96, 3)
    assert (drawn[0] == drawn[1]).all() and (drawn[0] != drawn[2]).any()


def test_petals_reach_the_four_sides_of_their_box_within_two_pixels():
    rng = random.Random(2)
    for petals in PETAL_COUNTS:
        for shape in SHAPES:
            for side in (20, 44):
                flower = Flower(petals, shape, "red", "yellow")
                layer = Image.new("RGBA", (96 * 4, 96 * 4))
                paint_flower(layer, flower, (32 * 4, 16 * 4, (32 + side) * 4, (20 + side) * 4), rng)
                alpha = np.asarray(layer.resize((96, 96), Image.Resampling.LANCZOS))[..., 3] >= 96
                rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
                measured = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
                expected = (32, 16, 32 + side, 20 + side)
                gaps = np.abs(np.subtract(measured, expected))
                assert gaps.max() <= 2, (flower, side, measured)


def test_the_nearest_palette_colour_names_every_flower():
    """Colour jitter and light must never carry a petal over to the colour of another name."""
    palette = np.array([PETAL_RGB[name] for name in COLOURS])
    for seed in range(60):
        flower = random_flower(random.Random(seed))
        layer = Image.new("RGBA", (256, 256))
        paint_flower(layer, flower, (0, 0, 256, 256), random.Random(seed))
        pixels = np.asarray(layer).reshape(-1, 4)
        pixels = pixels[pixels[:, 3] == 255, :3].astype(int)
        votes = ((pixels[:, None] - palette) ** 2).sum(-1).argmin(1)
        assert COLOURS[np.bincount(votes).argmax()] == flower.colour, (seed, flower)


def test_a_change_repaints_only_the_changed_flower():
    scene = (Placed(SPECIES[0].flower, "small", 0, 0, 20, 20),) + (
        Placed(SPECIES[5].flower, "small", 60, 60, 80, 80),
    )
    before, after = (np.asarray(draw_scene(s, 9)).astype(int) for s in (scene, scene[:1]))
    changed = np.abs(before - after).sum(-1) > 0
    assert changed[60:80, 60:80].any() and not changed[:50, :].any() and not changed[:, :50].any()


def test_drawing_a_portrait_takes_milliseconds():
    draw_flower(SPECIES[0].flower, 0)
    started = time.process_time()
    for index in range(40):
        draw_flower(SPECIES[index].flower, index)
    assert (
        time.process_time() - started
    ) / 40 < 0.02  # about 0.002; the slack is for slow machines


# ---- scenes --------------------------------------------------------------------------------------


def test_scenes_keep_to_the_grid_the_frame_the_sizes_and_the_reading_order():
    numbers = set()
    for index, (_, scene) in enumerate(scenes(350)):
        assert len(scene) == 1 + index % 7
        centres = [((p.y0 + p.y1) / 2, (p.x0 + p.x1) / 2) for p in scene]
        assert centres == sorted(centres)
        for p in scene:
            assert all(value % 4 == 0 and 0 <= value <= 96 for value in (p.x0, p.y0, p.x1, p.y1))
            low, high = (20, 28) if p.size == "small" else (36, 44)
            assert low <= p.x1 - p.x0 <= high and low <= p.y1 - p.y0 <= high
            assert len(scene) <= 4 or p.size == "small"
            numbers.update(box_1000(p))
        for a, b in combinations(scene, 2):
            assert a.x1 <= b.x0 or b.x1 <= a.x0 or a.y1 <= b.y0 or b.y1 <= a.y0
    assert numbers <= {round(4 * k / 96 * 1000) for k in range(25)}


def test_box_1000_is_the_rounded_thousandth():
    assert box_1000(Placed(SPECIES[0].flower, "small", 4, 0, 28, 96)) == (42, 0, 292, 1000)


def test_replaying_the_calls_turns_the_first_scene_into_the_second():
    actions = Counter()
    for rng, scene in scenes(400, seed=8):
        after, calls = change_scene(scene, rng, rng.randint(1, min(3, len(scene))))
        left = sorted(str([p.flower.colour, p.size, (p.x0 + p.x1, p.y0 + p.y1)]) for p in after)
        assert replay(scene, calls) == left, (calls, scene)
        actions.update(call.split("(")[0] for call in calls)
        for p in after:
            low, high = (20, 28) if p.size == "small" else (36, 44)
            assert low <= p.x1 - p.x0 <= high and low <= p.y1 - p.y0 <= high
            assert all(v % 4 == 0 and 0 <= v <= 96 for v in (p.x0, p.y0, p.x1, p.y1))
        for a, b in combinations(after, 2):
            assert a.x1 <= b.x0 or b.x1 <= a.x0 or a.y1 <= b.y0 or b.y1 <= a.y0
    assert set(actions) == {"change_colour", "change_size", "remove"}
    assert min(actions.values()) > 40


def replay(scene, calls):
    """Apply the calls to the numbered flowers; what is left, as sorted texts."""
    state = {
        f"f{k}": [p.flower.colour, p.size, (p.x0 + p.x1, p.y0 + p.y1)]
        for k, p in enumerate(scene, start=1)
    }
    for call in calls:
        name, arguments = call[:-1].split("(")
        number, *value = arguments.split(", ")
        if name == "remove":
            del state[number]
        else:
            slot = {"change_colour": 0, "change_size": 1}[name]
            assert state[number][slot] != value[0], "a change must change something"
            state[number][slot] = value[0]
    return sorted(map(str, state.values()))


def test_a_step_aside_moves_all_flowers_alike_or_is_refused():
    refused = 0
    for rng, scene in scenes(200, seed=13):
        dx, dy = (4 * rng.randint(-3, 3) for _ in range(2))
        boxes = [(p.x0 + dx, p.y0 + dy, p.x1 + dx, p.y1 + dy) for p in scene]
        moved = shifted(scene, dx, dy)
        if any(not 0 <= value <= 96 for box in boxes for value in box):
            refused += 1
            assert moved is None
            continue
        assert [(p.x0, p.y0, p.x1, p.y1) for p in moved] == boxes
        assert [(p.flower, p.size) for p in moved] == [(p.flower, p.size) for p in scene]
    assert 40 < refused < 190


def test_scenes_out_of_range_are_refused():
    for n in (0, 8):
        with pytest.raises(InputError, match="n_objects"):
            sample_scene(random.Random(0), n)
    with pytest.raises(InputError, match="n_changes"):
        change_scene(sample_scene(random.Random(0), 2), random.Random(0), 3)


# ---- an independent reader of prompts ------------------------------------------------------------


def colour_in(text):
    return next(word for word in text.replace(".", "").split() if word in COLOURS)


def box_text(p):
    return str([round(v * 1000 / 96) for v in (p.x0, p.y0, p.x1, p.y1)])


def fitting(scene, phrase):
    """(flowers that surely fit the phrase, flowers that could fit it), by trying every flower."""
    if phrase in ("the largest flower", "the smallest flower"):
        sign = 1 if "largest" in phrase else -1
        area = {p: (p.x1 - p.x0) * (p.y1 - p.y0) for p in scene}
        best = max(area, key=lambda p: sign * area[p])
        near = [p for p in scene if max(area[p], area[best]) < 1.25 * min(area[p], area[best])]
        return [best], near
    if "that is not" in phrase:
        both = [p for p in scene if p.flower.colour != colour_in(phrase)]
        return both, both
    for words, axis, sign in (
        ("left of", 0, -1),
        ("right of", 0, 1),
        ("above", 1, -1),
        ("below", 1, 1),
    ):
        if words in phrase:
            (start,) = [p for p in scene if p.flower.colour == colour_in(phrase)]
            spans = {p: ((p.x0, p.x1), (p.y0, p.y1))[axis] for p in scene}
            low, high = spans[start]
            loose = [p for p in scene if sign * (sum(spans[p]) - low - high) > 0]
            sure = [p for p in loose if (spans[p][1] <= low if sign < 0 else spans[p][0] >= high)]
            return sure, loose
    both = [p for p in scene if p.flower.colour == colour_in(phrase)]
    return both, both


def count_answer(scene, prompt):
    shown = [p.flower.colour for p in scene]
    named = [w for w in prompt.replace("?", "").replace(",", "").split() if w in COLOURS]
    matching = sum(shown.count(colour) for colour in named)
    if prompt.startswith("If all"):
        return len(shown) - matching
    return matching if named else len(shown)


def entail_answer(scene, statement):
    shown = [p.flower.colour for p in scene]
    if statement in UNDECIDABLE:
        return "unknown"
    if statement.startswith("there is a "):
        truth = colour_in(statement) in shown
    elif statement.startswith("the number of flowers is "):
        truth = int(statement.rsplit(" ", 1)[1]) == len(shown)
    elif statement.startswith("there are more "):
        first, second = [word for word in statement.split() if word in COLOURS]
        truth = shown.count(first) > shown.count(second)
    else:
        (flower,) = [p for p in scene if p.flower.colour == colour_in(statement)]
        truth = (flower.x1 - flower.x0 >= 36) == statement.endswith("large")
    return "yes" if truth else "no"


# ---- questions -----------------------------------------------------------------------------------


def test_referring_phrases_fit_exactly_one_flower_in_every_reading():
    kinds = Counter()
    for _, scene in scenes(300, seed=3):
        for anchor in ("one", "flower"):
            for reference in references(scene, anchor):
                sure, possible = fitting(scene, reference.phrase)
                assert sure == possible == [reference.target], (reference.phrase, scene)
                kinds[reference.kind] += 1
                if reference.kind == "relation":
                    assert reference.phrase.split()[-1] == anchor
    assert set(kinds) == {"colour", "not", "size", "relation"} and min(kinds.values()) > 20


def test_grounding_and_open_answers_match_the_independent_reader():
    asked = Counter()
    for rng, scene in scenes(400, seed=4):
        if question := ask_ground(rng, scene):
            ((target,), _) = fitting(scene, question.prompt.removeprefix("Where is ")[:-1])
            assert question.answer == box_text(target)
            asked["ground"] += 1
        if question := ask_vqa(rng, scene):
            for words, attribute in (
                ("What colour is ", "colour"),
                ("What shape are the petals of ", "shape"),
            ):
                if question.prompt.startswith(words):
                    ((target,), _) = fitting(scene, question.prompt.removeprefix(words)[:-1])
                    assert question.answer == getattr(target.flower, attribute)
                    asked[attribute] += 1
            assert question.answer not in question.prompt, "the question gives the answer away"
            asked["vqa"] += 1
    assert asked["colour"] + asked["shape"] == asked["vqa"]
    assert min(asked["ground"], asked["colour"], asked["shape"]) > 80


def test_ambiguous_scenes_get_no_grounding_question():
    flower = Flower(5, "round", "red", "yellow")
    twins = (Placed(flower, "small", 0, 0, 20, 20), Placed(flower, "small", 40, 0, 60, 20))
    assert ask_ground(random.Random(0), twins) is None
    assert ask_vqa(random.Random(0), twins) is None
    assert ask_cls(random.Random(0), Flower(8, "heart", "orange", "white")) is None


def test_detection_answers_are_visual_rft_json_in_reading_order_or_no_objects():
    absent = 0
    for rng, scene in scenes(400, seed=5):
        question = ask_det(rng, scene, confidence="0.8")
        expected = [p for p in scene if p.flower.colour == colour_in(question.prompt)]
        if not expected:
            absent += 1
            assert question.answer == "No Objects"
            continue
        answer = json.loads(question.answer)
        assert [item["Confidence"] for item in answer] == [0.8] * len(expected)
        assert [str(item["Position"]) for item in answer] == [box_text(p) for p in expected]
        assert all(set(item) == {"Position", "Confidence"} for item in answer)
    assert 30 < absent < 100


def test_counts_match_the_independent_reader_and_the_thought_ends_in_the_answer():
    for rng, scene in scenes(700, seed=6):
        question = ask_count(rng, scene)
        assert question.answer == str(count_answer(scene, question.prompt)), (question, scene)
        assert question.answer in question.thought.split(": ")[1].split(",")[-1].split()


def test_entailment_answers_match_the_independent_reader_and_are_balanced():
    answers = Counter()
    for rng, scene in scenes(900, seed=7):
        question = ask_entail(rng, scene)
        statement = question.prompt.removeprefix("Yes, no or unknown: ")[:-1]
        assert question.answer == entail_answer(scene, statement), (question, scene)
        answers[question.answer] += 1
    assert set(answers) == {"yes", "no", "unknown"} and min(answers.values()) > 240


def test_portrait_answers_state_the_attributes_drawn():
    rng = random.Random(9)
    for species in SPECIES:
        flower = species.flower
        for name, ask in PORTRAIT_QUESTIONS.items():
            question = ask(rng, flower)
            seen = f"{WORDS[flower.petals]} {flower.shape} {flower.colour} petals, {flower.centre}"
            assert question.thought == question.seen == f"{seen} centre" and question.kind == name
            assert question.hasty == "", "portraits are named coarsely, not hastily"
        assert PORTRAIT_QUESTIONS["cls"](rng, flower).answer == species.name
        assert PORTRAIT_QUESTIONS["genus"](rng, flower).answer == species.genus
        for _ in range(8):
            question = PORTRAIT_QUESTIONS["attribute"](rng, flower)
            field = {"many": "petals", "shape": "shape"}.get(question.prompt.split()[1])
            field = field or ("centre" if "centre" in question.prompt else "colour")
            assert question.answer == str(getattr(flower, field))


def test_scene_captions_name_every_colour_with_its_count():
    for rng, scene in scenes(100, seed=10):
        words = ask_caption(rng, scene).answer.lower().strip(".").replace(",", "").split()
        stated = {
            words[k]: WORDS.index(words[k - 1]) for k in range(len(words)) if words[k] in COLOURS
        }
        assert stated == Counter(p.flower.colour for p in scene)


def test_questions_are_deterministic_and_short():
    for ask in SCENE_QUESTIONS.values():
        for index, (_, scene) in enumerate(scenes(60, seed=11)):
            first, again = (ask(random.Random(index), scene) for _ in range(2))
            assert first == again
            if first is not None:
                limit = 14 if len(scene) <= 4 else 16
                assert len(first.prompt.split()) <= limit and len(first.thought.split()) <= 25
                assert first.seen == ", ".join(p.flower.colour for p in scene)


def test_random_flowers_reach_every_value_of_every_attribute():
    rng = random.Random(12)
    drawn = [random_flower(rng) for _ in range(400)]
    assert {f.petals for f in drawn} == set(PETAL_COUNTS) and {f.shape for f in drawn} == set(
        SHAPES
    )
    assert {f.colour for f in drawn} == set(COLOURS) and {f.centre for f in drawn} == set(CENTRES)
    assert world.species_of(SPECIES[3].flower) is SPECIES[3]
