"""The estimates against plain enumeration, the cost of a run, and the command as it is typed.

Run: pytest tests/checks/test_forecast.py
"""

import html
import itertools
import random
import re

import numpy as np
import pytest
import torch
from PIL import Image

import preflight
from checks.cost import cost_of, duration
from checks.forecast import Sampled, forecast, pass_at_k, share_of, teachable
from checks.frames import overlaps
from checks.linter import Attacked
from checks.verdict import Findings
from checks.verdict import _teachable as about_teaching
from data.box_formats import convert_box
from data.examples import Example
from data.frames import NAMES
from runtime.errors import InputError


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(k):
    right = torch.tensor([[1, 0, 0, 1, 0], [0] * 5, [1] * 5, [0, 0, 1, 0, 0]], dtype=torch.bool)
    expected = [np.mean([any(s) for s in itertools.combinations(row, k)]) for row in right.tolist()]
    assert pass_at_k(right, k) == pytest.approx(expected)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_teachable_is_the_share_of_groups_that_do_not_all_earn_the_same(size):
    rng = random.Random(size)
    rewards = torch.tensor([[rng.choice((0.0, 0.5, 1.5)) for _ in range(7)] for _ in range(6)])
    rewards[0], rewards[1] = 0.5, torch.tensor([1.5] * 6 + [0.0])
    expected = [
        np.mean([len(set(group)) > 1 for group in itertools.combinations(row, size)])
        for row in rewards.tolist()
    ]
    found = teachable(rewards, torch.ones_like(rewards, dtype=torch.bool), size)
    assert found == pytest.approx(expected) and found[0] == 0.0


def test_a_lost_reward_teaches_nothing_and_is_in_no_group():
    rewards = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    counted = torch.tensor([[True, True, False, False]])
    assert teachable(rewards, counted, 2) == pytest.approx([0.0])
    assert teachable(rewards, torch.zeros(1, 4, dtype=torch.bool), 2) == pytest.approx([0.0])


