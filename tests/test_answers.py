"""What `answers.py` guarantees: every text becomes a value of the documented grammar, or None.

No text raises, no number is infinite, nothing is evaluated, and no time is more than linear (which
tests/test_rewards.py shows). Texts that make a published parser fail carry its name: V-RFT is
Liuziyu77/Visual-RFT, R-RFT is tanhuajie/Reason-RFT, VLM-R1 is om-ai-lab/VLM-R1.
Run: `pytest tests/test_answers.py`.
"""

import gc
import json
import math
import time
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from answers import (
    MAX_BOXES,
    MAX_CALLS,
    MAX_COMPLETION_CHARS,
    MAX_DEPTH,
    MAX_LABEL_CHARS,
    MAX_NAME_CHARS,
    MAX_NUMBER_CHARS,
    MAX_SEQUENCE,
    TAGS,
    THOUGHTS,
    Box,
    has_tag,
    normalise_name,
    parse_answer,
    parse_boxes,
    parse_calls,
    parse_choice,
    parse_name,
    parse_number,
    parse_sequence,
    why_no_answer,
)

NO_DEADLINE = settings(deadline=None)  # the time of single examples is noise on a busy machine
DIGITS_5000 = "9" * 5000


def boxes(answer: str | None) -> tuple[list[Box], int] | None:
    return parse_boxes(answer, (1000, 1000))


PARSERS = (parse_name, parse_number, parse_choice, boxes, parse_calls, parse_sequence)

# Pieces of which a policy could make something that looks like an answer.
PIECES = st.sampled_from(
    [*TAGS, "<answer>cat</answer>", "cat", "dog", "c", " ", "\n", "_", "<", "answer>", ".", "é"]
)
TAGGED = st.lists(PIECES, max_size=12).map("".join)
ANY_TEXT = TAGGED | st.text(st.characters(), max_size=60)
MARKS = st.lists(
    st.sampled_from(
        [*"[](){}'\",;:.-+>\\`", "```json", "NaN", "-1e999", "1e308", "0", "10", "500", "true"]
        + ['"Position"', "'bbox_2d'", '"Confidence"', '"label"', "[1,2,3,4]", "(1,2)", "f", "A"]
    ),
    max_size=20,
).map("".join)


FAST_CORE_SECONDS = 0.0035  # for 10,000 overlaps


def process_seconds(function) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def slowness() -> float:
    """How much longer than a fast free core this one takes over plain Python, now; at least 1."""

    def overlaps() -> float:
        return sum(max(0.0, min(k, 900.0) - max(k - 9.0, 3.0)) for k in range(10_000))

    return max(1.0, min(process_seconds(overlaps) for _ in range(3)) / FAST_CORE_SECONDS)


def takes_under(seconds: float, function) -> bool:
    """Of this process' time, in one of five tries, without collecting the garbage of other tests:
    a busy or slow machine is not a slow function."""
    gc.disable()
    try:
        return any(process_seconds(function) < seconds * slowness() for _ in range(5))
    finally:
        gc.enable()


def named(cases):
    return [pytest.param(*case[1:], id=case[0]) for case in cases]


# ---- the answer block ----------------------------------------------------------------------------


def test_the_answer_is_returned_as_written_but_for_outer_white_space():
    for content in ("cat", "[]", "[1, 2]", "a\n b"):
        assert parse_answer(f"<answer>\n{content} </answer>") == content
    assert parse_answer("<answer> \xa0\n</answer>") is None
    for tag in TAGS:
        assert parse_answer(f"<answer>a{tag}b</answer>") is None


