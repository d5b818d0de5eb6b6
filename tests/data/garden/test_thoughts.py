"""Thoughts checked against the facts: the generators' own are true, and one wrong word is found.

What is guaranteed about data/garden/facts.py, claims.py, thoughts.py and faithful.py.
Run: pytest tests/data/garden/test_thoughts.py
"""

import pickle
import random
import re
import time
from collections import Counter
from dataclasses import replace

import pytest

from answers import MAX_COMPLETION_CHARS
from data.examples import Reasoning, completion_text
from data.garden import puzzles, questions, world
from data.garden.facts import Facts, facts_of
from data.garden.faithful import IMPLIED, implied_answer, is_faithful, share_true
from data.garden.thoughts import check_completion, check_thought
from data.garden.world import COLOURS, SHAPES, STAGES, Flower, Placed
from tests.data.garden.test_questions import KINDS, WORDS, centre, generator, width

PORTRAITS, GROWTH = ("cls", "genus", "attribute"), ("order", "next")


def asked(kind, count, seed):
    """(rng, question, facts) of generated questions of a kind, about all sorts of pictures."""
    rng = random.Random(f"{kind} {seed}")
    for index in range(count):
        name, ask, more = "scene", generator(kind), {}
        picture = world.sample_scene(rng, 1 + index % 7)
        if kind in PORTRAITS or (kind == "caption" and index % 2):
            name, ask = "flower", getattr(questions, f"ask_{kind}")
            picture = rng.choice(world.SPECIES).flower
        elif kind in GROWTH:
            name, ask = "stages", getattr(puzzles, f"ask_{kind}")
            picture = puzzles.sample_stages(rng, kind, rng.choice((3, 4)))
        elif kind == "change":
            more = {"p_shifted": rng.choice((0.0, 1.0))}
        elif kind == "region" and index % 2:
            more = {"after": world.change_scene(picture, rng, 1)[0]}
        if question := ask(rng, picture, **more):
            question = replace(question, after=more.get("after", question.after))
            yield rng, question, facts_of(question, **{name: picture})


def truths(thought, facts, kind=None):
    return [s.is_true for s in check_thought(thought, kind or facts.kind, facts)]


# ---- the generators' own thoughts ----------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_exact_thought_and_caption_is_true_and_implies_its_answer(kind):
    count = 0
    for _, question, facts in asked(kind, 200, seed=0):
        for thought, of in ((question.thought, kind), (question.seen, "caption")):
            statements = check_thought(thought, of, facts)
            assert [s.is_true for s in statements] == [True] * len(statements) != [], thought
            assert all(thought[s.start : s.end] == s.text != "" for s in statements)
        for mode in ("think", "steps"):
            text = completion_text(question.answer, mode, question.reasoning)
            assert share_true(check_completion(text, facts)) == 1.0
            assert is_faithful(text, facts) is (True if kind in IMPLIED else None), text
        count += 1
    assert count > 150


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind in IMPLIED])
def test_a_hasty_or_empty_thought_states_nothing_and_implies_nothing(kind):
    for _, question, facts in asked(kind, 50, seed=1):
        for thought in ("at a glance", "", " . , :"):
            text = completion_text(question.hasty or question.answer, "think", Reasoning(thought))
            statements = check_completion(text, facts)
            assert not any(s.is_true for s in statements) and share_true(statements) is None
            assert implied_answer(statements, facts) is None and not is_faithful(text, facts)


def test_another_answer_than_the_thought_implies_is_not_faithful():
    for kind in IMPLIED:
        thoughts = list(asked(kind, 60, seed=2))
        for (_, first, facts), (_, second, _) in zip(thoughts, thoughts[1:], strict=False):
            text = completion_text(second.answer, "think", first.reasoning)
            assert is_faithful(text, facts) == (first.answer == second.answer)


# ---- one wrong word ------------------------------------------------------------------------------

