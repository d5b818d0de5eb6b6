"""The questions of the garden: every answer is recomputed from the boxes, and none is ambiguous.

What is guaranteed about data/garden/questions.py, statements.py and puzzles.py. A second,
independent reader checks the answers: it parses the prompt *text*, tries every flower of the scene
under the strictest and under the loosest meaning of the words, and never calls the generator's
helpers.
Run: pytest tests/data/garden/test_questions.py
"""

import json
import random
import re
from collections import Counter
from functools import partial
from itertools import permutations

import numpy as np
import pytest

import answers
from data.garden import puzzles, questions, statements, world
from data.garden.questions import references
from data.garden.world import COLOURS, SPECIES, STAGES, Flower, Placed

WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")


def scenes(count, seed=0):
    rng = random.Random(seed)
    for index in range(count):
        yield rng, world.sample_scene(rng, 1 + index % 7)


def with_scenes(ask, count, seed):
    """Scenes about which the generator has something to ask, with the question."""
    for rng, scene in scenes(count, seed):
        if question := ask(rng, scene):
            yield scene, question


# ---- an independent reader -----------------------------------------------------------------------


def colours_in(text):
    return [word for word in re.findall("[a-z]+", text) if word in COLOURS]


def the(scene, colour):
    """The only flower of this colour."""
    (flower,) = [p for p in scene if p.flower.colour == colour]
    return flower


def centre(p):
    """Centre of the box in cm: 96 pixels are 24 cm."""
    return (p.x0 + p.x1) / 2 / 96 * 24, (p.y0 + p.y1) / 2 / 96 * 24


def width(p):
    return (p.x1 - p.x0) / 96 * 24


def size_of(p):
    return "large" if p.x1 - p.x0 >= 36 else "small"


def box_of(p):
    return [round(value * 1000 / 96) for value in (p.x0, p.y0, p.x1, p.y1)]


def fitting(scene, phrase):
    """(flowers that surely fit the phrase, flowers that could fit it), by trying every flower."""
    if phrase in ("the largest flower", "the smallest flower"):
        sign = 1 if "largest" in phrase else -1
        area = {p: (p.x1 - p.x0) * (p.y1 - p.y0) for p in scene}
        best = max(area, key=lambda p: sign * area[p])
        near = [p for p in scene if max(area[p], area[best]) < 1.25 * min(area[p], area[best])]
        return [best], near
    (colour,) = colours_in(phrase)
    relations = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}
    for words, (axis, sign) in relations.items():
        if words in phrase:
            start = the(scene, colour)
            spans = {p: ((p.x0, p.x1), (p.y0, p.y1))[axis] for p in scene}
            low, high = spans[start]
            loose = [p for p in scene if sign * (sum(spans[p]) - low - high) > 0]
            sure = [p for p in loose if (spans[p][1] <= low if sign < 0 else spans[p][0] >= high)]
            return sure, loose
    both = [p for p in scene if (p.flower.colour != colour) == ("that is not" in phrase)]
    return both, both


# ---- portraits, references and boxes -------------------------------------------------------------


def test_portrait_answers_state_the_attributes_drawn():
    rng = random.Random(9)
    for species in SPECIES:
        flower = species.flower
        seen = f"{WORDS[flower.petals]} {flower.shape} {flower.colour} petals, {flower.centre}"
        assert questions.ask_cls(rng, flower).answer == species.name
        assert questions.ask_genus(rng, flower).answer == species.genus
        for _ in range(8):
            question = questions.ask_attribute(rng, flower)
            field = {"many": "petals", "shape": "shape"}.get(question.prompt.split()[1])
            field = field or ("centre" if "centre" in question.prompt else "colour")
            assert question.answer == str(getattr(flower, field))
            assert question.thought == question.seen == f"{seen} centre"