@pytest.mark.case("I45")
@pytest.mark.parametrize(
    "before, after, answer",
    named(
        [
            ("inside", "<{t}>a", "b</{t}>", None),
            ("inside, unclosed", "<{t}>a", "", None),
            ("inside, opened by the prompt", "a", "b</{t}>", None),
            ("inside the second one", "<{t}>a</{t}><{t}>", "</{t}>", None),
            ("inside, and another kind is closed", "<{t}><{other}>a</{other}>", "", None),
            ("after it", "<{t}>a</{t}>", "", "cat"),
            ("after one opened by the prompt", "a</{t}>", "", "cat"),
            ("before it", "", "<{t}>a</{t}>", "cat"),
        ]
    ),
)
def test_i45_an_answer_inside_a_thought_of_any_kind_is_none(before, after, answer):
    for t, other in permutations(THOUGHTS, 2):
        text = f"{before}<answer>cat</answer>{after}".format(t=t, other=other)
        assert parse_answer(text) == answer


@pytest.mark.parametrize(
    "text, why",
    [
        ("<answer>cat</answer>", None),
        ("cat", "no answer block"),
        ("cat</answer>", "answer block not opened"),
        ("<answer>cat", "answer block not closed"),
        ("</answer><answer>cat", "answer block not closed"),
        ("<answer>cat</answer><answer>cat</answer>", "several answer blocks"),
        ("<answer>a <think>cat</answer>", "a tag in the answer block"),
        ("<reasoning>a <answer>cat</answer>", "answer block inside <reasoning>"),
        ("<answer> \n</answer>", "empty answer block"),
        (f"<answer>{'a' * 100_000}</answer>", "more than 100000 characters"),
    ],
)
def test_a_text_without_an_answer_breaks_a_rule_that_has_a_name(text, why):
    assert why_no_answer(text) == why and (parse_answer(text) is None) == (why is not None)


def test_every_block_has_its_two_tags():
    assert len(TAGS) == 2 * len((*THOUGHTS, "answer")) == len(set(TAGS))
    assert all(has_tag(f"a{tag}b") for tag in TAGS) and not has_tag("<thinks> </ answer> <b>")


# ---- names ---------------------------------------------------------------------------------------


@pytest.mark.case("I31")
def test_names_that_differ_stay_different():
    names = ["737-800", "737 800", "737", "A320", "A 320", "cat", "cathedral", "rose", "dog rose"]
    names += ["pâté", "pate", "1 Series", "1", "c", "c++", "ro\u200bse", "ro\x00se", "саt"]
    names += ["0-1", "01"]
    assert len({normalise_name(name) for name in names}) == len(names)


def test_normalising_every_single_character_twice_changes_nothing():
    for code in range(0, 0x30000):
        once = normalise_name(f"x{chr(code)}x")
        assert normalise_name(once) == once


def test_a_name_is_neither_empty_nor_endless():
    assert parse_name(" Dog_Rose. ") == "dog rose"
    assert parse_name("x" * MAX_NAME_CHARS) == "x" * MAX_NAME_CHARS
    for answer in (None, "", " _ ", "...", "x" * (MAX_NAME_CHARS + 1)):
        assert parse_name(answer) is None


# ---- numbers and choices -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer, number",
    [("3", 3.0), ("3.0", 3.0), ("-2", -2.0), ("+5", 5.0), (".5", 0.5), ("-.5", -0.5), ("007", 7.0)]
    + [("12.", 12.0), (" 3 \n", 3.0), ("'3'", 3.0), ('"3."', 3.0), ('"3".', 3.0), ("**3**", 3.0)]
    + [("“3”", 3.0), ("1,000", 1000.0), ("-12,345,678.25", -12345678.25), ("\u22123", -3.0)]
    + [("-0", 0.0), ("-0.0", 0.0), ("9" * MAX_NUMBER_CHARS, 1e50)],
)
def test_a_plain_decimal_is_a_number(answer, number):
    assert parse_number(answer) == number
    assert math.copysign(1.0, parse_number(answer)) == math.copysign(1.0, number)  # 0, never -0


@NO_DEADLINE
@given(st.decimals(-(10**15), 10**15, places=3), st.booleans())
def test_a_written_decimal_is_read_back(value, commas):
    assert parse_number(f"{value:,}" if commas else f"{value}") == float(value)


