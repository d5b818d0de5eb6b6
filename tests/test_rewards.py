"""What `rewards.py` guarantees: the right answer is paid however it is written, nothing else is.

Every text that a published reward function is known to overpay is a case here, with what it was
paid: V-RFT is Liuziyu77/Visual-RFT (its issues #26, #39, #70, #79, #161, #176), R-RFT is
tanhuajie/Reason-RFT, VLM-R1 is om-ai-lab/VLM-R1; R1-V names itself. Run: `pytest
tests/test_rewards.py`.
"""

import ast
import itertools
import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

import answers
import rewards
from answers import (
    MAX_COMPLETION_CHARS,
    MAX_NAME_CHARS,
    THOUGHTS,
    Box,
    normalise_name,
    parse_answer,
)
from rewards import (
    FORMATS,
    WEIGHTS,
    Reward,
    boxes_correct,
    calls_accuracy,
    calls_reward,
    choice_reward,
    classification_reward,
    detection_reward,
    format_reward,
    grounding_reward,
    iou,
    match_boxes,
    measure_reward,
    name_correct,
    number_reward,
    sequence_reward,
)
from tasks.loose import first_box_iou, loose_name_correct, loose_number_correct, loose_yes_no
from tests.test_answers import (
    ANY_TEXT,
    MARKS,
    NO_DEADLINE,
    TAGGED,
    corners_up_to,
    named,
    takes_under,
)
from training.scoring import repetition_penalty

CAR = "2012 BMW 1 Series Convertible"
THOUGHT = "<think>a low roof</think>"


def wrap(answer: str) -> str:
    return f"{THOUGHT}<answer>{answer}</answer>"


def correct(reward, answer: str, target: str, **options) -> float:
    return reward(wrap(answer), target, **options).parts["correct"]


def strict(text: str, target: str) -> float:
    return name_correct(parse_answer(text), target)


# ---- texts that a peer's reward pays -------------------------------------------------------------

CAT, DOG = "<answer>cat</answer>", "<answer>dog</answer>"


def said(*answers: str) -> list[str]:
    return [f"<answer>{answer}</answer>" for answer in answers]


# What V-RFT's rule (our copy of it) pays 1.0, and the strict rule 0: why, target, completions.
FOOLS_A_PEER = {
    "I38 nothing": ("apple", ["", " \n\t "]),
    "I41 nothing in the block (#176)": ("apple", said("", "__", "\xa0")),
    "I43 a letter": ("apple", said("a")),
    "I43 a part (#70)": (CAR, said("b", "o", "BMW", "2012", "2012 BMW 1 Series")),
    "I31 prefix of a number": ("737-800", said("737")),
    "I31 label inside a longer one": ("cat", said("cathedral")),
    "I42 list": ("B", said("A or B or C")),
    "I42 variants": ("737-400", said("A320 or 737-400 or MD-80")),
    "I42 list of classes": ("cat", said("cat, dog", "cat\ndog")),
    "sentence, denial": ("cat", said("it is a cat", "not a cat")),
    "no tags": ("cat", ["cat", "a cat or a dog", "\\boxed{cat}"]),
    "line break, name elsewhere": ("cat", ["a cat? <answer>\ndog</answer>"]),
    "two answers": ("cat", [CAT + DOG, CAT + CAT]),
    "I44 answer in an answer": ("cat", [f"<answer>{CAT}</answer>", f"<answer>{CAT}"]),
    "I44 thought inside the answer": ("cat", ["<answer><think>x</think>cat</answer>"]),
    "I44 unclosed or unopened": ("cat", [f"{THOUGHT}<answer>cat", f"{THOUGHT}cat</answer>"]),
    "I44 closed before opened, or twice": ("cat", ["</answer>cat<answer>", f"{CAT}</answer>"]),
    "I45 in the thoughts": ("cat", [f"<think>{CAT}</think>", f"<think>hm {CAT}"]),
    "I45 in thoughts opened by the prompt": ("cat", [f"hm {CAT} so</think>"]),
    "I45 in the second thought": ("cat", [f"{THOUGHT}<think>{CAT}</think>"]),
    "I45 nested": ("cat", [f"<think>{THOUGHT}{CAT}</think>"]),
    "draft": ("cat", [f"<think>{CAT}</think>{DOG}"]),
    "other tags": ("cat", ["<ANSWER>cat</ANSWER>", "＜answer＞cat＜/answer＞"]),
}
WRONG = {  # here V-RFT's rule pays nothing either
    "marks": ("apple", said("...", "\u200b\u2060\ufeff")),
    "I31 hyphen is not a space": ("737-800", said("737 800")),
    "last answer counts": ("cat", [DOG + CAT]),
    "thoughts alone (R1-V 1.0)": ("5", ["<think>it is 5, $5$</think><answer>4</answer>"]),
    "right name after the answer (R1-V 1.0)": ("5", ["<answer>4</answer> 5"]),
    "Cyrillic look-alike, hidden character": ("cat", said("с\u0430t", "c\u200bat", "c\x00at")),
    "accent missing": ("pâté", said("pate")),
    "I58 arithmetic is not evaluated": ("5", said("2+3")),
    "I60 replacement character, surrogate": ("cat", said("c\ufffdt", "c\ud800t")),
}


@pytest.mark.case("I31", "I38", "I41", "I42", "I43", "I44", "I45", "I58", "I60")
@pytest.mark.parametrize("why", FOOLS_A_PEER | WRONG)
def test_text_that_fools_a_peer_is_not_correct(why):
    target, texts = (FOOLS_A_PEER | WRONG)[why]
    for text, mode in itertools.product(texts, FORMATS):
        reward = classification_reward(text, target, mode)
        assert reward.parts["correct"] == 0.0 and strict(text, target) == 0.0
        assert reward.total <= WEIGHTS["format"]
        assert loose_name_correct(text, target) == float(why in FOOLS_A_PEER)  # no straw man


# ---- right names, also where a peer misses -------------------------------------------------------

RIGHT = {  # target: completions
    "cat": [
        *said("\n cat \n", "Cat.", '"cat"', "“cat.”", "**cat**"),
        *(f" {THOUGHT}{CAT}", f"{THOUGHT * 2}{CAT}", f"{CAT}{THOUGHT}", f"six petals</think>{CAT}"),
        *(f"<think></think>{CAT}", f"<think>a dog?</think>{CAT}", f"I see it. {CAT} Done."),
    ],
    "garden phlox": said("garden phlox", "garden\nphlox", "garden\xa0phlox"),
    "Straße": said("STRASSE"),
    "p\xe2t\xe9": said("pa\u0302te\u0301"),  # composed and decomposed accents
    "pa\u0302te\u0301": said("p\xe2t\xe9"),
    "\u01f0\u0323": said("J\u0323\u030c"),  # in another order
    "A320": said("Ａ３２０"),
    "American Bulldog": said("american_bulldog"),
    "colt's foot": said("colt’s foot"),
    "737-800": said("737\u2011800"),  # no-break hyphen
    "A < B > C": said("a < b > c"),
    "<script>x</script>": said("<script>x</script>"),
    "牡丹": said("牡丹"),
    "x" * MAX_NAME_CHARS: said("x" * MAX_NAME_CHARS),
}