CHOICES = [
    *(world.CENTRES, COLOURS, SHAPES, STAGES, WORDS, world.CAUSES, tuple(world.SIDES)),
    *("ABCD", ("largest", "smallest"), ("left of", "right of", "above", "below")),
    *(("same", "size", "colour"), [f"f{number}" for number in range(1, 9)]),
]
VALUES = {value: values for values in CHOICES for value in values}
FACT = re.compile(rf"\b(?!one(?: is|$))(?:{'|'.join(VALUES)}|\d+(?:\.\d+)?)\b")  # "the red one"


def mutated(rng, text):
    """The text with one of its facts replaced by another value of its kind."""
    found = rng.choice(list(FACT.finditer(text)))
    old = found[0]
    if old in VALUES:
        after = text[found.end() :].split()[:1]
        values = world.CENTRES if after == ["centre"] else VALUES[old]
        new = rng.choice([value for value in values if value != old])
    else:
        new = f"{max(0, float(old) + rng.choice((-3, -2, -1, -0.5, 0.5, 1, 2, 3))):g}"
        new = new if new != old else f"{float(old) + 1:g}"
    return text[: found.start()] + new + text[found.end() :]


def may_be_true(text, others, facts):
    """Whether a changed statement is true all the same, of the scene or of another flower.

    Literal and independent: every true sentence of its form is written down from the boxes.
    """
    scene, start = facts.scene, re.search(r"farthest from the (\w+)", facts.prompt)
    relations = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}
    counts = Counter(p.colour for p in scene)
    sentences = [f"{n} {c}" for c in COLOURS for n in (counts[c], WORDS[counts[c]])]
    for p in scene:
        looks = (p.size, p.flower.shape, p.flower.centre, f"{p.flower.centre} centre")
        sentences += [f"{p.colour} {look}" for look in looks]
    sentences += [f"f{k} gone" for k, new in enumerate(facts.after, 1) if new is None]
    for word, choose in (("largest", max), ("smallest", min)):
        area = choose((p.area for p in scene), default=0)
        sentences += [f"the {p.colour} one is {word}" for p in scene if p.area == area]
    for words, (axis, sign) in relations.items():
        for p in scene:
            beyond = [q for q in scene if sign * (centre(q)[axis] - centre(p)[axis]) > 0]
            sentences += [f"{words} {p.colour} is {q.colour}" for q in beyond]
    measured = []  # of a list, what other statements say of their own flowers cannot be said again
    for p in scene:
        (x, y), wide, high = centre(p), width(p), (p.y1 - p.y0) / 4
        asks_width = re.search("How wide|differ", facts.prompt)
        values = [f"{wide:g}"] * bool(asks_width) + [f"at {x:g}"] * ("How far" in facts.prompt)
        values += [f"{wide:g} {high:g}"] * ("est flower" in facts.prompt)
        values += [f"{int(x)} {int(y)}"] * (any(words in facts.prompt for words in relations))
        if start:
            (other,) = [q for q in scene if q.colour == start[1]]
            u, v = centre(other)
            values = [f"{((u - x) ** 2 + (v - y) ** 2) ** 0.5:.0f}"]
        measured += [f"{p.colour} {value}" for value in values]
    left = Counter(measured) - Counter(others)
    return text in sentences or text in left


@pytest.mark.parametrize("kind", KINDS)
def test_one_wrong_fact_makes_its_statement_untrue_and_no_other(kind):
    rng, count, still_true = random.Random(kind), 0, 0
    while count < 1000:
        for _, question, facts in asked(kind, 40, seed=count):
            statements = check_thought(question.thought, kind, facts)
            texts = [s.text for s in statements]
            for _ in range(10):
                k = rng.randrange(len(texts))
                if statements[k].claim.kind == "nothing":
                    continue
                changed = mutated(rng, texts[k])
                s = statements[k]
                thought = question.thought[: s.start] + changed + question.thought[s.end :]
                others = texts[:k] + texts[k + 1 :]
                expected = [True] * len(texts)
                expected[k] = may_be_true(changed.removeprefix("now "), others, facts)
                found = truths(thought, facts)
                assert found == expected, (question.prompt, question.thought, thought, facts)
                count, still_true = count + 1, still_true + expected[k]
    assert still_true < 0.35 * count


# ---- traps ---------------------------------------------------------------------------------------


