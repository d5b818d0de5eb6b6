"""ratings.jsonl is read back: what stands, what is refused, and how often a rater agrees."""

import json
import math

import pytest

from data.ratings import Rating, agreement, read_acts, read_ratings
from runtime.errors import InputError


def pair(texts="ab", choice="left", **more) -> dict:
    row = {"kind": "pair", "id": "q", "step": 3, "texts": list(texts), "choice": choice}
    return row | {"rater": "simulated", "seconds": 1.0} | more


def score(text, value, **more) -> dict:
    row = {"kind": "score", "id": "q", "step": 3, "text": text, "score": value, "of": 5}
    return row | {"rater": "simulated"} | more


UNDO = {"kind": "undo", "rater": "simulated"}


@pytest.fixture
def write(tmp_path):
    path = tmp_path / "ratings.jsonl"

    def write(*rows, end: str = ""):
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("".join(line + "\n" for line in lines) + end, errors="surrogateescape")
        return path

    return write


def test_labels_of_pairs(write):
    path = write(pair(), pair(choice="right", step=4), pair(choice="tie"), pair(choice="skip"))
    first = Rating("q", 3, ("a", "b"), 1.0, "simulated")
    assert read_ratings(path) == [
        first,
        Rating("q", 4, ("a", "b"), 0.0, "simulated"),
        Rating("q", 3, ("a", "b"), 0.5, "simulated"),
    ]


def test_an_undo_takes_back_the_last_act_that_stands(write):
    path = write(pair("ab"), pair("cd"), pair("ef"), UNDO, UNDO, pair("gh"))
    assert [rating.texts for rating in read_ratings(path)] == [("a", "b"), ("g", "h")]
    with pytest.raises(InputError, match=r"ratings.jsonl:3: takes back .*; repair or remove"):
        read_ratings(write(pair(), UNDO, UNDO))


def test_scores_become_pairs_of_unequal_scores_of_one_question(write):
    other = [score("d", 1, id="p"), score("e", 1, rater="another"), score("f", 1, of=3)]
    path = write(score("a", 2), score("b", 5, step=7), score("c", 2), score("s", None), *other)
    assert read_ratings(path) == [
        Rating("q", 7, ("a", "b"), 0.0, "simulated"),
        Rating("q", 7, ("b", "c"), 1.0, "simulated"),
    ]
    again = write(score("a", 1), score("b", 5), score("a", 5))  # of a text the last one
    assert read_ratings(again) == []


def test_a_line_that_was_never_finished_is_no_rating(write):
    for torn in ('{"kind": "pair", "id": "q', "\0\0\0\0", '{"kind": "pair", "x": "\udcff'):
        assert len(read_ratings(write(pair(), end=torn))) == 1
    assert len(read_ratings(write(pair(), "", end=json.dumps(pair("cd"))))) == 2  # without its \n
    assert read_ratings(write()) == []


@pytest.mark.parametrize(
    "row, what",
    [
        ("[1]", "is no object"),
        ("{", "Expecting"),
        ('{"kind": "pair", "kind": "undo"}', "'kind' occurs twice"),
        ('{"kind": "\udcff"}', "utf-8"),
        ("[" * 100_000, "recursion"),
        ({"kind": "like"}, "kind 'like' is not pair, score or undo"),
        ({}, "kind None"),
        (pair(choice="both"), "choice 'both' is not one of left, tie, right, skip"),
        (pair(choice=[]), "choice"),
        (pair("aa"), "two different texts"),
        (pair("abc"), "two different texts"),
        (pair(texts=[1, "a"]), "two different texts"),
        (pair() | {"texts": "ab"}, "two different texts"),
        (pair(step=True), "step True is no count"),
        (pair(step=-1), "step -1"),
        (pair(id=3), "id 3 is no text"),
        (pair(rater=None), "rater None is no text"),
        (score(None, 3), "text must be a text"),
        (score("a", 6), "score 6 is not in 1 .. 5"),
        (score("a", 2.5), "score 2.5"),
        (score("a", True), "score True"),
        (score("a", 1, of=10), "of 10 is not in 2 .. 9"),
        (score("a", 1, of="5"), "of '5'"),
    ],
)
def test_what_is_no_act_is_one_line_with_its_place_and_the_fix(write, row, what):
    with pytest.raises(InputError, match=r"ratings.jsonl:2: .*; repair or remove the line") as e:
        read_acts(write(pair(), row, pair()))
    assert what in str(e.value) and "\n" not in str(e.value)


def test_a_file_that_is_not_there(tmp_path):
    for path in (tmp_path / "ratings.jsonl", tmp_path):
        with pytest.raises(InputError, match="is missing or no regular file; rate.py writes it"):
            read_ratings(path)


def test_agreement_is_of_repeated_pairs_whatever_their_sides(write):
    one = [pair("ab"), pair("cd", "tie"), pair("ef", "right"), pair("gh")]
    assert math.isnan(agreement(read_ratings(write(*one)))[0])
    alike = [pair("ba", "right"), pair("dc", "tie"), pair("ef", "right")]
    assert agreement(read_ratings(write(*one, *alike))) == (1.0, 3)
    assert agreement(read_ratings(write(*one, *alike, pair("hg", "left")))) == (0.75, 4)
    assert agreement(read_ratings(write(*one, pair("dc", "left")))) == (0.0, 1)  # no more a tie
    elsewhere = [pair("ba", "left", step=9), pair("ba", rater="another"), pair("ba", id="p")]
    assert agreement(read_ratings(write(*one, *elsewhere)))[1] == 0
