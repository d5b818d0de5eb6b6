"""What `rewards.py` guarantees: the right name is paid however it is spelt, and nothing else is.

Every text that a published reward function is known to overpay is a case here, with what it was
paid: V-RFT is Liuziyu77/Visual-RFT (its issues #70, #79, #161, #176), R1-V and the others name
their repositories. Run: `pytest tests/test_rewards.py`.
"""

import ast
import dataclasses
import math
import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rewards
from rewards import (
    CLASSIFICATION_WEIGHTS,
    FORMATS,
    MAX_COMPLETION_CHARS,
    MAX_NAME_CHARS,
    classification_reward,
    format_reward,
    loose_name_correct,
    name_correct,
    normalise_name,
    parse_answer,
    weighted,
)

CAR = "2012 BMW 1 Series Convertible"
THOUGHT = "<think>a low roof</think>"
BEST = sum(CLASSIFICATION_WEIGHTS.values())
ANY_PACE = settings(deadline=None)  # the time of single examples is noise on a busy machine


def strict(text: str, target: str) -> float:
    return name_correct(parse_answer(text), target)


# ---------------------------------------------------------------- texts that a peer's reward pays

# (id, completion, target, what our loose copy of V-RFT's rule pays). The strict rule pays 0.
NOT_AN_ANSWER = [
    ("I38 empty completion (V-RFT 1.0)", "", "apple", 1.0),
    ("white space only (V-RFT 1.0)", " \n\t ", "apple", None),
    ("I41 empty answer (V-RFT 1.0, #176)", "<answer></answer>", "apple", 1.0),
    ("blank answer (V-RFT 1.0)", f"{THOUGHT}<answer>   </answer>", "apple", 1.0),
    ("underscores as answer (V-RFT 1.0)", "<answer>__</answer>", "apple", 1.0),
    ("dots as answer", "<answer>...</answer>", "apple", 0.0),
    ("no-break space as answer (V-RFT 1.0)", "<answer>\xa0</answer>", "apple", 1.0),
    ("zero-width answer", "<answer>\u200b\u2060\ufeff</answer>", "apple", 0.0),
    ("I43 first letter (V-RFT 1.0)", "<answer>a</answer>", "apple", 1.0),
    ("I43 inner letter (V-RFT 1.0)", "<answer>b</answer>", CAR, 1.0),
    ("I43 another letter (V-RFT 1.0)", "<answer>o</answer>", CAR, 1.0),
    ("make alone (V-RFT 1.0, #70)", "<answer>BMW</answer>", CAR, 1.0),
    ("year alone (V-RFT 1.0)", "<answer>2012</answer>", CAR, 1.0),
    ("prefix (V-RFT 1.0)", "<answer>2012 BMW 1 Series</answer>", CAR, 1.0),
    ("I31 prefix of a number (V-RFT 1.0)", "<answer>737</answer>", "737-800", 1.0),
    ("I31 label inside a longer one (V-RFT 1.0)", "<answer>cathedral</answer>", "cat", 1.0),
    ("I31 hyphen is not a space", "<answer>737 800</answer>", "737-800", 0.0),
    ("I42 list (V-RFT 1.0)", "<answer>A or B or C</answer>", "B", 1.0),
    (
        "I42 list of variants (V-RFT 1.0)",
        "<answer>A320 or 737-400 or MD-80</answer>",
        "737-400",
        1.0,
    ),
    ("comma list (V-RFT 1.0)", "<answer>cat, dog</answer>", "cat", 1.0),
    ("line per class (V-RFT 1.0)", "<answer>cat\ndog</answer>", "cat", 1.0),
    ("line break, name elsewhere (V-RFT 1.0)", "a cat? <answer>\ndog</answer>", "cat", 1.0),
    ("sentence (V-RFT 1.0)", "<answer>it is a cat</answer>", "cat", 1.0),
    ("denial (V-RFT 1.0)", "<answer>not a cat</answer>", "cat", 1.0),
    ("no tags, name in passing (V-RFT 1.0)", "a cat or a dog", "cat", 1.0),
    ("no tags, bare name (V-RFT 1.0)", "cat", "cat", 1.0),
    ("boxed instead of tags (V-RFT 1.0)", "\\boxed{cat}", "cat", 1.0),
    ("first answer counts (V-RFT 1.0)", "<answer>cat</answer><answer>dog</answer>", "cat", 1.0),
    ("last answer counts", "<answer>dog</answer><answer>cat</answer>", "cat", 0.0),
    ("the same answer twice (V-RFT 1.0)", "<answer>cat</answer><answer>cat</answer>", "cat", 1.0),
    ("I44 answer in an answer", "<answer><answer>cat</answer></answer>", "cat", None),
    ("I44 unclosed answer (V-RFT 1.0)", f"{THOUGHT}<answer>cat", "cat", 1.0),
    ("I44 unopened answer (V-RFT 1.0)", f"{THOUGHT}cat</answer>", "cat", 1.0),
    ("I44 closed before opened (V-RFT 1.0)", "</answer>cat<answer>", "cat", 1.0),
    ("I44 closed twice", "<answer>cat</answer></answer>", "cat", 1.0),
    ("I44 opened twice", "<answer><answer>cat</answer>", "cat", None),
    ("I44 thought inside the answer", "<answer><think>x</think>cat</answer>", "cat", None),
    ("I44 answer ends a thought", "<answer></think>cat</answer>", "cat", None),
    ("I45 answer in the thoughts (V-RFT 1.0)", "<think><answer>cat</answer></think>", "cat", 1.0),
    ("I45 in unclosed thoughts", "<think>hm <answer>cat</answer>", "cat", 1.0),
    ("I45 in thoughts opened by the prompt", "hm <answer>cat</answer> so</think>", "cat", 1.0),
    ("I45 in the second thought", f"{THOUGHT}<think><answer>cat</answer></think>", "cat", 1.0),
    (
        "I45 in nested thoughts",
        "<think><think>a</think><answer>cat</answer></think>",
        "cat",
        1.0,
    ),
    (
        "draft in the thoughts, then another (V-RFT 1.0)",
        "<think>so <answer>cat</answer></think><answer>dog</answer>",
        "cat",
        1.0,
    ),
    (
        "right name in the thoughts alone (R1-V 1.0)",
        "<think>the answer is 5, $5$</think><answer>4</answer>",
        "5",
        0.0,
    ),
    ("right name after the answer (R1-V 1.0)", "<answer>4</answer> 5", "5", 0.0),
    ("other-case tags (V-RFT 1.0)", "<ANSWER>cat</ANSWER>", "cat", 1.0),
    ("tags in full width (V-RFT 1.0)", "＜answer＞cat＜/answer＞", "cat", 1.0),
    ("Cyrillic look-alikes", "<answer>с\u0430t</answer>", "cat", 0.0),
    ("zero-width inside the name", "<answer>c\u200bat</answer>", "cat", 0.0),
    ("control character inside the name", "<answer>c\x00at</answer>", "cat", 0.0),
    ("accent missing", "<answer>pate</answer>", "pâté", 0.0),
    ("I57 power tower", "<answer>\\boxed{9^{9^{9^9}}}</answer>", "9", None),
    ("I57 nested braces", "<answer>" + "{" * 3000 + "}" * 3000 + "</answer>", "9", None),
    ("I57 factorial", "<answer>1000000!</answer>", "9", None),
    ("I58 import", "<answer>__import__('os').getcwd()</answer>", "os.getcwd", None),
    ("I58 dunder", "<answer>().__class__.__base__</answer>", "object", None),
    ("I58 arithmetic is not evaluated", "<answer>2+3</answer>", "5", 0.0),
    ("I60 replacement character", "<answer>c\ufffdt</answer>", "cat", 0.0),
    ("lone surrogate", "<answer>c\ud800t</answer>", "cat", 0.0),
]