def placed(colour, size, x0, y0, x1, y1, shape="round", middle="yellow"):
    return Placed(Flower(5, shape, colour, middle), size, x0, y0, x1, y1)


# red 5 5 above left, blue 10 9 on the right, red 6 5 below
SCENE = (
    placed("red", "small", 4, 0, 24, 20, "pointed"),
    placed("blue", "large", 40, 12, 80, 48, "heart", "brown"),
    placed("red", "small", 8, 60, 32, 80),
)


def facts(kind, prompt, **shown):
    return Facts(kind, prompt, **({"scene": SCENE} | shown))


LEFT = facts("count", "If all red flowers were picked, how many are left?")
REDS = facts("count", "How many red flowers?")
LARGEST = facts("vqa", "What colour is the largest flower?")
BLUE = facts("vqa", "What shape are the petals of the blue flower?")
RELATED = facts("ground", "Where is the flower above the blue one?")
PORTRAIT = facts("cls", "Which species?", scene=(), flower=Flower(6, "pointed", "red", "yellow"))
ORDER = facts("order", "Order the pictures A, B by growth.", scene=(), stages=("bloom", "bud"))
SIZE = facts("entail", "Yes, no or unknown: the blue flower is small.")
CENTRE = facts("entail", "Yes, no or unknown: the blue flower has a yellow centre.")
ABSENT = facts("entail", "Yes, no or unknown: the blue flower is above the pink flower.")
WHY = facts("why", "Why does the blue flower wilt?", causes=("snail", "shade", "healthy"))
T, F, N = True, False, None