@pytest.mark.parametrize("target", RIGHT)
def test_the_right_name_is_paid_however_it_is_spelt(target):
    for text in RIGHT[target]:
        assert strict(text, target) == 1.0, text
        assert classification_reward(text, target).parts["correct"] == 1.0, text


@NO_DEADLINE
@given(ANY_TEXT, st.sampled_from(["cat", "c", "dog rose", CAR]), st.sampled_from([*FORMATS]))
def test_a_sparse_name_is_right_or_wrong(text, target, mode):
    reward = classification_reward(text, target, mode)
    right, form = strict(text, target), format_reward(text, mode)
    assert (reward.total, reward.parts) == (right + 0.5 * form, {"correct": right, "format": form})
    assert loose_name_correct(text, target) in (0.0, 1.0)
    if right:  # then the name is the whole content of the only answer block
        (content,) = re.findall(r"<answer>([^<]*)</answer>", text)
        assert text.count("<answer>") == text.count("</answer>") == 1
        assert normalise_name(content) == normalise_name(target)


def test_a_completion_beyond_the_cap_is_worth_zero_and_one_at_the_cap_is_read():
    block = "<answer>cat</answer>"
    at_cap = block.rjust(MAX_COMPLETION_CHARS)
    assert classification_reward(at_cap, "cat", "direct").total == 1.5
    assert classification_reward(at_cap + " ", "cat", "direct").total == 0.0
    assert strict("x" * MAX_COMPLETION_CHARS + block, "cat") == 0.0


# ---- format --------------------------------------------------------------------------------------

WELL_FORMED = [
    "<think>six petals</think><answer>cat</answer>",
    "<think>six petals</think>\n<answer>cat</answer>\n",
    "  \n<think>\n6\n</think> \t <answer>\ncat\n</answer>  ",  # a leading space: peers pay 0
    "<think>a < b, <b>bold</b>, think</think><answer>3</answer>",
    "<think>花</think><answer>牡丹</answer>",
    "<think>a</think><answer> [] </answer>",
]
# Marks, zero-width characters, a no-break space, Hangul fillers: nothing that is a thought.
EMPTY = ("...", "\n-\n-\n", "[]", "\u200b\u200d", "\xa0", "\u115f\u1160\u3164\uffa0")
MALFORMED = {
    "I38 nothing": ["", "cat", THOUGHT, "<think>six petals and"],
    "I41 empty answer (V-RFT, R1-V, VLM-R1 1.0)": [f"{THOUGHT}<answer></answer>"],
    "empty thoughts (V-RFT, R1-V, VLM-R1 1.0)": [f"<think></think>{CAT}"],
    "empty in all but form (peers 1.0)": [f"<think>{text}</think>{CAT}" for text in EMPTY],
    "marks for an answer (peers 1.0)": [f"{THOUGHT}<answer>…</answer>", "<answer>-</answer>"],
    "two answers (peers 1.0)": [THOUGHT + CAT + DOG, f"<think>{DOG}</think>{CAT}"],
    "think, answer, think, answer (peers 1.0)": [(THOUGHT + CAT) * 2],
    "nested thoughts (peers 1.0)": [f"<think>{THOUGHT}</think>{CAT}"],
    "thoughts opened twice (peers 1.0)": [f"<think>{THOUGHT}{CAT}"],
    "thoughts within the answer (peers 1.0)": [f"{THOUGHT}<answer><think>b</answer>"],
    "I45 answer only in the thoughts": [f"<think>a {CAT}</think>"],
    "I44 unclosed": [f"<think>a{CAT}", f"{THOUGHT}<answer>cat"],
    "I44 closed twice (peers 1.0)": [f"{THOUGHT}{CAT}</answer>"],
    "text around (VLM-R1 REC 1.0)": [f"Sure! {THOUGHT}{CAT}", f"{THOUGHT}{CAT} indeed", f"{CAT}."],
    "text between": [f"{THOUGHT} so {CAT}", f"{THOUGHT}\u200b{CAT}"],
    "answer first": [CAT + THOUGHT],
    "tags in capitals": ["<THINK>a</THINK><ANSWER>cat</ANSWER>"],
}


@pytest.mark.parametrize("text", WELL_FORMED)
def test_one_thought_then_one_answer_is_well_formed(text):
    assert format_reward(text) == format_reward(text, "think") == 1.0
    assert format_reward(text, "direct") == format_reward(text, "steps") == 0.0


@pytest.mark.case("I38", "I41", "I44", "I45")
@pytest.mark.parametrize("why", MALFORMED)
def test_form_that_only_looks_right_is_malformed_in_every_mode(why):
    for text in MALFORMED[why]:
        assert [format_reward(text, mode) for mode in FORMATS] == [0.0, 0.0, 0.0], text


STEPS = "<summary>a</summary> <caption>b</caption>\n<reasoning>c</reasoning><answer>cat</answer>"


@pytest.mark.case("I45")
def test_the_other_modes_want_the_answer_alone_or_four_blocks_in_order():
    for text in ("<answer>cat</answer>", " \n<answer>\ncat</answer>\n"):
        assert [format_reward(text, mode) for mode in ("think", "direct", "steps")] == [0, 1, 0]
    assert [format_reward(STEPS, mode) for mode in ("think", "direct", "steps")] == [0, 0, 1]
    blocks = re.findall(r"<\w+>\w+</\w+>", STEPS)
    for order in itertools.permutations(blocks):
        assert format_reward("".join(order), "steps") == float(list(order) == blocks)
    for missing in range(4):
        assert format_reward("".join(blocks[:missing] + blocks[missing + 1 :]), "steps") == 0.0
    for i, again in itertools.product(range(5), blocks):
        assert format_reward("".join(blocks[:i] + [again] + blocks[i:]), "steps") == 0.0
    assert format_reward(STEPS.replace(">b<", ">...<"), "steps") == 0.0
    for step in FORMATS["steps"][:3]:  # an answer only inside a step
        text = STEPS.replace("<answer>cat</answer>", "")
        text = text.replace(f"</{step}>", f"<answer>cat</answer></{step}>")
        assert classification_reward(text, "cat", "steps").total == 0.0


def test_the_parser_knows_every_block_of_every_mode():
    assert set().union(*FORMATS.values()) == {*THOUGHTS, "answer"}
    assert all(blocks[-1] == "answer" for blocks in FORMATS.values())
    with pytest.raises(ValueError, match="'cot' is not one of think, direct, steps"):
        format_reward("", "cot")


# ---- names that are nearly right -----------------------------------------------------------------