@pytest.mark.parametrize(
    "text, target, loose", [case[1:] for case in NOT_AN_ANSWER], ids=[c[0] for c in NOT_AN_ANSWER]
)
@pytest.mark.parametrize("mode", FORMATS)
def test_text_that_fools_a_peer_is_not_correct(text, target, loose, mode):
    reward = classification_reward(text, target, mode)
    assert reward.parts["correct"] == 0.0 and strict(text, target) == 0.0
    assert reward.total <= CLASSIFICATION_WEIGHTS["format"]
    if loose is not None:  # the peer's rule does overpay it: the case is not a straw man
        assert loose_name_correct(text, target) == loose


def test_i39_a_completion_of_white_space_or_nothing_is_worth_zero():
    for text in ("", "\n", "   "):
        for mode in FORMATS:
            assert classification_reward(text, "cat", mode).total == 0.0


def test_i40_a_cut_off_completion_is_scored_on_what_is_there():
    assert classification_reward("<think>six petals and", "cat").total == 0.0
    cut = "<think>a</think><answer>cat</answer> and so"
    assert classification_reward(cut, "cat").parts == {"correct": 1.0, "format": 0.0}


# -------------------------------------------------------- right answers, also where a peer misses

RIGHT = [
    ("plain", "<answer>garden phlox</answer>", "garden phlox"),
    ("with thoughts", f"{THOUGHT}<answer>cat</answer>", "cat"),
    ("leading space", f" {THOUGHT}<answer>cat</answer>", "cat"),
    ("newlines in the answer", "<answer>\n cat \n</answer>", "cat"),
    ("name broken over two lines", "<answer>garden\nphlox</answer>", "garden phlox"),
    ("case", "<answer>Garden PHLOX</answer>", "garden phlox"),
    ("case beyond ASCII", "<answer>STRASSE</answer>", "Straße"),
    ("NFD answer", "<answer>pa\u0302te\u0301</answer>", "p\xe2t\xe9"),
    ("NFC answer", "<answer>p\xe2t\xe9</answer>", "pa\u0302te\u0301"),
    ("order of accents", "<answer>J\u0323\u030c</answer>", "\u01f0\u0323"),
    ("full-width letters", "<answer>Ａ３２０</answer>", "A320"),
    ("no-break space", "<answer>garden\xa0phlox</answer>", "garden phlox"),
    ("underscores", "<answer>american_bulldog</answer>", "American Bulldog"),
    ("underscores in the target", "<answer>american bulldog</answer>", "american_bulldog"),
    ("full stop", "<answer>Cat.</answer>", "cat"),
    ("quotes", '<answer>"cat"</answer>', "cat"),
    ("curly quotes", "<answer>“cat.”</answer>", "cat"),
    ("markdown", "<answer>**cat**</answer>", "cat"),
    ("curly apostrophe", "<answer>colt’s foot</answer>", "colt's foot"),
    ("no-break hyphen", "<answer>737\u2011800</answer>", "737-800"),
    ("words around", "I see it. <answer>cat</answer> Done.", "cat"),
    ("empty thoughts", "<think></think><answer>cat</answer>", "cat"),
    ("thoughts opened by the prompt", "six petals</think><answer>cat</answer>", "cat"),
    ("thoughts after the answer", "<answer>cat</answer><think>why</think>", "cat"),
    ("two thoughts", f"{THOUGHT}{THOUGHT}<answer>cat</answer>", "cat"),
    ("other class in the thoughts", "<think>a dog? no</think><answer>cat</answer>", "cat"),
    ("angle brackets in the name", "<answer>a < b > c</answer>", "A < B > C"),
    ("markup in the name", "<answer><script>x</script></answer>", "<script>x</script>"),
    ("other scripts", "<answer>牡丹</answer>", "牡丹"),
]