@pytest.mark.parametrize(
    "about, thought, expected",
    [
        (LEFT, "red, blue, red: 3 flowers, 2 red, 3 - 2 = 1", [T] * 6),
        (LEFT, "red, blue, red, red", [T, T, T, F]),  # a flower that is not there
        (LEFT, "red, blue: 3 flowers", [T, T, T]),  # too short: nothing untrue is said
        (LEFT, "red, blue: 2 flowers", [T, T, F]),  # ... but a number that relies on it is
        (LEFT, "red. blue; red and red", [T, T, T, F]),  # whatever separates, it is one list
        (LEFT, "red, blue, red: red, blue, red: 2 red, 2 red", [T] * 8),  # repeated: true
        (LEFT, "blue, blue, red", [F, T, T]),
        (LEFT, "red, red, blue, red", [T, F, F, F]),  # one too many moves the others
        (LEFT, "purple, red, blue, red", [F, F, F, F]),
        (LEFT, "2 red, 3 red", [T, F]),
        (LEFT, "3 red, 2 red, 3 red", [F, T, F]),  # taken back: the first stays untrue
        (LEFT, "two red, three flowers, one blue, no pink, no red", [T, T, T, T, F]),
        (LEFT, "２ red, ٣ flowers, ３ red", [T, T, F]),  # digits of any script are digits
        (LEFT, "3 - 2 = 1, 3 − 2 = 1, 3 - 1 = 2, 3 - 2 = 2, 2 - 1 = 1", [T, T, F, F, F]),
        (LEFT, "three - two = one, three - two = two, 1", [T, F, T]),
        (LEFT, "2, 3, no", [F, F, N]),
        (REDS, "1 + 1 = 2, 2 + 1 = 3, 1 + 1 = 3, 5 - 3 = 2", [T, T, F, F]),
        (LEFT, "If all red flowers were picked, how many are left?", [N, N]),
        (LEFT, "How many purple flowers? 3 purple flowers", [N, F]),
        (LEFT, "there are 2 red flowers, there is a purple flower", [T, F]),
        (LEFT, "RED, Blue: 2 Red Flowers", [T, T, T]),
        (LEFT, "red purple, blue red", [F, F]),  # two colours of one flower
        (LEFT, "red large, small blue, red small heart", [F, F, F]),  # no flower has both
        (LEFT, "perhaps red, not red, 2 red or 3, \u200bred, rеd", [N] * 5),
        (LEFT, "2 violet, a violet flower", [N, N]),
        (LEFT, f"{'9' * 400} red, {'9' * 5000} - 1 = 1, 1.5 red", [F, F, F]),
        (LARGEST, "red 5 5, blue 10 9, red 6 5: the blue one is largest", [T] * 4),
        (LARGEST, "red 6 5, blue 10 9, red 6 5", [F, T, T]),  # true of another flower
        (LARGEST, "blue 10 9, red 6 5, red 5 5", [T, T, T]),  # in another order
        (LARGEST, "red 5 5, red 5 5, red 5 5", [T, F, F]),  # as if there were more of them
        (LARGEST, "blue 10 9, red 5 5, blue 10 9", [T, T, F]),
        (LARGEST, "blue 6 5, blue 10 9: the red one is largest", [F, T, F]),
        (LARGEST, "blue 9 10, blue ten nine: blue, red", [F, T, F, F]),
        (LARGEST, "red 5 5, blue 10 9, red 6 5: blue", [T, T, T, T]),
        (LARGEST, "red 5 5, blue 10 9, red 6 5: red", [T, T, T, F]),
        (RELATED, "red 3 2, blue 15 7, red 5 17: above blue is red", [T] * 4),
        (RELATED, "red 3 2, blue 15 7: above red is blue", [T, T, T]),  # of the other red one
        (RELATED, "below red is red, below blue is blue, right of blue is red", [T, F, F]),
        (RELATED, "the red flower is left of the blue flower, blue is above blue", [T, F]),
        (RELATED, "red 5 5, blue at 15, blue at 15.5", [F, T, F]),
        (BLUE, "blue: heart", [T, T]),
        (BLUE, "blue: round", [T, F]),  # true of another flower
        (BLUE, "red: pointed", [F, F]),  # the question is about another one
        (BLUE, "red, blue, red: heart, blue round, red round", [T, T, T, T, F, T]),
        (BLUE, "brown centre, yellow centre, red yellow centre", [T, F, T]),
        (SIZE, "blue 10: large", [T, T]),
        (SIZE, "blue 9: small, red 6: the blue flower is small", [F, F, T, F]),
        (CENTRE, "blue brown, blue yellow, red yellow, brown", [T, F, T, F]),
        (CENTRE, "blue heart, blue round, blue blue", [T, F, F]),
        (ABSENT, "red, blue, red: no pink, no blue", [T, T, T, T, F]),
        (ABSENT, "blue 15 7, red 5 17, pink 3 2: the blue flower is above the pink", [T, T, F, F]),
        (WHY, "blue shade, red snail, blue snail, red drought: shade", [T, T, F, F, T]),
        (PORTRAIT, "six pointed red petals, yellow centre", [T, T]),
        (PORTRAIT, "6 red pointed petals; 5 petals; seven petals", [T, F, F]),
        (PORTRAIT, "red blue petals, red petals, blue petals", [F, T, F]),
        (PORTRAIT, "yellow petals, red centre, yellow", [F, F, F]),
        (PORTRAIT, "red petals and a green centre", [T, F]),
        (ORDER, "A bloom, B bud", [T, T]),
        (ORDER, "A bud, b bloom, C bud, picture B bud", [F, F, F, T]),
        (ORDER, "bloom, bud, seeds", [T, T, F]),
        (ORDER, "A bloom then bud, then seeds", [N, N]),
    ],
)
def test_no_trap_makes_an_untrue_statement_look_true(about, thought, expected):
    assert truths(thought, about) == expected


def test_only_the_thought_can_earn_and_untrue_words_are_found_wherever_they_stand():
    def spans(text):
        found = check_completion(text, REDS)
        assert all(text[s.start : s.end] == s.text for s in found)
        return [(s.text, s.is_true) for s in found]

    true, untrue = ("2 red", True), ("3 red", False)
    assert spans("<think>2 red</think><answer>2</answer>") == [true]
    assert spans("<think>2 red</think><answer>3 red</answer>") == [true], "an answer is no thought"
    assert spans("<answer>2</answer>2 red, 3 red") == [untrue], "behind the answer none is earned"
    assert spans("<answer>2</answer><think>2 red</think>") == []
    assert spans("<think>2 red, 3 red") == [true, untrue], "cut off"
    assert spans("2 red<answer>2</answer>") == [true], "without a block"
    assert spans("<think>2 red<think>3 red</think></think><answer>2</answer>") == [true, untrue]
    assert spans("<think>2 <b>red</b>, <3 red></think>") == [("2", True), ("red", True), untrue]
    steps = "<summary>count, 3 red, 2 red</summary><caption>red, 3 red</caption>"
    steps += "<reasoning>2 red</reasoning>"
    assert spans(steps) == [untrue, ("red", True), untrue, true]
    assert spans("<caption>red, blue<reasoning>3 red</reasoning>")[-1] == untrue, "not closed"
    assert truths("blue: heart", BLUE, "caption") == [F, N], "a caption only lists what is seen"