@pytest.mark.parametrize(
    "answer, f1",
    [(CAR, 1.0), ("2011 BMW 1 Series Convertible", 0.8), ("BMW 1 Series", 0.75), ("BMW", 2 / 6)]
    + [("BMW BMW BMW", 2 / 8)]  # a word counts as often as the target has it
    + [("Audi A5", 0.0), ("b", 0.0), (".", 0.0)]
    + [(f"{CAR} or so", 0.0), (f"{CAR}, Audi A5", 0.0)],  # more words than the target
)
def test_a_nearly_right_name_earns_the_f1_of_its_words(answer, f1):
    for dense in (0.0, 0.25, 1.0):
        part = correct(classification_reward, answer, CAR, dense=dense)
        assert part == pytest.approx(f1 if f1 == 1.0 else dense * f1)
    assert correct(classification_reward, "cha cha", "cha cha cha", dense=1.0) == 0.8


CLASS_NAMES = st.lists(st.sampled_from("dog rose 737 air bus".split()), min_size=1, max_size=3)
CLASSES = st.lists(CLASS_NAMES.map(" ".join), min_size=2, max_size=6, unique=True)


@NO_DEADLINE
@given(CLASSES, st.sampled_from([", ", " or ", "\n", " ", ",", "; "]))
def test_listing_all_classes_earns_nothing(classes, separator):
    for target in classes:
        assert correct(classification_reward, separator.join(classes), target, dense=1.0) == 0.0


# ---- numbers and choices -------------------------------------------------------------------------


@pytest.mark.parametrize("tolerance", [0.0, 0.05])
def test_the_right_number_is_paid_however_it_is_written(tolerance):
    for pair in ("3.0 3", "3 3.0", "0 0", "-0.0 0", "1,000 1000"):
        assert correct(number_reward, *pair.split(), tolerance=tolerance) == 1.0, pair
    text = "<think>4 or $5$?</think><answer>\n3.\n</answer>"
    assert number_reward(text, "3", tolerance=tolerance).total == 1.5


@pytest.mark.case("I41", "I42", "I45", "I47", "I56", "I57", "I58")
@pytest.mark.parametrize(
    "text",
    ["<think>5</think><answer>4</answer>", "<think>$5$</think><answer>4</answer>"]  # R1-V 1.0
    + ["<answer>4</answer> 5", "5", "<think><answer>5</answer></think>", wrap("")]  # R1-V 1.0
    + [wrap("4 or 5"), wrap("2+3"), wrap("there are 5"), wrap("9" * 5000), wrap("1000000!")]
    + [wrap("nan"), wrap("inf"), wrap("-inf")]  # R-RFT: NaN
    + [wrap("\\boxed{9^{9^{9^9}}}"), wrap("99**98**97")],
)
def test_a_number_that_fools_a_peer_earns_no_more_than_its_answer(text):
    for dense, tolerance in itertools.product((0.0, 1.0), (0.0, 0.05, 1.0)):
        options = dict(dense=dense, tolerance=tolerance)
        is_four = parse_answer(text) == "4"  # an honest wrong answer; the others are none
        expected = correct(number_reward, "4", "5", **options) if is_four else 0.0
        assert number_reward(text, "5", **options).parts["correct"] == expected


@pytest.mark.parametrize(
    "answer, credit",
    [("100", 1), ("105", 1), ("95", 1), ("110", 0.75), ("90", 0.75), ("112.5", 0.5)]
    + [("119", 0.01093), ("120", 0), ("-100", 0), ("1000", 0)],
)
def test_five_percent_tolerance_gives_reason_rft_s_taper(answer, credit):
    options = dict(dense=1.0, tolerance=0.05)
    dense = correct(number_reward, answer, "100", **options)
    assert dense == pytest.approx(credit, abs=1e-4)
    assert correct(number_reward, f"-{answer}".replace("--", ""), "-100", **options) == dense
    assert correct(number_reward, answer, "100", tolerance=0.05) == float(credit == 1)


def test_only_zero_is_near_zero_and_a_count_that_is_off_by_d_earns_exp_minus_d():
    for answer, part in (("0", 1.0), ("0.0001", 0.0), ("-1", 0.0)):
        assert correct(number_reward, answer, "0", dense=1.0, tolerance=0.05) == part
    for answer, target in itertools.product(range(6), repeat=2):
        part = correct(number_reward, str(answer), str(target), dense=1.0)
        assert part == math.exp(-abs(answer - target))
        assert correct(number_reward, str(answer), str(target)) == float(answer == target)


NUMBERS = st.decimals(-1000, 1000, places=2).map(str) | st.sampled_from(["0", "9" * 40, "-.5"])
TOLERANCES = st.sampled_from([0.0, 1e-300, 0.05, 0.3, 1.0])


@NO_DEADLINE
@given(NUMBERS, NUMBERS, NUMBERS, TOLERANCES, st.floats(0.0, 1.0))
def test_a_number_farther_away_never_earns_more(a, b, target, tolerance, dense):
    nearer, farther = sorted((a, b), key=lambda answer: abs(float(answer) - float(target)))
    exact, near, far = (
        correct(number_reward, answer, target, dense=dense, tolerance=tolerance)
        for answer in (target, nearer, farther)
    )
    assert exact == 1.0 >= near >= far - 1e-12 >= -1e-12


@pytest.mark.case("I42")
@pytest.mark.parametrize(
    "answer, part",
    [("B", 1.0), ("(B)", 1.0), ("b.", 1.0), ("A", 0.0), ("B or C", 0.0), ("A B C D", 0.0)]
    + [("the answer is (B)", 0.0), ("", 0.0), ("ABCD", 0.0)],
)
def test_a_choice_is_the_one_letter(answer, part):
    for dense in (0.0, 1.0):
        assert correct(choice_reward, answer, "B", dense=dense) == part
        assert correct(measure_reward, answer, "(b)", dense=dense, tolerance=0.05) == part


def test_a_measure_is_a_number_or_a_letter_as_the_target_is():
    assert correct(measure_reward, "103", "100", tolerance=0.05) == 1.0
    assert correct(measure_reward, "103", "100", tolerance=0.0) == 0.0
    assert correct(measure_reward, "110", "100", tolerance=0.05, dense=1.0) == pytest.approx(0.75)
    assert correct(measure_reward, "B", "100") == correct(measure_reward, "1", "B") == 0.0
    with pytest.raises(ValueError, match="target 'about 3'"):
        measure_reward(wrap("3"), "about 3")
    for tolerance in (-0.1, 1.5, math.nan, math.inf):
        with pytest.raises(ValueError, match="tolerance"):
            number_reward(wrap("1"), "1", tolerance=tolerance)


# ---- boxes ---------------------------------------------------------------------------------------


def rows(*boxes, confidence: float | None = 1.0, label: str | None = None) -> str:
    """The answer with these corners, in Visual-RFT's dialect, or Qwen's where there is a label."""
    key = "Position" if label is None else "bbox_2d"
    extra = {} if confidence is None else {"Confidence": confidence}
    extra |= {} if label is None else {"label": label}
    return json.dumps([{key: list(box)} | extra for box in boxes]) if boxes else "No Objects"


def joined(*lists: str) -> str:
    return json.dumps(sum(map(json.loads, lists), []))


def detected(answer: str, target: str, **options) -> tuple[float, float]:
    parts = detection_reward(wrap(answer), target, **options).parts
    return parts["iou"], parts["confidence"]