@pytest.mark.parametrize("text, target", [c[1:] for c in RIGHT], ids=[c[0] for c in RIGHT])
def test_the_right_name_is_paid_however_it_is_spelt(text, target):
    assert strict(text, target) == 1.0
    assert classification_reward(text, target).parts["correct"] == 1.0


@pytest.mark.parametrize(
    "text, answer",
    [
        ("<answer> cat </answer>", "cat"),
        ("<answer>[]</answer>", "[]"),
        ("<answer>\n[1, 2]\n</answer>", "[1, 2]"),
        ("<answer>a\n b</answer>", "a\n b"),
        ("<answer> \xa0\n</answer>", None),
        ("<answer>cat</answer", None),
        ("<answer></think>cat</answer>", None),
        ("<answer>cat<think>s</answer>", None),
        ("<answer><think>a furry cat</think></answer>", None),
    ],
)
def test_the_span_is_returned_as_written_but_for_its_outer_white_space(text, answer):
    assert parse_answer(text) == answer


# ----------------------------------------------------------------------------------------- format

WELL_FORMED = [
    "<think>six petals</think><answer>cat</answer>",
    "<think>six petals</think>\n<answer>cat</answer>\n",
    "  \n<think>\n6\n</think> \t <answer>\ncat\n</answer>  ",  # a leading space: peers pay 0
    "<think>a < b, <b>bold</b>, think</think><answer>3</answer>",
    "<think>花</think><answer>牡丹</answer>",
]
MALFORMED = [
    ("I38 empty", ""),
    ("I41 empty answer (V-RFT, R1-V, VLM-R1 1.0)", "<think>a</think><answer></answer>"),
    ("empty thoughts (V-RFT, R1-V, VLM-R1 1.0)", "<think></think><answer>cat</answer>"),
    ("dots for thoughts (peers 1.0)", "<think>...</think><answer>cat</answer>"),
    ("dashes for thoughts (peers 1.0)", "<think>\n-\n-\n-\n</think><answer>cat</answer>"),
    ("dots for an answer (peers 1.0)", "<think>a</think><answer>…</answer>"),
    ("zero-width thoughts (peers 1.0)", "<think>\u200b\u200d</think><answer>cat</answer>"),
    ("no-break space as thoughts (peers 1.0)", "<think>\xa0</think><answer>cat</answer>"),
    ("Hangul filler as thoughts (peers 1.0)", "<think>\u3164</think><answer>cat</answer>"),
    (
        "two answers (peers 1.0)",
        "<think>a</think><answer>cat</answer><answer>dog</answer>",
    ),
    ("nested thoughts (peers 1.0)", "<think><think>a</think></think><answer>cat</answer>"),
    ("thoughts opened twice (peers 1.0)", "<think><think>a</think><answer>cat</answer>"),
    (
        "think, answer, think, answer (peers 1.0)",
        "<think>a</think><answer>cat</answer><think>b</think><answer>dog</answer>",
    ),
    (
        "answer within the thoughts too (peers 1.0)",
        "<think><answer>dog</answer></think><answer>cat</answer>",
    ),
    ("thoughts within the answer (peers 1.0)", "<think>a</think><answer><think>b</answer>"),
    ("I45 answer only in the thoughts", "<think>a <answer>cat</answer></think>"),
    ("I44 unclosed thoughts", "<think>a<answer>cat</answer>"),
    ("I44 unclosed answer", "<think>a</think><answer>cat"),
    ("I44 closed twice (peers 1.0)", "<think>a</think><answer>cat</answer></answer>"),
    ("text before (VLM-R1 REC 1.0)", "Sure! <think>a</think><answer>cat</answer>"),
    ("text between", "<think>a</think> so <answer>cat</answer>"),
    ("text after (VLM-R1 REC 1.0)", "<think>a</think><answer>cat</answer> indeed"),
    ("zero-width text between", "<think>a</think>\u200b<answer>cat</answer>"),
    ("answer first", "<answer>cat</answer><think>a</think>"),
    ("tags in capitals", "<THINK>a</THINK><ANSWER>cat</ANSWER>"),
    ("thoughts alone", "<think>a</think>"),
    ("bare text", "cat"),
]