NOT_NUMBERS = [
    *". + - --3 +-3 3- 1.2.3 3.. ,5 1,00 0,500 1,0000 1000,000 1,000,00 1_000 0x10 1e3".split(),
    *"1E-3 2^3 3% $3 three (3) [3] 1/2 ½ 3² ² ٣ ３ 2+3 5*1 10-5 \\boxed{3} True None".split(),
    *("", " ", "1 000", "3 cm", "3 or 4", "3, 4", "the answer is 3", "3\u200b", "3\x00"),
    *("inf", "Infinity", "1e999", "9" * (MAX_NUMBER_CHARS + 1)),
    *(DIGITS_5000, "0." + DIGITS_5000),  # V-RFT: ValueError
]
RAN = "was_executed"  # a file that some of these would make
CODE = {
    "I56 nan (R-RFT pays NaN)": "nan",
    "I56 -inf": "-inf",
    "I57 power tower (math-verify 5 s)": "\\boxed{9^{9^{9^9}}}",
    "I57 sum": "\\boxed{" + "1+" * 30_000 + "1}",
    "I57 braces": "{" * 3000 + "}" * 3000,
    "I57 factorial": "1000000!",
    "I57 power of a sum": "(x+1)^{5000}",
    "I58 import": f"__import__('os').system('touch {RAN}')",
    "I58 write": f"open('{RAN}', 'w')",
    "I58 in a list": f"[__import__('pathlib').Path('{RAN}').touch(), 0, 100, 100]",
    "I58 in a call": f"change_colour(f1, open('{RAN}', 'w'))",
    "I58 f-string": f"{{open('{RAN}', 'w')}}",
    "I58 dunder": "().__class__.__base__.__subclasses__()",
    "I58 power": "99**98**97",
    "I58 pickle": "cos\nsystem\n(S'touch " + RAN + "'\ntR.",
}


@pytest.mark.case("I47", "I56", "I57", "I58")
def test_what_is_no_plain_decimal_is_no_number_and_takes_no_time():
    for answer in [*NOT_NUMBERS, *CODE.values()]:
        assert parse_number(answer) is None, answer
        assert takes_under(0.050, lambda answer=answer: parse_number(answer)), answer


def test_a_choice_is_one_letter_from_a_to_h():
    for answer in ("B", "b", "(B)", "(b)", "B.", "(B).", '"B"', " B ", "**B**", "( B )"):
        assert parse_choice(answer) == "B", answer
    wrong = "I i 1 AB (A)(B) B) ((B)) () ( Β Ｂ B: none [B]".split()
    for answer in (*wrong, "", "A B", "A, B", "A or B", "the answer is (B)", "B\u200b"):
        assert parse_choice(answer) is None, answer
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    assert [letter for letter in letters if parse_choice(letter)] == list("ABCDEFGH")


# ---- boxes ---------------------------------------------------------------------------------------

ONE, TWO = Box(10, 20, 300, 400), Box(500, 600, 700, 800)
SURE = ONE._replace(confidence=1.0)

PYTHON_ROWS = """[{'Position': [10, 20, 300, 400], 'Confidence': 1},
{'Position': [500, 600, 700, 800]}]"""
PYTHON_LABELS = """[{'bbox_2d': [10, 20, 300, 400], 'label': "colt's"},
{'bbox_2d': [500, 600, 700, 800], 'label': "'n' roll"}]"""
LABELS = ("colt's", "pâté", 'a "]}[[[[', "a [[[[[[[[[ \\")  # the last ends with a backslash


def with_label(label) -> str:
    return json.dumps({"bbox_2d": [10, 20, 300, 400], "label": label})


def with_confidence(written: str) -> str:
    return f'{{"Position": [10, 20, 300, 400], "Confidence": {written}}}'