A, B, C = (0, 0, 100, 100), (200, 200, 400, 400), (500, 500, 700, 700)
HALF_A, MOST_A = (0, 0, 100, 50), (0, 0, 100, 80)  # IoU 0.5, which is no hit, and 0.8
FAR, ALL = (900, 900, 950, 950), (0, 0, 1000, 1000)
CAT_AND_DOG = joined(rows(A, label="cat"), rows(FAR, label="dog"))

DETECTIONS = [
    ("exact", rows(A, B), rows(A, B), 1.0, 1.0),
    ("other order", rows(B, A), rows(A, B), 1.0, 1.0),
    ("newlines (V-RFT 0)", rows(A, B).replace(" ", "\n"), rows(A, B), 1.0, 1.0),
    ("V-RFT's own rows", str(json.loads(rows(A, B))), rows(A, B), 1.0, 1.0),
    ("without confidence", rows(A, confidence=None), rows(A), 1.0, 1.0),
    ("unsure", rows(A, confidence=0.25), rows(A), 1.0, 0.4375),
    ("mostly", rows(MOST_A), rows(A), 0.8, 1.0),
    ("IoU 0.5 is no hit", rows(HALF_A), rows(A), 0.0, -1.0),
    ("one of two", rows(A), rows(A, B), 0.5, 0.5),
    ("one of three", rows(A), rows(A, B, C), 1 / 3, 1 / 3),
    ("one too many", rows(A, FAR), rows(A), 0.5, 0.0),
    ("exact duplicate (V-RFT 1.0)", rows(A, A), rows(A), 0.5, 0.0),
    ("near duplicate", rows(A, MOST_A), rows(A), 0.5, 0.0),
    ("one box for two objects", rows((0, 0, 100, 100)), rows(A, (0, 0, 100, 99)), 0.5, 0.5),
    ("a false box, half sure", rows(FAR, confidence=0.5), rows(A), 0.0, -0.25),
    ("three of them", rows(*[FAR] * 3, confidence=0.5), rows(A), 0.0, -0.75),
    ("a false box at confidence 0 (V-RFT 1.0)", rows(FAR, confidence=0.0), rows(A), 0.0, 0.0),
    ("many false boxes at 0 (V-RFT 1.0)", rows(*[FAR] * 9, confidence=0.0), rows(A), 0.0, 0.0),
    ("confidence below 0 (V-RFT 1.0)", rows(FAR, confidence=-5), rows(A), 0.0, 0.0),
    ("confidence 99 (V-RFT 1.0)", rows(A, confidence=99), rows(A), 0.0, 0.0),
    ("I46 confidence NaN (V-RFT NaN, #39)", rows(A, confidence=math.nan), rows(A), 0.0, 0.0),
    ("I46 NaN spoils its box only", "[[NaN, 0, 9, 9], [0, 0, 100, 100]]", rows(A), 0.5, 0.5),
    ("I49 five corners (V-RFT 1.0)", rows((*A, 5)), rows(A), 0.0, 0.0),
    ("I50 no area", rows((5, 5, 5, 5)), rows(A), 0.0, 0.0),
    ("I51 huge", "[-1e308, -1e308, 1e308, 1e308]", rows(ALL), 1.0, 1.0),
    ("I53 the whole image", rows(ALL), rows(A), 0.0, -1.0),
    ("I53 mostly object", rows(ALL), rows((0, 0, 1000, 800)), 0.8, 1.0),
    ("V-RFT 1.0, #26: y1 elsewhere", rows((500, 200, 700, 900)), rows(B), 0.0, -1.0),
    ("V-RFT 1.0, #26: y1 alone", "200", rows(B), 0.0, 0.0),
    ("V-RFT 1.0, #26: y1 of 0", "0", rows(A), 0.0, 0.0),
    ("cut off after an item (V-RFT 1.0)", rows(A)[:-1] + ', {"Pos', rows(A), 0.0, 0.0),
    ("I38 nothing", "", rows(A), 0.0, 0.0),
    ("nothing where something is", "No Objects", rows(A), 0.0, 0.0),
    ("No Objects, rightly (V-RFT 0)", "No Objects", "No Objects", 1.0, 1.0),
    ("an empty list, rightly", "[]", "No Objects", 1.0, 1.0),
    ("None, rightly", "None", "[]", 1.0, 1.0),
    ("hallucination", rows(A), "No Objects", 0.0, -1.0),
    ("hallucination at confidence 0", rows(A, confidence=0.0), "No Objects", 0.0, 0.0),
    ("any unparseable text for None (VLM-R1 1.0)", "there may be a cat", "None", 0.0, 0.0),
    ("No Objects among others", f"No Objects {rows(A)}", "No Objects", 0.0, 0.0),
    ("right label", rows(A, label="Cat."), rows(A, label="cat"), 1.0, 1.0),
    ("wrong label (VLM-R1 0.3)", rows(A, label="dog"), rows(A, label="cat"), 0.0, -1.0),
    ("no label (VLM-R1 crashes)", rows(A), rows(A, label="cat"), 0.0, -1.0),
    ("I54 label null (VLM-R1 crashes)", f'{rows(A)[:-2]}, "label": null}}]', rows(A), 0.0, 0.0),
    ("a label nobody asked for", rows(A, label="cat"), rows(A), 1.0, 1.0),
    ("label not in the truth (VLM-R1: free)", CAT_AND_DOG, rows(A, label="cat"), 0.5, 0.0),
    ("2 right and 8 junk (VLM-R1 0.88)", rows(A, B, *[FAR] * 8), rows(A, B), 0.2, -1.0),
]


@pytest.mark.case("I38", "I46", "I47", "I48", "I49", "I50", "I51", "I53", "I54", "I55")
@pytest.mark.parametrize("answer, target, overlap, confidence", named(DETECTIONS))
def test_boxes_are_paid_as_worked_out_by_hand(answer, target, overlap, confidence):
    assert detected(answer, target) == pytest.approx((overlap, confidence), abs=1e-12)
    total = detection_reward(wrap(answer), target).total
    assert total == pytest.approx(overlap + confidence + 0.5 * format_reward(wrap(answer)))
    n_true = target.count("[") - 1 if target.startswith("[{") else 0
    is_strict = overlap == 1.0 or (overlap == 0.8 and n_true == 1)  # all hit, nothing else
    assert boxes_correct(wrap(answer), target) == float(is_strict)
    assert boxes_correct(answer, target) == 0.0  # outside the answer block


MOST_OR_HALF = joined(rows(MOST_A, confidence=0.1), rows(HALF_A, confidence=0.9))
A_OR_MOST = joined(rows(A, confidence=0.2), rows(MOST_A, confidence=0.9))
# Two true boxes, and two that have IoU 2/3 with the first of them. Only RIGHT_10 hits the second.
TWO_OF_10, DOWN_10, RIGHT_10 = rows((0, 0, 10, 10), (4, 0, 14, 10)), (0, 2, 10, 12), (2, 0, 12, 10)