@pytest.mark.parametrize("text", WELL_FORMED)
def test_one_thought_then_one_answer_is_well_formed(text):
    assert format_reward(text) == format_reward(text, "think") == 1.0
    assert format_reward(text, "direct") == 0.0


@pytest.mark.parametrize("text", [c[1] for c in MALFORMED], ids=[c[0] for c in MALFORMED])
def test_form_that_only_looks_right_is_malformed_in_both_modes(text):
    assert format_reward(text, "think") == format_reward(text, "direct") == 0.0


def test_direct_mode_wants_the_answer_alone():
    for text in ("<answer>cat</answer>", " \n<answer>\ncat</answer>\n"):
        assert format_reward(text, "direct") == 1.0
        assert format_reward(text, "think") == 0.0
    assert format_reward("<answer>cat</answer>.", "direct") == 0.0
    assert format_reward("<answer>-</answer>", "direct") == 0.0


def test_an_unknown_mode_raises():
    with pytest.raises(ValueError, match="'cot' is not one of think, direct"):
        format_reward("", "cot")


# ------------------------------------------------------------------------------------------ names


def test_names_that_differ_stay_different():
    names = [
        *("737-800", "737 800", "737", "A320", "A 320", "cat", "cathedral", "rose", "dog rose"),
        *(
            "pâté",
            "pate",
            "1 Series",
            "1",
            "c",
            "c++",
            "ro\u200bse",
            "ro\x00se",
            "саt",
            "0-1",
            "01",
        ),
    ]
    assert len({normalise_name(name) for name in names}) == len(names)