def test_scene_captions_name_every_colour_with_its_count():
    for scene, question in with_scenes(questions.ask_caption, 100, seed=10):
        words = question.answer.lower().strip(".").replace(",", "").split()
        counts = {w: WORDS.index(words[k - 1]) for k, w in enumerate(words) if w in COLOURS}
        assert counts == Counter(p.flower.colour for p in scene)


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
    counts = Counter()
    for scene, question in with_scenes(questions.ask_ground, 400, seed=4):
        ((target,), _) = fitting(scene, question.prompt.removeprefix("Where is ")[:-1])
        assert json.loads(question.answer) == box_of(target)
        counts["ground"] += 1
    for scene, question in with_scenes(questions.ask_vqa, 400, seed=4):
        pattern = r"What (?:colour is|(shape) are the petals of) (.+)\?"
        shape, phrase = re.fullmatch(pattern, question.prompt).groups()
        ((target,), _), attribute = fitting(scene, phrase), shape or "colour"
        assert question.answer == getattr(target.flower, attribute)
        assert question.answer not in question.prompt, "the question gives the answer away"
        counts[attribute] += 1
    assert set(counts) == {"ground", "colour", "shape"} and min(counts.values()) > 80


def test_ambiguous_pictures_get_no_question():
    flower = Flower(5, "round", "red", "yellow")
    twins = (Placed(flower, "small", 0, 0, 20, 20), Placed(flower, "small", 40, 0, 60, 20))
    asks = (questions.ask_ground, questions.ask_vqa, questions.ask_look)
    for ask in (*asks, puzzles.ask_measure, puzzles.ask_why):
        assert ask(random.Random(0), twins) is None
    unknown = Flower(8, "heart", "orange", "white")
    assert questions.ask_cls(random.Random(0), unknown) is None
    assert questions.ask_genus(random.Random(0), unknown) is None


# There is no choice of one category: it is absent where the scene lacks it.
@pytest.mark.parametrize("categories, low, high", [(["red"], 160, 400), (COLOURS, 30, 100)])
def test_detection_lists_every_box_of_one_category_or_no_objects(categories, low, high):
    colours, absent = Counter(), 0
    ask = partial(questions.ask_det, confidence="0.8", categories=categories)
    for scene, question in with_scenes(ask, 400, seed=5):
        (colour,) = colours_in(question.prompt)
        colours[colour] += 1
        matches = [p for p in scene if p.flower.colour == colour]
        absent += not matches
        items = [] if question.answer == "No Objects" else json.loads(question.answer)
        assert items == [{"Position": box_of(p), "Confidence": 0.8} for p in matches]
        hasty = json.loads(question.hasty)  # coarse boxes, also where there is nothing
        for item, p in zip(hasty, matches or scene[:1], strict=True):
            grown = np.subtract(item["Position"], box_of(p)) * (-1, -1, 1, 1)
            assert (grown >= 0).all() and (grown < 167).all() and grown.any(), "under 16 pixels"
    assert set(colours) == set(categories) and low < absent < high


def test_looks_and_regions_tell_the_truth_about_one_flower():
    healths = Counter()
    for rng, scene in scenes(300, seed=18):
        ailing = {0: "drought", len(scene) - 1: "snail"}
        if question := questions.ask_look(rng, scene, ailing):
            flower = the(scene, *colours_in(question.prompt))
            box, _, rest = question.answer.partition("], ")
            assert json.loads(box + "]") == box_of(flower)
            wide, size, looks, middle, health = rest.split(", ")
            assert (int(wide), size) == (width(flower), size_of(flower))
            assert looks == f"{WORDS[flower.flower.petals]} {flower.flower.shape} petals"
            assert middle == f"{flower.flower.centre} centre"
            assert health == ailing.get(scene.index(flower), "healthy")
            healths[health] += 1
        for after in (None, scene[1:]):
            question = questions.ask_region(rng, scene, after)
            place = json.loads(question.prompt[len("What is at ") :].split("]")[0] + "]")
            assert ("second picture" in question.prompt) == (after is not None)
            (flower,) = [p for p in scene if box_of(p) == place]
            gone = after is not None and flower not in after
            look = f"{size_of(flower)} {flower.flower.colour}"
            assert question.answer == ("nothing" if gone else look)
    assert min(healths.values()) > 20 and len(healths) == 3


