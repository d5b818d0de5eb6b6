"""What is counted before any question is asked: labels, boxes, constant answers, like pictures.

Run: pytest tests/checks/test_survey.py
"""

import json
from collections import Counter

import pytest
from PIL import Image

from answers import parse_boxes
from checks.survey import alike, best_constant, boxes_asked, survey
from config import BASE_MODEL, TaskConfig
from data.examples import Example
from model.processor import Processor
from tasks import load_task


@pytest.fixture(scope="module")
def processor():
    return Processor(BASE_MODEL)


def test_boxes_are_counted_by_what_is_asked_for(processor):
    task = load_task(TaskConfig(task="det", shots=3, held_out_size=4), processor)
    labels, sizes = boxes_asked(task)
    counts = [len((parse_boxes(e.target, e.canvas) or ([], 0))[0]) for e in task.train]
    assert sizes == dict(Counter(counts)) and labels.total() == sum(counts)
    assert 0 in sizes, "some questions ask for what is not there"
    assert all(label.startswith("Find every ") and "<answer>" not in label for label in labels)
    assert len(labels) > 3


def test_labels_of_boxes_go_before_the_question(processor):
    task = load_task(TaskConfig(task="det", shots=2, held_out_size=4), processor)
    boxes = {"cat": [1, 2, 30, 40], "dog": [5, 6, 70, 80]}
    target = json.dumps([{"bbox_2d": box, "label": label} for label, box in boxes.items()])
    task.train[:] = [Example("a", (Image.new("RGB", (8, 8)),), "What is there?", target)]
    assert boxes_asked(task) == (Counter(cat=1, dog=1), {2: 1})


def test_the_best_constant_answer_is_scored_as_the_task_does(processor):
    task = load_task(TaskConfig(task="count", train_size=40, held_out_size=4), processor)
    counts = Counter(e.target for e in task.train)
    assert best_constant(task, list(counts)) == counts.most_common(1)[0][1] / 40
    ground = load_task(TaskConfig(task="ground", train_size=40, held_out_size=4), processor)
    middle = best_constant(ground, ["[250, 250, 750, 750]"])
    assert 0 < middle < 0.5, "no target is that box, but some overlap it by half"


def test_the_survey_of_a_task(processor):
    task = load_task(TaskConfig(task="count", train_size=30, held_out_size=6), processor)
    found = survey(task, processor, task.train[:5])
    assert found.sizes == {"train": 30, "held_out": 6, "ood": 6, "val": 6}
    assert (
        found.boxes is None and found.labels == Counter(e.target for e in task.train).most_common()
    )
    assert found.top_share == found.labels[0][1] / 30
    assert found.prompt[0] <= found.prompt[1] <= found.prompt[2] < 200 and found.target[1] == 1
    assert found.compared == (30, 18) and not found.same


def test_pictures_of_every_other_split_are_compared_with_those_of_training():
    pictures = [Image.effect_noise((64, 64), 80).convert("RGB") for _ in range(3)]
    train = [Example(f"t{k}", (p,), "?", "a") for k, p in enumerate(pictures[:2])]
    others = [Example(f"o{k}", (p,), "?", "a") for k, p in enumerate([pictures[0], pictures[2]])]
    assert alike(train, others) == ([("t0", "o0")], [])