def test_normalising_every_single_character_twice_changes_nothing():
    for code in range(0, 0x30000):
        once = normalise_name(f"x{chr(code)}x")
        assert normalise_name(once) == once


@ANY_PACE
@given(st.text())
def test_normalising_twice_changes_nothing(text):
    assert normalise_name(normalise_name(text)) == normalise_name(text)


@pytest.mark.parametrize("target", ["", "  \n", "_", "...", '"*"', "x" * (MAX_NAME_CHARS + 1)])
def test_an_empty_or_endless_target_raises_whatever_the_text(target):
    for text in ("", "<answer>cat</answer>", "cat"):
        with pytest.raises(ValueError, match="target"):
            classification_reward(text, target)
        with pytest.raises(ValueError, match="target"):
            loose_name_correct(text, target)


def test_a_name_beyond_the_cap_is_wrong_and_one_at_the_cap_is_read():
    name = "x" * MAX_NAME_CHARS
    assert name_correct(name, name) == 1.0
    assert name_correct(name + ".", name) == 0.0
    assert name_correct(None, name) == 0.0


# ----------------------------------------------------------------------------------- loose metric


def peers_loose_rule(text: str, target: str) -> float:
    """The published rule written with its regular expression: the oracle for our linear copy."""
    block = re.search(r"<answer>(.*?)</answer>", text)
    answer = block.group(1) if block else text
    answer, target = (s.strip().replace(" ", "").replace("_", "").lower() for s in (answer, target))
    return float(target in answer or answer in target)


PIECES = st.sampled_from(
    [
        *rewards.TAGS,
        "<answer>cat</answer>",
        "cat",
        "dog",
        "c",
        " ",
        "\n",
        "_",
        "<",
        "answer>",
        ".",
        "é",
    ]
)
TAGGED = st.lists(PIECES, max_size=12).map("".join)
ANY_TEXT = TAGGED | st.text(st.characters(), max_size=60)


@ANY_PACE
@given(TAGGED)
def test_the_loose_metric_is_the_published_rule(text):
    assert loose_name_correct(text, "Cat") == peers_loose_rule(text, "Cat")


# ----------------------------------------------------------------------------------------- totals


def test_the_honest_answer_earns_everything():
    honest = classification_reward(f"{THOUGHT}<answer>cat</answer>", "cat")
    assert honest.total == BEST == 1.5 and honest.parts == {"correct": 1.0, "format": 1.0}
    direct = classification_reward("<answer>cat</answer>", "cat", "direct")
    assert direct == honest
    with pytest.raises(dataclasses.FrozenInstanceError):
        honest.total = 2.0


def test_parts_are_independent_and_weighed():
    weights = {"correct": 2.0, "format": 0.25}
    wrong = classification_reward(f"{THOUGHT}<answer>dog</answer>", "cat", weights=weights)
    sloppy = classification_reward("so: <answer>cat</answer>", "cat", weights=weights)
    assert (wrong.total, wrong.parts) == (0.25, {"correct": 0.0, "format": 1.0})
    assert (sloppy.total, sloppy.parts) == (2.0, {"correct": 1.0, "format": 0.0})
    assert weighted({"a": 0.5, "b": 1.0}, {"b": 1.0, "a": 4.0}).total == 3.0