# ---- numbers and statements ----------------------------------------------------------------------


def test_counts_match_the_independent_reader_and_the_thought_ends_in_the_answer():
    for scene, question in with_scenes(questions.ask_count, 700, seed=6):
        colours = Counter(p.flower.colour for p in scene)
        named = colours_in(question.prompt)
        count = sum(colours[colour] for colour in named) if named else len(scene)
        count = len(scene) - count if question.prompt.startswith("If all") else count
        assert question.answer == str(count), (question, scene)
        assert question.answer in question.thought.split(": ")[1].split(",")[-1].split()
        assert question.hasty == str(len(scene) if named else len(colours)), "something simpler"


def verdict_of(scene, statement):
    """(Answer, whether it is beyond doubt)."""
    subject, *others = named = colours_in(statement.replace("white centre", "").partition("has")[0])
    counts = Counter(p.flower.colour for p in scene)
    if any(counts[colour] == 0 for colour in named):
        return "unknown", True
    if any(counts[colour] > 1 for colour in named):
        return None, False
    if others:
        phrase = statement.removeprefix(f"the {subject} flower is ")
        sure, possible = (the(scene, subject) in found for found in fitting(scene, phrase))
        return "yes" if sure else "no", sure == possible
    p, words = the(scene, subject), statement.split()
    if "has" in words:
        value = words[-2]
        is_true = value == (p.flower.centre if words[-1] == "centre" else p.flower.shape)
    else:
        is_true = words[-1] == size_of(p)
    return "yes" if is_true else "no", True


def test_entailment_answers_match_the_independent_reader_and_are_balanced():
    counts, kinds = Counter(), Counter()
    for scene, question in with_scenes(statements.ask_entail, 900, seed=7):
        statement = question.prompt.removeprefix("Yes, no or unknown: ")[:-1]
        assert verdict_of(scene, statement) == (question.answer, True), (question, scene)
        counts[question.answer] += 1
        kinds[" ".join(w for w in statement.split() if w not in COLOURS)] += 1
    assert set(counts) == set(statements.VERDICTS) and min(counts.values()) > 220
    assert len(kinds) == 2 + 4 + 3 + 4, "sizes, shapes, centres (yellow and white in one), places"


def test_every_statement_is_true_false_and_undecided_somewhere_and_never_where_in_doubt():
    found = {assertion: set() for assertion in statements.ASSERTIONS}
    assert len(found) == len({a.text for a in found}) == 7 * 2 + 7 * 4 + 7 * 4 - 2 + 7 * 6 * 4
    for _, scene in scenes(3000, seed=8):
        for assertion in random.Random(str(scene)).sample(statements.ASSERTIONS, 20):
            answer, is_sure = verdict_of(scene, assertion.text)
            assert assertion.verdict(scene) == (answer if is_sure else None), (assertion, scene)
            question = statements.ask_assertion(assertion, scene)
            assert question.answer == answer if is_sure else question is None
            found[assertion].add(assertion.verdict(scene))
    shown = Counter(len(verdicts - {None}) for verdicts in found.values())
    assert shown[3] > 200 and not shown[0], shown


# ---- measuring -----------------------------------------------------------------------------------


def test_lengths_are_those_of_the_boxes_and_the_thought_computes_them():
    """It reads "red 6", "red 6, blue 5: 6 - 5 = 1" or "red at 3, blue at 9: ..."."""
    kinds, lengths = Counter(), Counter()
    for scene, question in with_scenes(puzzles.ask_measure, 900, seed=1):
        if not question.prompt.endswith("?"):
            continue
        scale, _, prompt = question.prompt.partition(". ")
        assert scale == "The picture is 24 cm wide"
        flowers = [the(scene, colour) for colour in colours_in(prompt)]
        values = [centre(p)[0] if "left to right" in prompt else width(p) for p in flowers]
        length = values[0] if len(values) == 1 else abs(values[0] - values[1])
        assert answers.parse_number(question.answer) == length and question.hasty == "12"
        terms, _, work = question.thought.partition(": ")
        assert colours_in(terms) == colours_in(prompt)
        assert [float(number) for number in re.findall(r"[\d.]+", terms)] == values
        if len(values) == 2:
            assert work == f"{max(values):g} - {min(values):g} = {question.answer}"
        kinds[prompt.split()[1]] += 1  # how "wide", "by" how much, how "far"
        lengths[question.answer] += 1
    assert len(kinds) == 3 and min(kinds.values()) > 60
    assert any(length.endswith(".5") for length in lengths), "middles lie on half centimetres"
    assert lengths["0"] > 5 and max(lengths.values()) < 0.3 * lengths.total(), "no good guess"


