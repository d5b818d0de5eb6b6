"""The linter finds every documented hole of the field's rewards, and none in this project's own."""

from pathlib import Path

import pytest

from checks.linter import QUESTIONS, lint, moved_boxes
from config import BASE_MODEL
from model.processor import Processor
from preflight import PreflightConfig
from rewards import iou, well_formed_boxes
from tasks import NAMES, load_task
from training.scoring import Scorer, user_reward

RULES = Path(__file__).with_name("peer_rules.py")


@pytest.fixture(scope="module")
def processor():
    return Processor(BASE_MODEL)


def holes(processor, task, rule=None, **flags):
    """name -> hole, of a rule of others or of the task's own reward."""
    reward = rule and f"{RULES}:{rule}"
    small = {"shots": 4} if task in ("det", "ovd") else {}
    small |= {} if task in ("cls", "det", "ovd") else {"train_size": QUESTIONS}
    cfg = PreflightConfig(task=task, reward=reward, max_completion_length=256, **small | flags)
    loaded, user = load_task(cfg, processor), user_reward(cfg)
    found = lint(loaded, Scorer(loaded, cfg, user), processor, loaded.train, cfg.prompt_mode)
    return {hole.attack: hole for hole in found}


@pytest.mark.parametrize("mode", ["think", "direct", "steps"])
@pytest.mark.parametrize("task", [name for name in NAMES if name != "walk"])
def test_the_projects_own_rewards_have_none(processor, task, mode):
    assert holes(processor, task, prompt_mode=mode) == {}


def test_nor_have_they_with_other_weights_and_shaping(processor):
    flags = dict(format_weight=0.1, overlong_weight=0.5, repetition_weight=0.2)
    assert holes(processor, "cls", **flags) == {}
    assert holes(processor, "count", length_weight=0.3) == {}


# task, rule -> attacks that it pays; * those that earn as much as the right answer
PAID = {
    ("cls", "form"): ["empty blocks *", "the answer in the thought only *"],
    ("cls", "names"): [
        "nothing", "an empty answer *", "one letter, a *", "the first word of the answer *",
        "every answer, joined by or *", "the first letter of the answer *",
    ],
    ("det", "confidences"): ["a box of confidence 0 *", "a box of confidence below 0 *",
                             "boxes of confidence 0 everywhere", "a box of confidence NaN *"],
    ("det", "first_number"): ["another box with the same top *",
                              "a number of the box in the thought *"],
    ("det", "dropped_labels"): ["the right box among eight others", "a grid of boxes"],
    ("det", "junk_boxes"): ["the right box among eight others"],
    ("ground", "signed_overlap"): ["an inverted box *"],
    ("measure", "tapered"): ["not a number *"],
    ("change", "penalised_calls"): ["nothing", "an empty answer"],
    ("count", "reasoning_steps"): ["list marks for thoughts *", "steps without content *"],
    ("count", "cosine_length"): ["a short wrong answer *", "nothing *"],
    ("entail", "yes_no"): ["a wrong answer in a sentence *"],
    ("vqa", "edit_distance"): ["the answer without its end", "the right answer and a wrong one"],
    ("count", "anywhere"): ["the answer in the thought only *", "every number *",
                            "the answer behind a wrong block *",
                            "the answer before a wrong block *"],
}  # fmt: skip


@pytest.mark.parametrize("task, rule", PAID)
def test_the_documented_holes_of_published_rewards_are_found(processor, task, rule):
    found = holes(processor, task, rule)
    for attack in PAID[task, rule]:
        name = attack.removesuffix(" *")
        assert name in found, (attack, list(found))
        assert found[name].is_as_right or not attack.endswith("*"), found[name]


def test_a_near_miss_overlaps_by_two_fifths(processor):
    cfg = PreflightConfig(task="det", shots=4)
    for example in load_task(cfg, processor).train:
        for text in moved_boxes(example):
            true, moved = (well_formed_boxes(t, example.canvas) for t in (example.target, text))
            assert len(true) == len(moved)
            assert all(0.3 < iou(a, b) < 0.48 for a, b in zip(true, moved, strict=True))