@pytest.mark.parametrize(
    "weights",
    [
        {"correct": -1.0, "format": 2.0},
        {"correct": math.nan, "format": 0.5},
        {"correct": math.inf, "format": 0.5},
        {"correct": 1e308, "format": 1e308},  # finite each, infinite together
        {"correct": 1.0},
        {"correct": 1.0, "format": 0.5, "iou": 1.0},
        {},
    ],
    ids=str,
)
def test_weights_that_do_not_fit_raise(weights):
    with pytest.raises(ValueError, match="weights"):
        classification_reward("<answer>cat</answer>", "cat", weights=weights)


@ANY_PACE
@given(ANY_TEXT, st.sampled_from(["cat", "c", "dog", "737-800"]), st.sampled_from([*FORMATS]))
def test_any_text_scores_in_range_twice_the_same_and_never_above_the_honest_answer(
    text, target, mode
):
    reward = classification_reward(text, target, mode)
    assert reward == classification_reward(text, target, mode)
    assert 0.0 <= reward.total <= BEST and set(reward.parts.values()) <= {0.0, 1.0}
    assert loose_name_correct(text, target) in (0.0, 1.0)
    if reward.parts["correct"]:  # then the name stands, whole and alone, in the only answer block
        (block,) = re.findall(r"<answer>([^<]*)</answer>", text)
        assert text.count("<answer>") == text.count("</answer>") == 1
        assert normalise_name(block) == target


@ANY_PACE
@given(st.text(st.characters(), max_size=30), st.sampled_from(["cat", "737-800"]))
def test_padding_a_block_with_other_blocks_never_gains(noise, target):
    honest = f"<think>a</think><answer>{target}</answer>"
    hedge = f"<answer>{noise}</answer>"
    for text in (honest + hedge, hedge + honest, f"<think>{hedge}</think>" + honest):
        assert classification_reward(text, target).total == 0.0


# ---------------------------------------------------------------------------------- time and size


def test_a_completion_beyond_the_cap_is_worth_zero_and_one_at_the_cap_is_read():
    block = "<answer>cat</answer>"
    room = MAX_COMPLETION_CHARS - len(block)
    at_cap = "x" * room + block
    assert strict(at_cap, "cat") == 1.0
    assert strict("x" + at_cap, "cat") == 0.0
    spaces = " " * room
    assert classification_reward(spaces + block, "cat", "direct").total == BEST
    assert classification_reward(spaces + block + " ", "cat", "direct").total == 0.0


@pytest.mark.parametrize(
    "make",
    [
        lambda n: "<think>" * (n // 7),
        lambda n: "<answer>" * (n // 8),
        lambda n: "</answer>" * (n // 9),
        lambda n: "<answer></answer>" * (n // 17),
        lambda n: "<think></think>" * (n // 15) + "<answer>cat</answer>",
        lambda n: "<answer>\n" * (n // 9),
        lambda n: "<answer" * (n // 7),
        lambda n: "<" * n,
        lambda n: "\n" * n,
        lambda n: "<think>" + "\u200b" * (n - 50) + "</think><answer>cat</answer>",
        lambda n: "<answer>a" + "\u0316\u0301" * (n // 2 - 20) + "</answer>",  # NFKC is quadratic
        lambda n: "<answer>" + "\ufdfa" * (n - 50) + "</answer>",  # NFKC makes 18 characters of it
    ],
)
def test_a_hostile_text_of_100_kb_takes_under_50_ms(make):
    text = make(MAX_COMPLETION_CHARS - 20)
    assert 0.9 * MAX_COMPLETION_CHARS < len(text) <= MAX_COMPLETION_CHARS
    seconds = []
    for _ in range(3):  # the best of three: a busy machine is not a slow function
        start = time.perf_counter()
        classification_reward(text, "cat")
        loose_name_correct(text, "cat")
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.050


def test_rewards_import_the_standard_library_only_and_evaluate_nothing():
    tree = ast.parse(Path(rewards.__file__).read_text(encoding="utf-8"))
    modules, calls = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add((node.module or ".").split(".")[0])
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            calls.add(node.func.id)
    assert modules == {"collections", "dataclasses", "math", "types", "unicodedata"}
    assert not calls & {"eval", "exec", "compile", "__import__", "open"}