def test_an_option_to_choose_is_the_width_or_the_farthest_by_a_clear_lead():
    letters, kinds = Counter(), Counter()
    for scene, question in with_scenes(puzzles.ask_measure, 2000, seed=3):
        if question.prompt.endswith("?"):
            continue
        prompt, _, listed = question.prompt.partition("? ")
        options = dict(option.split(" ") for option in listed.split(", "))
        assert "".join(options) == "ABCD"[: len(options)] and question.hasty == "A"
        start = the(scene, *colours_in(prompt))
        if "How wide" in prompt:
            widths = [int(option) for option in options.values()]
            assert widths == sorted(set(widths)) and set(widths) <= {5, 6, 7, 9, 10, 11}
            assert len(options) == 4 and int(options[question.answer]) == width(start)
            assert question.thought == f"{start.flower.colour} {options[question.answer]}"
        else:
            assert prompt.startswith("Which is farthest from the")
            (x, y), away = centre(start), {}
            for letter, colour in options.items():
                u, v = centre(the(scene, colour))
                away[letter] = ((u - x) ** 2 + (v - y) ** 2) ** 0.5
            best, second = sorted(away, key=away.get, reverse=True)[:2]
            assert question.answer == best and away[best] >= 1.2 * away[second] - 1e-9
            rounded = [f"{options[letter]} {away[letter]:.0f}" for letter in options]
            assert question.thought == f"{', '.join(rounded)}: {options[best]}"
            assert len(options) == 3 and start.flower.colour not in options.values()
        letters[prompt[:9], question.answer] += 1
        kinds[prompt[:9]] += 1
    assert len(letters) == 4 + 3, "every letter occurs"
    assert all(n < 0.6 * kinds[kind] for (kind, _), n in letters.items()), "none is a good guess"


# ---- changes, causes, growth ---------------------------------------------------------------------


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


@pytest.mark.parametrize("p_shifted", [0.0, 1.0])
def test_the_two_pictures_determine_prompt_thought_and_calls_of_a_change(p_shifted):
    moved, counts = 0, Counter()
    ask = partial(puzzles.ask_change, p_shifted=p_shifted)
    for scene, question in with_scenes(ask, 400, seed=4):
        dx, dy = view_of(scene, question.after) if question.after else (0, 0)
        moved += (dx, dy) != (0, 0)
        assert not p_shifted or dx or dy
        after = {(x - dx, y - dy): p for p in question.after for x, y in [centre(p)]}
        objects, states, calls = [], [], []
        for number, old in enumerate(scene, start=1):
            look = (size_of(old), old.flower.colour)
            objects.append(f"f{number} {' '.join(look)} {box_of(old)}")
            new = after.get(centre(old))
            if new is None:
                states.append(f"f{number} gone")
                calls.append(("remove", f"f{number}"))
                continue
            new_look, verdict = (size_of(new), new.flower.colour), "same"
            if new_look != look:
                verdict = "size" if new_look[0] != look[0] else "colour"
                value = new_look[verdict == "colour"]
                calls.append((f"change_{verdict}", f"f{number}", value))
            states.append(f"f{number} {box_of(new)} {' '.join(new_look)} {verdict}")
        assert question.prompt == f"What changed? {', '.join(objects)}."
        assert question.thought == f"now {', '.join(states)}"
        assert answers.parse_calls(question.answer) == calls
        assert answers.parse_calls(question.hasty) == calls[:1]
        counts[len(calls)] += 1
    assert set(counts) == {1, 2, 3} and min(counts.values()) > 30
    assert moved > 200 if p_shifted else moved == 0