def test_reinforce_compares_with_the_whole_step_so_that_one_completion_teaches():
    rewards = torch.tensor([[0.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    right = rewards.bool()
    ones = torch.ones_like(right)
    sampled = Sampled([], [], ["a"] * 8, rewards, ones, right, ~ones, ones.long(), {})
    assert forecast(sampled, 1).teachable == 0.0, "a group of one has no spread"
    across = forecast(sampled, 1, across=True)
    assert (across.teachable, across.group, across.teachable_double) == (0.5, 4, None)
    verdict = about_teaching(Findings(across, None, None, Attacked([]), 0.1, 0.1, 64))
    assert "REINFORCE will find 50% of the questions teachable" in verdict.text
    assert "--num_generations" not in verdict.text


def test_an_interval_covers_the_mean_of_the_population():
    rng, inside = np.random.default_rng(0), 0
    for _ in range(100):
        share = share_of(rng.random(64) < 0.3)
        inside += share.low <= 0.3 <= share.high
    assert 88 <= inside <= 100
    assert str(share_of(np.zeros(9))) == "0.0% [0.0%, 29.9%]", "Wilson: nothing is certain"


ROWS = [
    {"step": 0, "seconds/eval": 4.0},
    *(
        {"step": k, "step_time": t, "seconds/rollout": t - 1, "seconds/update": 1.0,
         "memory_gb": 0.5 * k, "seconds/report": 0.5 if k == 1 else 0.0}
        for k, t in ((1, 9.0), (2, 3.0), (3, 2.0), (4, 4.0))
    ),
    {"step": 2, "seconds/eval": 2.0},
    {"step": 4, "seconds/eval": 3.0},
]  # fmt: skip


def test_the_cost_of_a_run_is_that_of_its_parts():
    cfg = preflight.PreflightConfig(max_steps=100, eval_steps=30, save_steps=40)
    cost = cost_of(ROWS, cfg, begin=5.0, save=0.25)
    assert cost.phases == {"rollout": 2.0, "update": 1.0} and cost.memory == 2.0
    assert (cost.evaluations, cost.evaluation, cost.first_and_last) == (3, 2.5, 3.5)
    assert cost.total == pytest.approx(5 + 100 * 3 + 3 * 2.5 + 2 * 3.5 + 3 * 0.25)
    assert [duration(s) for s in (48.4, 700, 9000)] == ["48 s", "12 min", "2.5 h"]


def boxes(answer, target="[100, 200, 300, 400]", **known):
    """The readings of an answer on a picture of 400 x 200, shown as 200 x 100."""
    e = Example("e", (Image.new("RGB", (400, 200)),), "?", target, **known)
    return overlaps([e], [f"<answer>{answer}</answer>"] * 2, lambda size: (200, 100))


@pytest.mark.parametrize(
    "answer, reading, fix",
    [
        ("[40, 40, 120, 80]", "pixels of the original picture", "--coords abs"),
        ("[20, 20, 60, 40]", "pixels of the resized picture", "--coords abs_resized"),
        ("[0.1, 0.2, 0.3, 0.4]", "fractions", "units"),
        ("[100, 200, 200, 200]", "x, y, width, height", "ask for corners"),
        ("[200, 100, 400, 300]", "y, x, y, x", "x1, y1, x2, y2"),
    ],
)
def test_boxes_in_another_frame_are_known_by_how_they_fit(answer, reading, fix):
    overlap = boxes(answer)
    assert overlap.other == pytest.approx(1.0) and overlap.asked < 0.4
    assert reading in overlap.reading and fix in overlap.fix


FRAMES = ("norm1000", "abs", "abs_resized", "norm100", "norm1")


@pytest.mark.parametrize(
    "read_as, really", [pair for pair in itertools.permutations(FRAMES, 2) if pair[0] != "norm1"]
)
@pytest.mark.parametrize("own", FRAMES[:3])
def test_data_that_were_read_in_another_frame_are_known_whatever_the_model_writes(
    own, read_as, really
):
    """Perfect answers; the target is what becomes of the data's numbers, read wrongly."""
    size, resized = (1600, 1200), (800, 600)
    region = (0.13, 0.26, 0.41, 0.57)
    numbers = convert_box(region, "norm1", really, size, resized)
    target = [*convert_box(numbers, read_as, own, size, resized)]
    answer = [*convert_box(region, "norm1", own, size, resized)]
    picture = Image.new("RGB", size)
    e = Example("e", (picture,), "?", str(target), box_format=own, read_as=read_as)
    overlap = overlaps([e], [f"<answer>{answer}</answer>"], lambda size: resized)
    assert overlap.other == pytest.approx(1.0) and overlap.asked < 0.35
    assert f"the numbers of the data are {NAMES[really]}" in overlap.reading
    assert f"--data_coords {really}" in overlap.fix


def test_what_cannot_be_told_apart_is_told_together():
    """Thousandths on both sides, but the data were read as pixels."""
    overlap = boxes("[250, 1000, 750, 2000]", "[625, 5000, 1875, 10000]", read_as="abs")
    assert "the numbers of the data are thousandths" in overlap.reading
    assert "the answers are pixels of the original" in overlap.reading
    assert overlap.fix == "--data_coords norm1000 or --coords abs"


def test_boxes_in_the_right_frame_fit_best_as_asked_and_no_box_is_none():
    overlap = boxes("[100, 200, 300, 400]")
    assert overlap.asked == 1.0 > overlap.other
    assert boxes("nothing") is None and boxes("No Objects") is None
    assert boxes('[{"bbox_2d": [1, 2, NaN, 4]}, [1, 2, 3]]') is None
    assert boxes("[1, 2, 3, 4]", "No Objects") is None


# ---- the command ---------------------------------------------------------------------------------


def test_the_command_says_its_verdict_and_writes_a_page_without_scripts(tmp_path, capsys):
    page = tmp_path / "p.html"
    small = "--questions 8 --samples 8 --held_out_per_class 1 --price_per_hour 2"
    preflight.main([*small.split(), "--output", str(page)])
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0].startswith("cls: 30 training examples")
    assert re.match(r"good: GRPO will find \d+% of the questions teachable", lines[1])
    assert any(re.match(r"time: .* for 150 steps of .*, \d\.\d\d at 2 an hour", x) for x in lines)
    assert any(line.startswith("memory: ") for line in lines)
    text = page.read_text()
    assert "<script" not in text and "http:" not in text and "https:" not in text
    shown = html.unescape(re.sub("<[^>]*>", "", text))
    assert "python train_grpo.py --task cls" in shown and text.count("<image id=") == 8
    assert "None of them earns more than an honest wrong answer" in shown
    assert "0 the same, 0 alike" in shown and "Targets" in shown


def test_what_a_model_says_is_escaped(tmp_path, monkeypatch):
    evil = "<script>alert(1)</script>"
    real = preflight.check

    def with_evil(*args):
        found, data, sampled = real(*args)
        sampled.texts[:] = [evil] * len(sampled.texts)
        return found, data, sampled

    monkeypatch.setattr(preflight, "check", with_evil)
    monkeypatch.setattr(preflight, "lint", lambda *args: Attacked([]))
    page = tmp_path / "p.html"
    small = "--questions 4 --samples 8 --held_out_per_class 1 --max_steps 1"
    preflight.main([*small.split(), "--output", str(page)])
    assert "<script" not in page.read_text() and "&lt;script&gt;" in page.read_text()


def test_a_reward_that_fails_gets_its_page_all_the_same(tmp_path, capsys):
    (tmp_path / "r.py").write_text("def pay(completions, example):\n    return [1 / 0]\n")
    small = "--questions 4 --samples 8 --held_out_per_class 1"
    words = ["--reward", f"{tmp_path / 'r.py'}:pay", "--output", str(tmp_path / "p.html")]
    preflight.main([*small.split(), *words])
    out = capsys.readouterr().out
    assert "bad: The reward could not be computed for 100% of the completions" in out
    assert "not known, since a few steps of the run fail: --reward" in out
    assert "not known, since a few steps of the run fail" in (tmp_path / "p.html").read_text()


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="one process; leave torchrun out"):
        preflight.main([])


@pytest.mark.parametrize(
    "flags, message",
    [
        (dict(samples=4), "samples 4: must be at least --num_generations 8"),
        (dict(plan=True), "left out: the page has it"),
        (dict(resume_from_checkpoint="latest"), "nothing is trained"),
        (dict(price_per_hour=-1.0), "0 or more"),
        (dict(fsdp=True), "one process samples here"),
        (dict(questions=0), "at least 1"),
    ],
)
def test_flags_that_cannot_be_meant_are_refused(flags, message):
    with pytest.raises(InputError, match=message):
        preflight.PreflightConfig(**flags)


def test_a_page_in_no_folder_is_refused(tmp_path):
    for output in (tmp_path / "gone" / "p.html", tmp_path, tmp_path / "p.txt"):
        with pytest.raises(InputError, match="a .html file in a folder that exists"):
            preflight.PreflightConfig(output=output)