def test_first_claims_count_for_what_a_thought_implies():
    def implied(thought, about):
        return implied_answer(check_thought(thought, about.kind, about), about)

    assert implied("red, blue, red: 1 red", REDS) == "2" and implied("3 red, 2 red", REDS) == "3"
    assert implied("red, red, red", REDS) == "3", "what is stated counts, true or not"
    assert implied("red, blue: 3 flowers, 2 red, 3 - 2 = 1", LEFT) == "1"
    assert implied("2", REDS) is None and implied("3 - 2 = 1", LEFT) is None, "no fact is stated"
    assert implied("A bud, B bloom, A seeds", ORDER) == "A, B" and implied("A bud", ORDER) is None
    assert implied("blue: heart, round", BLUE) == "heart" and implied("red round", BLUE) is None
    assert implied("red 9 9, blue 3 3: the blue one is largest", LARGEST) == "red"
    assert implied("the blue one is largest", LARGEST) == "blue"
    assert implied("blue shade, blue snail", WHY) == "shade"
    assert implied("six red petals", PORTRAIT) is None
    assert implied("blue 10: large", SIZE) == "no" and implied("blue small", SIZE) == "yes"
    assert implied("blue yellow", CENTRE) == "yes" and implied("blue heart", CENTRE) is None
    assert implied("red, blue, red: no pink", ABSENT) == implied("no pink", ABSENT) == "unknown"
    assert implied("red, blue, red", SIZE) is None and implied("red, red", SIZE) == "unknown"
    assert implied("blue 15 7, pink 3 2", ABSENT) == "no", "what is stated counts, true or not"


def test_huge_and_odd_texts_take_linear_time_and_never_raise():
    pieces = ["red, ", "red ", "<think>", "[1,2", "[1, 2, 3, 4], ", "red 5 5, ", "3 - ", "f1 ", ":"]
    pieces += [" ", "and ", "İ", "9", "1.", "²", "½ red, ", "\ud800", "\0", "f99999999999 gone, "]
    begin = time.process_time()
    for piece in pieces:
        text = (piece * MAX_COMPLETION_CHARS)[: MAX_COMPLETION_CHARS // 20]
        for about in (LEFT, LARGEST, PORTRAIT, ORDER, WHY):
            assert share_true(check_completion(text, about)) in (None, 0.0) or "red" in piece
            assert is_faithful(text, about) is False
    assert time.process_time() - begin < 10  # 1.5 s; quadratic time would take minutes
    assert [s.is_true for s in check_completion("2 red " * MAX_COMPLETION_CHARS, LEFT)] == [None]


def test_no_mixture_of_known_words_raises():
    rng = random.Random(0)
    words = [
        *VALUES,
        *"the a is of at no and + - = , : . ; 3 12 [1, 2, 3, 4] petals centre".split(),
    ]
    for kind in KINDS:
        for _, question, about in asked(kind, 20, seed=3):
            thought = " ".join(rng.choices(words + question.thought.split(), k=30))
            is_faithful(f"<think>{thought}</think><answer>{question.answer}</answer>", about)


def test_facts_go_to_other_processes():
    for kind in KINDS:
        for _, question, about in asked(kind, 5, seed=4):
            check_thought(question.thought, kind, about)
            again = pickle.loads(pickle.dumps(about))
            assert again == about and hash(again) == hash(about)
            assert truths(question.thought, again) == truths(question.thought, about)
