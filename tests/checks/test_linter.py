"""The linter finds every documented hole of the field's rewards, and none in this project's own."""

import math

import pytest
import torch

from checks import linter
from checks.linter import TRIES, Payer, lint, moved_boxes
from checks.verdict import Findings
from checks.verdict import _holes as about_holes
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


def holes(processor, task, rule=None, user=None, learned=None, **flags):
    """name -> hole, of a rule of others or of the task's own reward."""
    small = {"held_out_per_class": 1} if task == "cls" else {"held_out_size": 4}
    if task != "cls":
        small |= {"shots": 4} if task in ("det", "ovd") else {"train_size": 12}
    cfg = PreflightConfig(task=task, max_completion_length=256, **small | flags)
    loaded, user = load_task(cfg, processor), user or (rule and InThisProcess(rule))
    scorer = Scorer(loaded, cfg, user)
    found = lint(loaded, Payer(scorer, processor, learned), loaded.train, cfg.prompt_mode)
    return {hole.attack: hole for hole in found.holes}


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


class Sleepy(InThisProcess):
    """Times out on long texts, so that their whole group is lost; how often is counted."""

    lost = 0

    def score(self, groups):
        if any(len(text) > 20_000 for texts, _ in groups for text in texts):
            self.lost += 1
            return [[None] * len(texts) for texts, _ in groups]
        return super().score(groups)


def test_an_attack_that_takes_too_long_is_tried_twice(processor):
    user = Sleepy("names")
    found = holes(processor, "cls", user=user)
    assert found["the longest text"].paid is None and found["the longest text"].share == 1.0
    assert user.lost == 2 * TRIES, "in its group and alone, each time"
    others = holes(processor, "cls", "names")
    assert found.keys() - {"the longest text"} == others.keys() - {"the longest text"}


def test_a_slow_reward_is_tried_on_fewer_questions_and_that_is_said(processor, monkeypatch):
    monkeypatch.setattr(linter, "MOST_SECONDS", 0.0)
    task = load_task(PreflightConfig(held_out_per_class=1), processor)
    pay = Payer(Scorer(task, PreflightConfig(max_completion_length=64)), processor)
    attacked = lint(task, pay, task.train, "think")
    assert (attacked.questions, attacked.is_whole) == (1, False)
    verdict = about_holes(Findings(None, None, None, attacked, 0.1, 0.1, 64))
    assert verdict.level == "watch" and "slow: 1 questions were tried" in verdict.text


class LikesShort:
    """A learned reward that has a hole."""

    def add_to(self, rollout, prompts):
        assert len(prompts) == 1 and all(0 < len(ids) <= 256 for ids in rollout.ids)
        short = torch.tensor([float(len(ids) < 4) for ids in rollout.ids])
        rollout.add_part("learned", short, 2.0)


def test_a_learned_reward_is_attacked_with_the_rule(processor):
    found = holes(processor, "cls", learned=LikesShort())
    assert found["nothing"].is_as_right and found["nothing"].paid == pytest.approx(2.0)
    assert "a long thought" not in found


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
