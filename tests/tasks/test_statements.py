"""`Task.statements`: every task of the garden can check thoughts, and no task over other data.

Run: pytest tests/tasks/test_statements.py
"""

import json
import pickle
from dataclasses import replace
from functools import cache

import pytest
from PIL import Image

from config import TaskConfig
from data.examples import Example, completion_text
from reporting.provenance import data_hash
from tasks import TASKS
from tasks.task import Task
from tests.helpers import folder_of_classes

CHECKED = [name for name in TASKS if name not in ("zoom", "lookup", "walk")]


@cache
def load(name: str, data="garden", **flags) -> Task:
    sizes = dict(train_size=6, held_out_size=6, shots=1, held_out_per_class=1, coords="norm1000")
    return TASKS[name].load(TaskConfig(data=str(data), **sizes | flags), None)


def exact(example: Example, mode: str) -> str:
    return completion_text(example.target, mode, example.reasoning)


@pytest.mark.parametrize("name", CHECKED)
def test_the_exact_thoughts_of_every_task_are_true_where_they_stand(name):
    task = load(name)
    splits = {"train": task.train} | task.splits
    count = 0
    for example in (e for split in splits.values() for e in split):
        for mode in ("think", "steps"):
            text = exact(example, mode)
            statements = task.statements(text, example)
            assert statements and all(s.is_true for s in statements), (text, example.facts)
            assert all(text[s.start : s.end] == s.text for s in statements)
            assert text.index("<answer>") >= statements[-1].end
        assert task.statements(exact(example, "direct"), example) == []
        count += 1
    assert count >= 18


def test_what_is_true_of_one_picture_is_not_true_of_the_others():
    for name in ("count", "cls", "measure", "change", "order"):
        task, true = load(name, train_size=20), []
        for shown, other in zip(task.train, task.train[1:], strict=False):
            found = task.statements(exact(other, "think"), shown)
            if other.reasoning.thought != shown.reasoning.thought:
                true.append(all(s.is_true for s in found))
        assert sum(true) <= 0.1 * len(true), "another flower may be as wide by chance"


def test_boxes_in_the_format_of_a_model_and_wrong_labels_change_no_fact():
    for name, flags in {"ground": {"coords": "abs"}, "cls": {"shuffle_labels": True}}.items():
        plain, task = load(name), load(name, **flags)
        for a, b in zip(plain.train, task.train, strict=True):
            assert a.target != b.target and a.facts == b.facts is not None


def test_facts_are_in_no_fingerprint_and_go_to_other_processes():
    for name in CHECKED:
        task = load(name)
        bare = [replace(example, facts=None) for example in task.train]
        assert data_hash(task.train) == data_hash(bare)
        assert repr(bare[0]) == repr(task.train[0])
        for example in task.train[:2]:
            again = pickle.loads(pickle.dumps(example))
            assert again.facts == example.facts
            text = exact(example, "think")
            assert task.statements(text, again) == task.statements(text, example)


def test_data_from_outside_have_no_facts(tmp_path):
    for k in range(4):
        Image.new("RGB", (64, 48), (6 * k, 30, 90)).save(tmp_path / f"{k}.png")
    rows = [
        {"image": f"{k}.png", "problem": "How many flowers?", "solution": "3"} for k in range(4)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tasks = [load("count", tmp_path / "rows.jsonl", train_size=2)]
    tasks.append(load("cls", folder_of_classes(tmp_path / "classes")))
    for task in tasks:
        assert task.statements is None and {e.facts for e in task.train} == {None}