@pytest.mark.parametrize(
    "answer, target, dense, overlap, confidence",
    named(
        [
            ("IoU 0.5 with full partial credit", rows(HALF_A), rows(A), 1.0, 0.5, -1.0),
            ("IoU 0.5 with half of it", rows(HALF_A), rows(A), 0.5, 0.25, -1.0),
            ("beside a hit", rows(HALF_A, B), rows(A, B), 1.0, 0.75, 0.0),
            ("no overlap", rows(FAR), rows(A), 1.0, 0.0, -1.0),
            (
                "a hit is not lost to a surer near miss",
                MOST_OR_HALF,
                rows(A),
                1.0,
                0.4,
                0.2 - 0.01 - 0.81,
            ),
            ("of two hits the surer one counts", A_OR_MOST, rows(A), 0.0, 0.4, 0.475),
            ("tie of confidence and IoU", rows(DOWN_10, RIGHT_10), TWO_OF_10, 0.0, 2 / 3, 1.0),
            ("the same, other order", rows(RIGHT_10, DOWN_10), TWO_OF_10, 0.0, 2 / 3, 1.0),
        ]
    ),
)
def test_partial_credit_and_ties(answer, target, dense, overlap, confidence):
    parts = detected(answer, target, dense=dense)
    assert parts == pytest.approx((overlap, confidence), abs=1e-12)


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("n_others", [0, 1, 4])
def test_an_honest_confidence_pays_best(p, n_others):
    """A box that is right with probability p, beside right ones or alone: the score is proper."""
    others = [(100 * k, 0, 100 * k + 50, 50) for k in range(n_others)]
    here, elsewhere = (0, 500, 50, 550), (500, 500, 550, 550)

    def expected(confidence: float) -> float:
        answer = rows(here, confidence=confidence)
        answer = joined(rows(*others), answer) if others else answer
        right, wrong = (detected(answer, rows(*others, fifth))[1] for fifth in (here, elsewhere))
        return p * right + (1 - p) * wrong

    assert max((k / 20 for k in range(21)), key=expected) == pytest.approx(p)


def test_a_right_number_in_the_thoughts_and_an_empty_list_earn_nothing():
    """V-RFT #26: symbolic maths on the whole text pays this 1.0 in both parts."""
    text = "<think>the box starts at 200</think><answer>[]</answer>"
    assert detection_reward(text, rows(B)).parts == {"iou": 0.0, "confidence": 0.0, "format": 1.0}


def test_boxes_outside_the_grammar_are_no_target():
    for target in ("", "a cat", rows((5, 5, 5, 5)), rows(A, confidence=2), "[1, 2, 3]"):
        for reward in (detection_reward, grounding_reward, boxes_correct, first_box_iou):
            with pytest.raises(ValueError, match="target"):
                reward(wrap(rows(A)), target)
    for target in ("No Objects", rows(A, B)):
        with pytest.raises(ValueError, match="target"):
            grounding_reward(wrap(rows(A)), target)


def test_the_canvas_scales_nothing_but_clips():
    small = (640, 480)
    assert detected("[-10, 0, 700, 480]", "[0, 0, 640, 480]", canvas=small) == (1.0, 1.0)
    assert detected("[650, 0, 700, 480]", "[0, 0, 640, 480]", canvas=small) == (0.0, 0.0)


CONFIDENCES = st.sampled_from([None, 0.0, 0.25, 0.5, 1.0])
DENSE = st.floats(0.0, 1.0)
TRUE_BOXES = corners_up_to(12).map(lambda c: Box(*map(float, c)))
TRUE = st.lists(TRUE_BOXES, max_size=4)
PREDICTED_BOXES = st.builds(lambda b, c: b._replace(confidence=c), TRUE_BOXES, CONFIDENCES)
PREDICTED = st.lists(PREDICTED_BOXES, max_size=5)


def written(boxes: list[Box]) -> str:
    return joined(*(rows(box[:4], confidence=box.confidence) for box in boxes))


def detection_of(boxes: list[Box], true: list[Box], dense: float = 0.0):
    return detection_reward(wrap(written(boxes)), written(true), dense=dense)


