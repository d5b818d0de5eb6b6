"""Which pairs are shown is a pure function of the seed; every tenth repeats one, sides swapped."""

import json
from collections import Counter
from itertools import groupby

import pytest

from rating.pairs import APART, Completion, pairs, read_completions, singles
from runtime.errors import InputError
from tests.rating.helpers import completions


def test_pairs_differ_in_text_and_share_question_and_step():
    texts = {(c.id, c.step): set() for c in completions()}
    for c in completions():
        texts[c.id, c.step].add(c.text)
    items = pairs(completions(), seed=0, count=1000)
    originals = [item for item in items if not item.is_repeat]
    assert len(originals) == 24 * 6  # all pairs of 4 different texts
    assert len({(i.id, i.step, frozenset(i.texts)) for i in originals}) == len(originals)
    for item in items:
        left, right = item.texts
        assert left != right and {left, right} <= texts[item.id, item.step]
    first_round = {(item.id, item.step) for item in originals[:24]}
    assert first_round == texts.keys()  # every question of every step once before any twice


def test_the_choice_is_a_function_of_the_seed_and_of_what_was_sampled():
    items = pairs(completions(), seed=3, count=60)
    assert pairs(completions()[::-1], seed=3, count=60) == items  # in whatever order
    assert pairs(completions(), seed=3, count=40) == items[:40]
    assert pairs(completions(), seed=4, count=60) != items
    scores = singles(completions(), seed=3, count=30)
    assert singles(completions()[::-1], seed=3, count=30) == scores
    assert singles(completions(), seed=4, count=30) != scores
    # Written down: another machine or version of numpy chooses the same.
    numbers = [int(text.split(".")[1][0]) for text in items[0].texts]
    assert (items[0].id, items[0].step, numbers) == ("q5", 1, [3, 0])


def test_a_run_that_goes_on_adds_pairs_and_changes_none():
    before = pairs(completions(steps=2), seed=0, count=20)
    after = pairs(completions(steps=3), seed=0, count=1000)
    kept = [item for item in before if not item.is_repeat]
    assert {item.key for item in kept} <= {item.key for item in after}


def test_every_tenth_pair_repeats_an_earlier_one_with_its_sides_swapped():
    items = pairs(completions(), seed=0, count=100)
    assert [n for n, item in enumerate(items, 1) if item.is_repeat] == list(range(10, 101, 10))
    repeated = [item for item in items if item.is_repeat]
    for item in repeated:
        keys = [other.key for other in items[: items.index(item) - APART + 1]]
        assert (item.id, item.step, item.texts[::-1]) in keys
    assert len({item.key for item in repeated}) == len(repeated)


def test_each_side_is_shown_first_as_often_as_the_other():
    items = [i for i in pairs(completions(60), seed=0, count=700) if not i.is_repeat]
    is_longer_left = sum(len(item.texts[0]) > len(item.texts[1]) for item in items)
    assert abs(is_longer_left / len(items) - 0.5) < 0.08  # four standard errors


def test_scores_come_question_by_question_and_each_text_once():
    more = [Completion("alone", 1, "the only text")]
    items = singles(completions(steps=3, texts=6) + more, seed=0, count=1000)
    assert len({(item.id, item.texts) for item in items}) == len(items) == 12 * 6
    lengths = [len(list(group)) for _, group in groupby(items, lambda item: item.id)]
    assert Counter(lengths) == {4: 12, 2: 12} and {item.step for item in items} == {1}


def test_nothing_to_compare_is_an_empty_list():
    same = [Completion("q", 1, "a"), Completion("q", 1, "a"), Completion("q", 2, "b")]
    assert pairs(same, seed=0, count=9) == []
    assert len(singles(same, seed=0, count=9)) == 2


def test_completions_of_a_run_that_is_being_written(tmp_path):
    path = tmp_path / "completions.jsonl"
    with pytest.raises(InputError, match="completions.jsonl: has no completions yet"):
        read_completions(tmp_path)
    rows = [{"id": "a", "step": 1, "completion": f"t{n}", "reward": 1.0} for n in range(2)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"id": "torn')
    assert read_completions(tmp_path) == [Completion("a", 1, "t0"), Completion("a", 1, "t1")]
    for damage in ({"id": 3}, {"step": True}, {"step": -1}, {"completion": None}):
        path.write_text("".join(json.dumps(row) + "\n" for row in [rows[0], rows[1] | damage]))
        with pytest.raises(InputError, match="completions.jsonl: row 2 is no completion"):
            read_completions(tmp_path)
