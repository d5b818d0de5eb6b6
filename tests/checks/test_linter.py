"""The linter finds every documented hole of the field's rewards, and none in this project's own."""

import math

import pytest

from checks.linter import lint, moved_boxes
from config import BASE_MODEL
from model.processor import Processor
from preflight import PreflightConfig
from rewards import Reward, iou, well_formed_boxes
from tasks import NAMES, load_task
from tests.checks import peer_rules
from training.scoring import Scorer, user_reward


@pytest.fixture(scope="module")
def processor():
    return Processor(BASE_MODEL)


class InThisProcess:
    """A user's reward without the processes that it otherwise runs in."""

    def __init__(self, rule):
        self.pay = getattr(peer_rules, rule)

    def paid(self, texts, example):
        """An exception loses the whole group, as there."""
        try:
            return self.pay(texts, example)
        except AttributeError:
            return [math.nan] * len(texts)

    def score(self, groups):
        """As `training.scoring.UserReward.score`."""
        values = [self.paid(texts, example) for texts, example in groups]
        return [[Reward(v, {}) if math.isfinite(v) else None for v in row] for row in values]


def holes(processor, task, rule=None, user=None, **flags):
    """name -> hole, of a rule of others or of the task's own reward."""
    small = {"held_out_per_class": 1} if task == "cls" else {"held_out_size": 4}
    if task != "cls":
        small |= {"shots": 4} if task in ("det", "ovd") else {"train_size": 12}
    cfg = PreflightConfig(task=task, max_completion_length=256, **small | flags)
    loaded, user = load_task(cfg, processor), user or (rule and InThisProcess(rule))
    scorer = Scorer(loaded, cfg, user)
    found, _ = lint(loaded, scorer, processor, loaded.train, cfg.prompt_mode)
    return {hole.attack: hole for hole in found}


OWN = [(task, "think") for task in NAMES if task != "walk"]  # its answer is always the same
OWN += [("cls", "direct"), ("cls", "steps"), ("det", "steps")]


@pytest.mark.parametrize("task, mode", OWN)
def test_the_projects_own_rewards_have_none(processor, task, mode):
    assert holes(processor, task, prompt_mode=mode) == {}


def test_nor_have_they_with_other_weights_and_shaping(processor):
    flags = dict(format_weight=0.1, overlong_weight=0.5, repetition_weight=0.2)
    assert holes(processor, "cls", **flags) == {}
    assert holes(processor, "count", length_weight=0.3) == {}


# task, rule -> attacks that it pays; * like the right answer; ! on which it fails
PAID = {
    ("cls", "form"): ["empty blocks *", "the answer in the thought only *"],
    ("cls", "names"): [
        "an empty answer *", "one letter, a *", "the first word of the answer *",
        "every answer, joined by or *", "the first letter of the answer *",
    ],
    ("det", "confidences"): ["a box of confidence 0 *", "a box of confidence below 0 *",
                             "boxes of confidence 0 everywhere", "a box of confidence NaN !"],
    ("det", "first_number"): ["another box with the same top *",
                              "a number of the box in the thought *"],
    ("det", "dropped_labels"): ["the right box among eight others", "a grid of boxes"],
    ("det", "junk_boxes"): ["the right box among eight others"],
    ("ground", "signed_overlap"): ["an inverted box *"],
    ("measure", "tapered"): ["not a number !"],
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
        name = attack.rstrip(" *!")
        assert name in found, (attack, list(found))
        assert found[name].is_as_right or not attack.endswith("*"), found[name]
        assert (found[name].paid is None) == attack.endswith("!"), found[name]


def test_an_attack_that_crashes_a_reward_hides_no_other(processor):
    found = holes(processor, "cls", "crashing")
    assert found["nothing"].paid is None and not found["nothing"].is_as_right
    assert found["the answer in the thought only"].is_as_right


def test_a_reward_in_processes_of_its_own_is_attacked_likewise(processor):
    user = user_reward(PreflightConfig(reward=f"{peer_rules.__file__}:names"))
    found = holes(processor, "cls", user=user)
    assert found.keys() == holes(processor, "cls", "names").keys()


def test_a_near_miss_overlaps_by_two_fifths(processor):
    cfg = PreflightConfig(task="det", shots=4, held_out_size=4)
    for example in load_task(cfg, processor).train:
        for text in moved_boxes(example):
            true, moved = (well_formed_boxes(t, example.canvas) for t in (example.target, text))
            assert len(true) == len(moved)
            assert all(0.3 < iou(a, b) < 0.48 for a, b in zip(true, moved, strict=True))