WELL_FORMED = {  # what it is: the boxes, answers that say them
    "no box (None: VLM-R1)": ([], ["No Objects", "no_objects.", "None", "[]"]),
    "Visual-RFT": ([ONE._replace(confidence=0.5)], [f"[{with_confidence('0.5')}]"]),
    "I55 Visual-RFT's rows in Python": ([SURE, TWO], [PYTHON_ROWS]),
    "Qwen": ([ONE._replace(label="cat")], [f"[{with_label('Cat.')}]"]),
    "apostrophes in Python strings": (
        [ONE._replace(label="colt's"), TWO._replace(label="n' roll")],
        [PYTHON_LABELS],
    ),
    "I55 one box": ([ONE], ["[10, 20, 300, 400]", '{"Position": [10, 20, 300, 400]}']),
    "another field": ([ONE], ['{"bbox_2d": [10,20,300,400], "score": "high"}']),
    "floats (VLM-R1 0)": ([ONE], ["[10.0, 2e1, 300.00, 400]"]),
    "newlines (V-RFT 0)": ([ONE], ["[\n10,\n20,\n300,\n400\n]"]),
    "Qwen2-VL points": ([ONE], ["(10,20),(300,400)", "( 10 , 20 ) , ( 300 , 400 )"]),
    "I55 fence": ([ONE], ["```json\n[10, 20, 300, 400]\n```", "```\n[10, 20, 300, 400]```"]),
    "Python fence": ([ONE], ["```python\n[{'Position': [10, 20, 300, 400]}]\n```"]),
    "fence of points": ([ONE], ["```(10,20),(300,400)```"]),
    "bare boxes": ([ONE, TWO], ["[[10, 20, 300, 400], [500, 600, 700, 800]]"]),
    "two boxes of points (LISA mis-pairs)": (
        [ONE, TWO],
        [f"(10,20),(300,400){gap}(500,600),(700,800)" for gap in ",\n"],
    ),
    "I46 minus zero": ([Box(0, 0, 300, 400)], ["[-0, -0.0, 300, 400]"]),
    "I51 beyond the canvas": ([Box(0, 20, 1000, 400)], ["[-50, 20, 5000, 400]"]),
    "I51 1e308": ([Box(0, 0, 1000, 1000)], ["[-1e308, -1e308, 1e308, 1e308]"]),
    "exact duplicates stay": ([ONE, ONE], ["[[10,20,300,400],[10,20,300,400]]"]),
} | {f"label {label}": ([ONE._replace(label=label)], [with_label(label)]) for label in LABELS}


@pytest.mark.case("I46", "I51", "I55")
@pytest.mark.parametrize("expected, answers", WELL_FORMED.values(), ids=WELL_FORMED)
def test_boxes_of_the_grammar_are_read(expected, answers):
    for answer in answers:
        parsed, malformed = boxes(answer)
        assert (parsed, malformed) == (expected, 0), answer
        for box in parsed:
            assert 0 <= box.x1 < box.x2 <= 1000 and 0 <= box.y1 < box.y2 <= 1000
            assert math.copysign(1.0, box.x1) == 1.0
            assert all(type(corner) is float for corner in box[:4])