def test_the_flower_in_question_has_the_answered_cause_and_another_flower_another_one():
    causes = Counter()
    for scene, question in with_scenes(puzzles.ask_why, 400, seed=7):
        place = scene.index(the(scene, *colours_in(question.prompt)))
        assert question.ailing[place] == question.answer
        assert len(question.ailing) == min(2, len(scene)) == len(set(question.ailing.values()))
        assert set(question.ailing) <= set(range(len(scene)))
        assert question.thought == f"{scene[place].flower.colour} {question.answer}"
        causes[question.answer] += 1
    assert set(causes) == set(world.CAUSES) and max(causes.values()) < 0.45 * causes.total()


def test_growth_is_ordered_and_continued_in_its_stages():
    growth = ["sprout", "bud", "bloom", "seeds"]
    for stages in (stages for count in (2, 3, 4) for stages in permutations(STAGES, count)):
        question = puzzles.ask_order(random.Random(0), stages)
        letters = dict(zip("ABCD", stages, strict=False))
        assert question.prompt == f"Order the pictures {', '.join(letters)} by growth."
        answer = [letters[k] for k in answers.parse_sequence(question.answer)]
        assert answer == sorted(stages, key=growth.index)
        assert answers.parse_sequence(question.hasty) == list(letters), "as they are shown"
        assert question.thought == ", ".join(f"{k} {stage}" for k, stage in letters.items())
    for stage, follows in zip(growth[:-1], growth[1:], strict=True):
        question = puzzles.ask_next(random.Random(0), [stage])
        assert (question.answer, question.hasty, question.seen) == (follows, stage, stage)
    rng, draw = random.Random(11), puzzles.sample_stages
    assert {tuple(draw(rng, "order", 4)) for _ in range(600)} == set(permutations(STAGES))
    assert {s for _ in range(60) for s in draw(rng, "next")} == set(STAGES[:-1])


# ---- all kinds -----------------------------------------------------------------------------------

KINDS = sorted(questions.SUMMARIES.keys() - {"digit"})
NEVER_HASTY = ("cls", "genus", "attribute", "caption", "region", "look")
ALWAYS_WRONG_IF_HASTY = ("det", "ground", "next")


def generator(kind):
    """(rng, scene) -> question, whatever the kind is about."""
    modules = (puzzles, statements, questions)
    ask = next(found for m in modules if (found := getattr(m, f"ask_{kind}", None)))
    if kind in ("cls", "genus", "attribute"):
        return lambda rng, scene: ask(rng, rng.choice(SPECIES).flower)
    if kind in ("order", "next"):
        return lambda rng, scene: ask(rng, puzzles.sample_stages(rng, kind))
    return ask


@pytest.mark.parametrize("kind", KINDS)
def test_questions_repeat_fit_in_an_answer_block_and_are_hastily_right_by_luck_only(kind):
    count = right = 0
    for index, (_, scene) in enumerate(scenes(300, seed=16)):
        question, again = (generator(kind)(random.Random(index), scene) for _ in range(2))
        assert question == again
        if question is None:
            continue
        count, right = count + 1, right + (question.hasty == question.answer)
        assert question.kind == kind and question.thought and question.seen
        assert bool(question.hasty) == (kind not in NEVER_HASTY)
        for answer in filter(None, (question.answer, question.hasty)):
            assert answers.parse_answer(f"<answer>{answer}</answer>") == answer
        assert len(question.thought.split()) <= 70 and len(question.prompt.split()) <= 60
        assert not answers.has_tag(question.thought + question.seen)
        assert "<" not in question.prompt and "answer" not in question.prompt.lower()
    assert count > 120
    assert right <= (0 if kind in (*NEVER_HASTY, *ALWAYS_WRONG_IF_HASTY) else 0.7 * count)