def raster_iou(a: Box, b: Box, size: int = 12) -> float:
    """The oracle: paint both boxes on a grid and count cells."""
    masks = np.zeros((2, size, size), dtype=bool)
    for mask, box in zip(masks, (a, b), strict=True):
        x1, y1, x2, y2 = map(int, box[:4])
        mask[y1:y2, x1:x2] = True
    return (masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum()


@pytest.mark.case("O18")
@NO_DEADLINE
@given(TRUE_BOXES, TRUE_BOXES)
def test_o18_iou_is_that_of_painted_boxes(a, b):
    assert iou(a, b) == pytest.approx(raster_iou(a, b), abs=1e-12)
    assert iou(a, b) == iou(b, a) and (iou(a, b) == 1.0) == (a == b)


@pytest.mark.case("I50")
@NO_DEADLINE
@given(*[st.floats(0.0, 1e9)] * 8)
def test_iou_of_any_boxes_is_in_range(x1, y1, x2, y2, u1, v1, u2, v2):
    a, b = Box(x1, y1, x2, y2), Box(u1, v1, u2, v2)
    assert 0.0 <= iou(a, b) <= 1.0
    if (x2 - x1) > 1e-100 and (y2 - y1) > 1e-100:
        assert iou(a, a) == 1.0


def best_assignment(credits: np.ndarray) -> float:
    i, j = linear_sum_assignment(credits, maximize=True)
    return credits[i, j].sum()


def hit_credits(predicted: list[Box], true: list[Box]) -> np.ndarray:
    ious = np.array([[iou(a, b) for b in true] for a in predicted])
    ious = ious.reshape(len(predicted), len(true))
    return np.where(ious > 0.5, ious, 0.0)


@pytest.mark.case("O18")
@NO_DEADLINE
@given(PREDICTED, TRUE)
def test_o18_greedy_hits_never_exceed_the_best_assignment_and_often_are_it(predicted, true):
    pairs = match_boxes(predicted, true)
    hits = [overlap for _, overlap in pairs if overlap > 0.5]
    assert sum(hits) <= best_assignment(hit_credits(predicted, true)) + 1e-12
    assert all(overlap <= 0.5 for _, overlap in pairs[len(hits) :])  # hits come first
    # The best: where confidences are equal and objects apart.
    true = [b for k, b in enumerate(true) if not any(iou(b, other) for other in true[:k])]
    predicted = [box._replace(confidence=0.5) for box in predicted]
    hits = [overlap for _, overlap in match_boxes(predicted, true) if overlap > 0.5]
    assert sum(hits) == pytest.approx(best_assignment(hit_credits(predicted, true)), abs=1e-12)


@pytest.mark.case("O18")
@NO_DEADLINE
@given(PREDICTED, TRUE, DENSE, st.randoms(use_true_random=False))
def test_o18_the_order_of_boxes_changes_nothing(predicted, true, dense, random):
    before = detection_of(predicted, true, dense)
    random.shuffle(predicted)
    assert detection_of(predicted, true, dense) == before


@pytest.mark.case("O18")
@NO_DEADLINE
@given(PREDICTED, TRUE, st.integers(0, 5), CONFIDENCES, DENSE, corners_up_to(12))
def test_o18_an_extra_false_box_never_raises_the_total(
    predicted, true, at, confidence, dense, corners
):
    before = detection_of(predicted, true, dense)
    extra = Box(*(900.0 + c for c in corners), confidence)  # overlaps nothing
    more = [*predicted[:at], extra, *predicted[at:]]
    assert detection_of(more, true, dense).total <= before.total
    malformed = written(predicted)[:-1] + (", " if predicted else "") + "[1, 2, 3]]"
    assert detection_reward(wrap(malformed), written(true), dense=dense).total <= before.total
    near = Box(*map(float, corners), confidence)
    if all(iou(near, box) <= 0.5 for box in true):  # overlaps something, but is no hit
        more = [*predicted[:at], near, *predicted[at:]]
        assert detection_of(more, true).total <= detection_of(predicted, true).total


@pytest.mark.case("O18")
@NO_DEADLINE
@given(PREDICTED, TRUE, DENSE)
def test_o18_nothing_earns_more_than_the_exact_boxes(predicted, true, dense):
    exact = detection_of(true, true, dense)
    assert exact.total == 2.5 and set(exact.parts.values()) == {1.0}
    other, sparse = detection_of(predicted, true, dense), detection_of(predicted, true)
    assert -1.0 <= other.total <= 2.5 and all(-1.0 <= part <= 1.0 for part in other.parts.values())
    assert other.parts["iou"] >= 0 and other.parts["format"] >= 0
    assert sparse.total <= other.total and sparse.parts["confidence"] == other.parts["confidence"]


@pytest.mark.case("I46", "I50", "I53")
@pytest.mark.parametrize(
    "answer, part",
    named(
        [
            ("exact", "[0, 0, 100, 100]", 1.0),
            ("points", "(0,0),(100,100)", 1.0),
            ("floats (VLM-R1 0)", "[0.0, 0.0, 100.0, 50.0]", 0.5),
            ("fenced, with a label", f"```json\n{rows(A, label='x')}\n```", 1.0),
            ("below half counts as it is", "[0, 0, 100, 30]", 0.3),
            ("one pixel of overlap (VLM-R1 0)", "[99, 99, 199, 199]", 1 / 19999),
            ("disjoint (LISA more than 0)", "[900, 900, 950, 950]", 0.0),
            ("inverted (LISA 17.0)", "(100,100),(0,0)", 0.0),
            ("two boxes (LISA mis-pairs)", "(0,0),(100,100),(0,0),(100,100)", 0.0),
            ("the right one first", rows(A, FAR), 0.0),
            ("a malformed one beside it", "[[0, 0, 100, 100], [1]]", 0.0),
            ("text before it (VLM-R1 1.0)", "it is [0, 0, 100, 100]", 0.0),
            ("I50 no area", "[5, 5, 5, 5]", 0.0),
            ("I53 the whole image", "[0, 0, 1000, 1000]", 0.01),
            ("No Objects", "No Objects", 0.0),
            ("I46 1e999", "[0, 0, 1e999, 100]", 0.0),
        ]
    ),
)
def test_grounding_pays_the_plain_iou_of_exactly_one_box(answer, part):
    for dense in (0.0, 0.5, 1.0):
        reward = grounding_reward(wrap(answer), rows(A), dense=dense)
        assert reward.parts == {"iou": pytest.approx(part), "format": 1.0}
        assert reward.total == pytest.approx(part + 0.5)


# ---- calls and sequences -------------------------------------------------------------------------

CHANGES = "change_colour(f1, red), remove(f3)"


@pytest.mark.parametrize(
    "answer, sparse, credit",
    named(
        [
            ("exact", CHANGES, 1.0, 1.0),
            ("other order", "remove(f3), change_colour(f1, red)", 1.0, 1.0),
            ("spaces inside (R-RFT 0)", "change_colour( f1 , red ) remove( f3 )", 1.0, 1.0),
            ("another value", "change_colour(f1, blue), remove(f3)", 0.0, 0.75),
            ("another object", "change_colour(f2, red), remove(f3)", 0.0, 0.75),
            ("function alone", "change_colour(f2, blue), remove(f3)", 0.0, 0.625),
            ("values swapped", "change_colour(red, f1), remove(f3)", 0.0, 0.625),
            ("other function", "change_size(f1, red), remove(f3)", 0.0, 0.5),
            ("one missing", "remove(f3)", 0.0, 0.5),
            ("one too many", CHANGES + ", remove(f2)", 0.0, 2 / 3),
            ("one repeated (R-RFT 1.0)", CHANGES + ", remove(f3)", 0.0, 2 / 3),
            ("all objects tried", ", ".join(f"remove(f{k})" for k in range(1, 9)), 0.0, 1 / 8),
            ("nothing", "no change", 0.0, 0.0),
            ("silence (R-RFT's penalty: better than a try)", "", 0.0, 0.0),
            ("right among words", f"I did {CHANGES}", 0.0, 0.0),
        ]
    ),
)
def test_calls_are_paid_as_worked_out_by_hand(answer, sparse, credit):
    assert correct(calls_reward, answer, CHANGES) == sparse
    assert correct(calls_reward, answer, CHANGES, dense=1.0) == pytest.approx(credit)
    assert calls_accuracy(parse_answer(wrap(answer)), CHANGES) == pytest.approx(credit)


def test_the_order_of_calls_counts_only_if_asked_for():
    turned = "remove(f3), change_colour(f1, red)"
    assert correct(calls_reward, turned, CHANGES, ordered=True) == 0.0
    assert correct(calls_reward, CHANGES, CHANGES, ordered=True) == 1.0
    assert correct(calls_reward, turned, CHANGES, ordered=True, dense=1.0) == 0.0
    assert correct(calls_reward, "f(a), f(b)", "f(b), f(c)", ordered=True, dense=1.0) == 0.25
    assert correct(calls_reward, "f(), g(a)", "f(), g(b)", ordered=True, dense=1.0) == 0.625


CALLS = st.lists(
    st.tuples(st.sampled_from("fg"), st.sampled_from("abc"), st.sampled_from("xyz")), max_size=5
)


def call_credit(a: tuple, b: tuple) -> float:
    """R-RFT's table, written out."""
    if a[0] != b[0]:
        return 0.0
    return (0.25, 0.5, 1.0)[(a[1] == b[1]) + (a[2] == b[2])]


@pytest.mark.case("O18")
@NO_DEADLINE
@given(CALLS, CALLS.filter(bool))
def test_o18_the_partial_credit_of_calls_is_the_best_assignment(calls, true):
    credits = np.array([[call_credit(a, b) for b in true] for a in calls]).reshape(-1, len(true))
    best = best_assignment(credits) / max(len(calls), len(true))
    answer, target = (
        ", ".join(f"{name}({a}, {b})" for name, a, b in pairs) for pairs in (calls, true)
    )
    assert correct(calls_reward, answer, target, dense=1.0) == pytest.approx(best, abs=1e-12)
    is_exact = sorted(calls) == sorted(true)
    assert is_exact == (best == 1.0) == (correct(calls_reward, answer, target) == 1.0)


@pytest.mark.parametrize(
    "answer, sparse, credit",
    [("B, A, C, D", 1, 1), ("BACD", 1, 1), ("B > A > D > C", 0, 0.5), ("A B D C", 0, 0)]
    + [("B, A, C", 0, 0), ("B, A, C, D, E", 0, 0), ("B, A, C, E", 0, 0), ("B, B, C, D", 0, 0)]
    + [("first B, then A, C, D", 0, 0), ("", 0, 0), ("B, C, A, D", 0, 0.5)],
)
def test_a_sequence_is_right_as_a_whole_or_graded_by_position(answer, sparse, credit):
    assert correct(sequence_reward, answer, "B, A, C, D") == sparse
    assert correct(sequence_reward, answer, "B, A, C, D", dense=1.0) == credit
    assert correct(sequence_reward, answer, "B, A, C, D", dense=0.5) == max(sparse, credit / 2)


# ---- what all rewards promise --------------------------------------------------------------------

# reward -> (target, an answer that is wrong but in the grammar)
KINDS = {
    classification_reward: ("dog rose", "dog daisy"),
    number_reward: ("4", "5"),
    choice_reward: ("B", "C"),
    measure_reward: ("12.5", "13"),
    detection_reward: (rows(A, B), rows(FAR, MOST_A)),
    grounding_reward: ("[0, 0, 100, 100]", "[0, 0, 100, 50]"),
    calls_reward: (CHANGES, "change_colour(f2, red), remove(f1)"),
    sequence_reward: ("B, A, C", "B, C, A"),
}
PARTS = dict.fromkeys(KINDS, ("correct", "format")) | {
    detection_reward: ("iou", "confidence", "format"),
    grounding_reward: ("iou", "format"),
}
every_reward = pytest.mark.parametrize("reward", KINDS, ids=lambda reward: reward.__name__)


@every_reward
def test_the_exact_answer_earns_every_part_in_every_mode(reward):
    target, wrong = KINDS[reward]
    texts = {"think": wrap(target), "direct": f"<answer>{target}</answer>"}
    texts["steps"] = STEPS.replace("cat", target)
    for mode, dense in itertools.product(FORMATS, (0.0, 0.3, 1.0)):
        best = reward(texts[mode], target, mode, dense=dense)
        assert best.parts == dict.fromkeys(PARTS[reward], 1.0)
        assert best.total == len(PARTS[reward]) - 0.5  # the format has half of the weight
        worse = reward(texts[mode].replace(target, wrong), target, mode, dense=dense)
        assert worse.total < best.total and worse.parts["format"] == 1.0


@pytest.mark.case("I38", "I44", "I45")
@every_reward
def test_thoughts_and_text_around_the_block_earn_nothing(reward):
    target, wrong = KINDS[reward]
    for text in (
        *("", target, f"<think>{target}</think>", f"<think><answer>{target}</answer></think>"),
        *(f"{target}<answer>-</answer>{target}", f"<answer>{target}", f"<think><answer>{target}"),
        *(f"<answer>{target}</answer><answer>{target}</answer>", "<answer>-</answer>"),
        *(f"<{t}><answer>{target}</answer></{t}>" for t in THOUGHTS),
    ):
        assert reward(text, target, "direct", dense=1.0).total == 0.0, text
    around = reward(f"so: <answer>{target}</answer>.", target)
    assert around.parts == dict.fromkeys(PARTS[reward], 1.0) | {"format": 0.0}
    assert reward(f"so: <answer>{wrong}</answer>.", target).total < around.total


@every_reward
def test_parts_are_weighted_and_weights_must_fit(reward):
    target, names = KINDS[reward][0], PARTS[reward]
    weights = {name: 2.0**k for k, name in enumerate(names)}
    best = reward(wrap(target), target, weights=weights | {"other": -1.0})
    assert best == Reward(2 ** len(names) - 1, dict.fromkeys(names, 1.0))
    assert reward("", target, weights=weights).total == 0.0
    missing = {name: 1.0 for name in names[1:]}
    huge = dict.fromkeys(names, 1e308)  # finite each, infinite together
    for wrong in ({}, missing, huge, *(weights | {"format": w} for w in (-1, math.nan, math.inf))):
        for text in ("", wrap(target)):
            with pytest.raises(ValueError, match="weights"):
                reward(text, target, weights=wrong)
    with pytest.raises(TypeError):
        WEIGHTS["format"] = 2.0


@pytest.mark.case("I27")
@every_reward
def test_our_own_mistakes_raise_whatever_the_text(reward):
    target, _ = KINDS[reward]
    for text in ("", "cat", wrap(target)):
        with pytest.raises(ValueError, match="mode"):
            reward(text, target, "cot")
        for dense in (-0.1, 1.1, math.nan, math.inf):
            with pytest.raises(ValueError, match="dense"):
                reward(text, target, dense=dense)
        for bad in ("", "  \n", "_", "...", '"*"', "x" * (MAX_NAME_CHARS + 1)):
            with pytest.raises(ValueError, match="target"):
                reward(text, bad)


@pytest.mark.case("O18")
@every_reward
@NO_DEADLINE
@given(ANY_TEXT | MARKS | MARKS.map(wrap), st.sampled_from([*FORMATS]), DENSE)
def test_any_text_earns_the_same_twice_in_range_and_no_more_than_the_exact_answer(
    reward, text, mode, dense
):
    target, _ = KINDS[reward]
    earned = reward(text, target, mode, dense=dense)
    assert earned == reward(text, target, mode, dense=dense)
    lowest = {"confidence": -1.0}  # false boxes cost
    assert all(lowest.get(name, 0.0) <= part <= 1.0 for name, part in earned.parts.items())
    assert sum(lowest.values()) <= earned.total <= len(PARTS[reward]) - 0.5
    assert reward(text, target, mode).total <= earned.total


# ---- loose metrics -------------------------------------------------------------------------------


def peers_loose_rule(text: str, target: str) -> float:
    """The published rule written with its regular expression: the oracle for our linear copy."""
    block = re.search(r"<answer>(.*?)</answer>", text)
    answer = block.group(1) if block else text
    answer, target = (s.strip().replace(" ", "").replace("_", "").lower() for s in (answer, target))
    return float(target in answer or answer in target)


@NO_DEADLINE
@given(TAGGED)
def test_the_loose_name_is_the_published_rule(text):
    assert loose_name_correct(text, "Cat") == peers_loose_rule(text, "Cat")


LOOSE = [
    # Any number of the whole text.
    (loose_number_correct, "<think>5</think><answer>4</answer>", "5", 1.0),  # R1-V pays
    (loose_number_correct, "<answer>4</answer> 5", "5", 1.0),
    (loose_number_correct, "3 or 4 or 5", "5", 1.0),
    (loose_number_correct, "1,000 of them", "1000", 1.0),
    (loose_number_correct, "x=-5", "-5", 1.0),
    (loose_number_correct, "3-5", "5", 1.0),
    (loose_number_correct, "15, 5.5, five", "5", 0.0),
    (loose_number_correct, "9" * 5000, "5", 0.0),
    # The first yes or no, inside any word.
    (loose_yes_no, "<answer>I know it is yes</answer>", "no", 1.0),  # VLM-R1 pays
    (loose_yes_no, "no doubt: yes", "no", 1.0),
    (loose_yes_no, "<think>no</think><answer>Yes</answer>", "yes", 1.0),
    (loose_yes_no, "<answer>yes</answer><answer>no</answer>", "no", 0.0),
    (loose_yes_no, "<answer>maybe</answer> yes", "yes", 0.0),
    (loose_yes_no, "<answer>no</answer>", "unknown", 1.0),
    (loose_yes_no, "", "yes", 0.0),
    # The first box of integers in the first answer.
    (first_box_iou, "<answer>it is [0, 0, 100, 50], or [0, 0, 100, 100]</answer>", rows(A), 0.5),
    (first_box_iou, "<answer>[0, 0, 100, 100]</answer><answer>no</answer>", rows(A), 1.0),
    (first_box_iou, "<answer>no</answer><answer>[0, 0, 100, 100]</answer>", rows(A), 0.0),
    (first_box_iou, "[0, 0, 100, 100]", rows(A), 0.0),
    (first_box_iou, "<answer>[0.0, 0, 100, 100]</answer>", rows(A), 0.0),
    (first_box_iou, "<answer>[100, 100, 0, 0]</answer>", rows(A), 0.0),
    (first_box_iou, "<answer>[00, 0, 100, 100]</answer>", rows(A), 0.0),
    (first_box_iou, "<answer>[0, 0, 100, 100", rows(A), 0.0),
    (first_box_iou, "<answer>" + "[" * 3000 + "0, 0, 100, 100]</answer>", rows(A), 1.0),
]


@pytest.mark.parametrize("metric, text, target, value", LOOSE)
def test_the_loose_metrics_pay_what_their_sources_pay(metric, text, target, value):
    assert metric(text, target) == value
    with pytest.raises(ValueError, match="target"):
        metric(text, "maybe")


# ---- time ----------------------------------------------------------------------------------------

N = MAX_COMPLETION_CHARS - 50
ACCENTS = "\u0316\u0301"  # NFKC sorts a run of them in quadratic time
LABELS_OF_ACCENTS = [{"bbox_2d": [1, 2, 3, 4], "label": "a" + ACCENTS * 49}] * (N // 150)


def repeated(*units: str) -> dict[str, str]:
    return {f"{unit!r} repeated": unit * (N // len(unit)) for unit in units}


HOSTILE_ANSWERS = repeated(
    *("{", "[", "[]", "(", "()", "(1,2),", ")  (", '"', "'", "\"'", '\\"', "'\\", "9", "1,"),
    *("A", "->", "f(a),", "```"),
) | {
    "one long gap": "(1,2)" + " " * (N - 5),
    "an open string of escapes": '["' + '\\"' * (N // 2 - 1),
    "I52 boxes": "[" + "[1,2,3,4]," * (N // 10 - 1) + "[1,2,3,4]]",
    "I52 Python boxes": "[" + "{'bbox_2d':[1,2,3,4],'label':'a'}," * (N // 36) + "[]]",
    "labels of accents": json.dumps(LABELS_OF_ACCENTS, ensure_ascii=False),
    "one long label": '{"bbox_2d":[1,2,3,4],"label":"' + ACCENTS * (N // 2 - 20) + '"}',
    "I47 digits in a box": "[1,2,3," + "9" * (N - 8) + "]",
    "I47 numbers of 4000 digits": "[" + ("9" * 4000 + ",") * (N // 4001 - 1) + "1]",
    "decimals": "0." + "1" * (N - 2),
    "thousands": "1" + ",000" * (N // 4 - 1),
    "one long call": "f(" + "a," * (N // 2 - 2) + "a)",
    "one open call": "f(" + "a , " * (N // 4 - 1),
    "one call of spaces": "f(" + " " * (N - 6) + "a b)",
    "one long name": "f" * (N - 2) + "()",
    "spaces": "f" + " " * (N - 2) + "(",
    "white space": " \n" * (N // 2 - 1) + "x",
    "accents": "a" + ACCENTS * (N // 2 - 1),
    "ligatures": "\ufdfa" * N,  # NFKC makes 18 characters of each
}
HOSTILE_TEXTS = repeated(
    *("<think>", "<answer>", "</answer>", "<answer></answer>", "<summary></caption>"),
    *("<answer>\n", "<answer", "<", "\n", "a b ", "1 "),
) | {
    "empty thoughts": "<think></think>" * (N // 15) + CAT,
    "zero-width thoughts": "<think>" + "\u200b" * (N - 50) + f"</think>{CAT}",
}
HOSTILE_TEXTS |= {f"answer: {name}": said(answer)[0] for name, answer in HOSTILE_ANSWERS.items()}
LOOSE_TARGETS = {loose_name_correct: "cat"} | {metric: target for metric, _, target, _ in LOOSE}


@pytest.mark.case("I52", "I57")
@pytest.mark.parametrize("text", HOSTILE_TEXTS.values(), ids=HOSTILE_TEXTS)
def test_a_hostile_text_of_100_kb_takes_under_50_ms(text):
    assert 0.9 * MAX_COMPLETION_CHARS < len(text) <= MAX_COMPLETION_CHARS
    for reward, (target, _) in KINDS.items():
        assert takes_under(0.050, lambda r=reward, t=target: r(text, t, dense=1.0)), reward
    for metric, target in LOOSE_TARGETS.items():
        assert takes_under(0.050, lambda m=metric, t=target: m(text, t)), metric
    assert takes_under(0.050, lambda: repetition_penalty(text))


@pytest.mark.case("I52")
def test_i52_ten_thousand_boxes_take_under_50_ms_and_earn_almost_nothing():
    answer = f"<answer>[{'[0,0,9,9],' * 9_900}[0,0,9,9]]</answer>"
    target = rows(*[(k, k, k + 9, k + 9) for k in range(20)])
    assert len(answer) < MAX_COMPLETION_CHARS
    assert takes_under(0.050, lambda: detection_reward(answer, target, dense=1.0))
    assert detection_reward(answer, target, dense=1.0).total < 0.005


@every_reward
def test_two_thousand_completions_are_scored_in_half_a_second(reward):
    target, wrong = KINDS[reward]
    texts = [wrap(target), wrap(wrong).replace("a low roof", "a low roof " * 20)] * 1000
    assert takes_under(0.5, lambda: [reward(text, target, dense=1.0) for text in texts])


@pytest.mark.case("I58")
def test_answers_and_rewards_import_nothing_that_could_run_text():
    for module in (answers, rewards):
        tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
        names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        names |= {n.module.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        assert names <= {"answers", "numpy", "scipy", *sys.stdlib_module_names}