MALFORMED = {
    "I46 NaN, also among points": ["[NaN, 20, 300, 400]", "(NaN,20),(300,400)"],
    "I46 infinite": ["[10, 20, Infinity, 400]", "[10, 20, 1e999, 400]"],
    "I47 5000 digits": [f"[10, 20, {DIGITS_5000}, 400]"],
    "I48 strings": ['["10", "20", "300", "400"]', '[{"Position": [10, 20, 300, "400"]}]'],
    "no numbers": ["[false, false, true, true]", "[10, 20, null, 400]"],
    "I49 three corners": ["[10, 20, 300]"],
    "I49 five corners (V-RFT 1.0)": ['{"Position": [10, 20, 300, 400, 5]}'],
    "I49 points": ["(10,20)", "(10,20,5),(300,400)", "(10,20,300,400)", "(10,20,300),(400)"],
    "nested once too often": ['{"Position": [[10, 20, 300, 400]]}'],
    "I50 no area": ["[10, 20, 10, 400]", "[10, 400, 300, 400]", "[0, 0, 0, 0]"],
    "I50 an area that underflows": ["[0, 0, 1e-200, 1e-200]"],
    "inverted (LISA's reward pays 17.0)": ["(900,900),(100,100)"],
    "inverted in x, in y": ["[300, 20, 10, 400]", "[10, 400, 300, 20]"],
    "outside the canvas": ["[1000, 20, 1300, 400]"],
    "confidence (V-RFT pays)": [with_confidence(c) for c in ("99", "-5", "NaN")],
    "confidence": [with_confidence(c) for c in ("1e999", "true", '"1.0"', "null")],
    "I54 label null, a list (VLM-R1 crashes)": [with_label(None), with_label(["cat"])],
    "label empty, endless": [with_label(" . "), with_label("x" * (MAX_LABEL_CHARS + 1))],
    "no box in the dict": ['{"label": "cat"}', '{"bbox_2d": {"bbox_2d": [10, 20, 300, 400]}}'],
    "nested as deep as the cap": ["[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1)],
}


@pytest.mark.case("I46", "I47", "I48", "I49", "I50", "I54")
@pytest.mark.parametrize("answers", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_item_is_counted_and_spoils_no_other(answers):
    for answer in answers:
        assert boxes(answer) == ([], 1), answer
        if not answer.startswith("("):
            assert boxes(f"[{answer}, [10, 20, 300, 400]]") == ([ONE], 1), answer
        elif answer.count("(") == 2:  # a lone point would pair with the next one
            assert boxes(f"{answer},(10,20),(300,400)") == ([ONE], 1), answer


@pytest.mark.case("I52")
def test_items_of_other_kinds_and_beyond_the_cap_are_malformed_one_by_one():
    assert boxes('[1, "a", null, true, [], {}, [10, 20, 300, 400]]') == ([ONE], 6)
    text = json.dumps([[10, 20, 300, 400]] * (MAX_BOXES + 7))
    assert boxes(text) == ([ONE] * MAX_BOXES, 7)


CONFIDENT = with_confidence("1")
DEEP = ('["]",', '["\\"]",', "[']',")  # a bracket that closes nothing
OUTSIDE = {
    "nothing": [""],
    "words around": ["Box: [10, 20, 300, 400]", "[10, 20, 300, 400] is it"],
    "two answers": ["[10, 20, 300, 400] [5, 6, 7, 8]", "No Objects, [10, 20, 300, 400]"],
    "cut off (V-RFT closes it)": [f'[{CONFIDENT}, {{"Pos', f"[{CONFIDENT},"],
    "lone value (V-RFT 1.0 for the y1 of the truth)": ["20", '"cat"'],
    "I47 a lone number of 5000 digits": [DIGITS_5000],
    "numbers without brackets": ["10, 20, 300, 400"],
    "half a fence": ["```json\n[10, 20, 300, 400]", "```", "````"],
    "text between the points": ["(10,20) to (300,400)", "(10,20),5,(300,400)"],
    "mixed brackets": ["(10,20],[300,400)", "[(10,20),(300,400)]"],
    "a Python tuple": ["{'Position': (10, 20, 300, 400)}"],
    "I58 code": ["[10, 20, 300, 2*200]", "print([10, 20, 300, 400])"],
    "I58 import": ["[__import__('os').getpid(), 20, 300, 400]"],
    "I57 nested braces, points": ["{" * 3000 + "}" * 3000, "(" * 3000 + ")" * 3000],
    "deeper than the cap": ["[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1)],
    "depth hidden by strings": [unit * 3000 + "1" + "]" * 3000 for unit in DEEP],
    "null character, surrogate": ["[10, 20, 300, 400]\x00", "\ud800[10, 20, 300, 400]"],
    "longer than a completion": ["[10, 20, 300, 400]" + " " * MAX_COMPLETION_CHARS],
}


@pytest.mark.case("I47", "I55", "I58")
@pytest.mark.parametrize("answers", OUTSIDE.values(), ids=OUTSIDE)
def test_text_outside_the_grammar_of_boxes_is_none(answers):
    for answer in answers:
        assert boxes(answer) is None, answer


def test_the_canvas_clips_boxes_and_must_be_a_size():
    assert parse_boxes("[0, 0, 700, 700]", (640, 480)) == ([Box(0, 0, 640, 480)], 0)
    for canvas in ((0, 1), (1, -1), (math.nan, 1), (1, math.inf), (1,), (1, 2, 3)):
        with pytest.raises(ValueError, match="canvas"):
            parse_boxes("[]", canvas)


def corners_up_to(size: int):
    """Strategy: (x1, y1, x2, y2) with x1 < x2 and y1 < y2, integers in [0, size]."""
    side = st.lists(st.integers(0, size), min_size=2, max_size=2, unique=True).map(sorted)
    return st.tuples(side, side).map(lambda s: (s[0][0], s[1][0], s[0][1], s[1][1]))


@pytest.mark.case("I55")
@NO_DEADLINE
@given(st.lists(corners_up_to(1000), max_size=5))
def test_every_dialect_reads_back_what_was_written(corners):
    bare = [Box(*map(float, c)) for c in corners]
    sure = [box._replace(confidence=0.25) for box in bare]
    rows = [{"Position": list(c), "Confidence": 0.25} for c in corners]
    labels = [{"bbox_2d": list(c), "label": "a cat"} for c in corners]
    points = ",".join(f"({a},{b}),({c},{d})" for a, b, c, d in corners)
    assert boxes(json.dumps(rows)) == boxes(repr(rows)) == (sure, 0)
    assert boxes(json.dumps(labels)) == ([box._replace(label="a cat") for box in bare], 0)
    assert boxes(points or "None") == boxes(json.dumps(corners)) == (bare, 0)


# ---- calls and sequences -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [f"change_colour(f1, red){gap}remove(f3)" for gap in (", ", ",", "; ", "\n", " ")]
    + ["change_colour( f1 ,\tred ) ,\n remove ( f3 )"]  # R-RFT: "( " is not read
    + ["[change_colour(f1, red), remove(f3)]", "[ change_colour(f1, 'red'), remove(\"f3\") ]"]
    + ["Change_Colour(F1, RED), REMOVE(f3),"],
)
def test_calls_are_read_however_they_are_spaced_and_quoted(answer):
    assert parse_calls(answer) == [("change_colour", "f1", "red"), ("remove", "f3")]


def test_calls_may_be_empty_repeated_or_in_other_scripts():
    assert parse_calls("f()") == parse_calls("f( )") == [("f",)]
    assert parse_calls("f(a), f(a)") == [("f", "a"), ("f", "a")]
    assert parse_calls("größe(1)") == [("grösse", "1")]
    assert parse_calls(", ".join(["f(1)"] * MAX_CALLS)) == [("f", "1")] * MAX_CALLS


NO_CALLS = [
    *"[] f f( f) () (a) f(a f(a)) f((a)) f(g(a)) f(a,) f(,a) f(a,,b) f(a);;g(b) f(a).".split(),
    *"f(-1) f(1.5) f('a) f('a\") f('') f(' a') f(a=1) os.system(a) [f(a) f(a)] f(ΐ)".split(),
    *("", "f(a), g", "f(a) and g(b)", "I did f(a)", "f g(a)", "f(a b)", "no change", "f(a\x00)"),
    *("().__class__", ", ".join(["f(1)"] * (MAX_CALLS + 1))),
]


@pytest.mark.parametrize("answer", NO_CALLS)
def test_anything_left_over_is_no_list_of_calls(answer):
    assert parse_calls(answer) is None


WORDS = st.from_regex(r"[a-z0-9_]{1,6}", fullmatch=True)


@NO_DEADLINE
@given(
    st.lists(st.lists(WORDS, min_size=1, max_size=4), min_size=1, max_size=6),
    st.sampled_from(",;\n"),
)
def test_written_calls_are_read_back(calls, separator):
    text = f" {separator} ".join(f"{name}({', '.join(values)})" for name, *values in calls)
    assert parse_calls(text) == [tuple(call) for call in calls]


SMALL_NUMBERS = [str(n) for n in range(MAX_SEQUENCE)]


@pytest.mark.parametrize(
    "answer, items",
    [("B, A, C", "BAC"), ("B A C", "BAC"), ("B,A,C", "BAC"), ("B > A > C", "BAC")]
    + [("B->A->C", "BAC"), ("B → A → C", "BAC"), ("[B, A, C]", "BAC"), ("BAC", "BAC")]
    + [("b, a, c", "BAC"), ("B, A, C.", "BAC"), ('"B, A, C"', "BAC"), ("**BAC**", "BAC")]
    + [("B\nA\nC", "BAC"), (" [B A C]. ", "BAC"), ("A", "A"), ("7", "7")]
    + [("2, 10, 03, 0", ["2", "10", "3", "0"]), (" ".join(SMALL_NUMBERS), SMALL_NUMBERS)],
)
def test_a_sequence_is_read_however_it_is_separated(answer, items):
    assert parse_sequence(answer) == list(items)


NO_SEQUENCE = [
    *"[] > ABA bac Bac 312 ÄB ² ３ B|A AA".split(),
    *("", "A, A", "a, A", "3, 03", "first B", "B and A", "B, cat", "-1, 2", "1.5, 2", "Ä, B"),
    *("B; A", "(B, A)", "A" * 5000, " ".join(map(str, range(MAX_SEQUENCE + 1)))),
]


@pytest.mark.parametrize("answer", NO_SEQUENCE)
def test_what_is_no_order_of_single_items_is_no_sequence(answer):
    assert parse_sequence(answer) is None


@NO_DEADLINE
@given(
    st.permutations("ABCDEFGH"), st.integers(1, 8), st.sampled_from([", ", " ", ">", " -> ", ""])
)
def test_a_written_sequence_is_read_back(letters, n, separator):
    assert parse_sequence(separator.join(letters[:n])) == letters[:n]


# ---- any text ------------------------------------------------------------------------------------


@NO_DEADLINE
@given(ANY_TEXT | MARKS)
def test_no_text_raises_and_every_number_is_finite(text):
    assert parse_answer(text) is None or text.count("<answer>") == 1
    for parse in PARSERS:
        assert parse(None) is None
        assert parse(text) == parse(text)
    assert math.isfinite(parse_number(text) or 0.0)
    assert normalise_name(normalise_name(text)) == normalise_name(text)
    parsed, malformed = boxes(text) or ([], 0)
    assert malformed >= 0
    for box in parsed:
        assert 0 <= box.x1 < box.x2 <= 1000 and 0 <= box.y1 < box.y2 <= 1000
        assert box.confidence is None or 0 <= box.confidence <= 1


def test_labels_that_grow_when_they_are_normalised_take_no_time():
    grown = ["\ufdfa" * 50 + chr(0x4E00 + n) for n in range(700)]  # 18 characters of each
    for labels in (grown, ["\ufdfa" * 32 + chr(0x4E00 + n) for n in range(700)]):
        items = [{"bbox_2d": [1, 2, 3, 4], "label": label} for label in labels]
        text = json.dumps(items, ensure_ascii=False)
        assert takes_under(0.100, lambda text=text: parse_boxes(text, (1000, 1000)))
    assert parse_boxes(text, (1000, 1000))[1] == 0 and len(grown[0].encode()) > MAX_LABEL_CHARS
