"""Runs that were made to fail, each in one way: preflight has to say which, before they begin."""

import contextlib
import io
import json
import random
from functools import cache
from pathlib import Path

import pytest
from PIL import ImageEnhance

from checks import linter
from checks.verdict import judge
from config import BASE_MODEL, TaskConfig
from model.image import load_image
from model.load import load_processor
from preflight import PreflightConfig, check
from tasks import load_task
from training.scoring import Scorer, user_reward
from training.setup import prepare

RULES = Path(__file__).with_name("peer_rules.py")
SMALL = dict(questions=24, samples=8)


@pytest.fixture(autouse=True)
def no_attacks(monkeypatch):
    """They have a test of their own, and take half of the time."""
    for attacks in ("text_attacks", "box_attacks"):
        monkeypatch.setattr(linter, attacks, lambda victim: {})


@cache
def examples(task, count=48, **flags):
    """Training questions of the garden."""
    if task != "cls":
        flags |= dict(train_size=count, held_out_size=4)
    cfg = TaskConfig(task=task, **flags)
    return load_task(cfg, load_processor(BASE_MODEL)).train


def saved(folder, found, solution=lambda e: e.target, question=None):
    """Garden questions as rows with pictures in files."""
    lines = []
    for k, e in enumerate(found):
        load_image(e.images[0]).save(folder / f"{k}.png")
        problem = question or e.question.split(" Think in")[0]
        lines.append({"image": f"{k}.png", "problem": problem, "solution": solution(e)})
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return str(path)


def reward(folder, body):
    """A user's reward in a file."""
    path = folder / "reward.py"
    path.write_text(f"def pay(completions, example):\n    {body}\n")
    return f"{path}:pay"


def folders(tmp_path, name_of):
    """Pictures of the garden's species in folders that are named otherwise."""
    for k, e in enumerate(examples("cls", shots=4)):
        folder = tmp_path / "classes" / name_of(k, e)
        folder.mkdir(parents=True, exist_ok=True)
        load_image(e.images[0]).save(folder / f"{k}.png")
    return str(tmp_path / "classes")


def in_pixels(e):
    return json.dumps([round(v * 96 / 1000) for v in json.loads(e.target)])


def another_name(k, e):
    found = examples("cls", shots=4)
    return found[(k + 7) % len(found)].target


def names(k, e):
    return ["zorblax", "quindle", "marvo", "tessik", "uplorn"][k % 5]


TRAPS = {
    # name: (verdict, flags)
    "labels are shuffled": ("labels", lambda d: dict(shuffle_labels=True)),
    "pictures are in the folders of other classes": (
        "labels",
        lambda d: dict(data=folders(d, another_name), shots=2, samples=16,
                       question="Which species is this flower?"),
    ),
    "the model writes thousandths, pixels are asked for": (
        "frame", lambda d: dict(task="ground", coords="abs"),
    ),
    "the data have pixels, and are read as thousandths": (
        "frame",
        lambda d: dict(task="ground", data=saved(d, examples("ground"), in_pixels),
                       data_coords="norm1000"),
    ),
    "the reward is always 0": (
        "unpaid", lambda d: dict(reward=reward(d, "return [0.0 for _ in completions]")),
    ),
    "the reward is always 1": (
        "unpaid", lambda d: dict(reward=reward(d, "return [1.0 for _ in completions]")),
    ),
    "the reward pays the format alone": ("unpaid", lambda d: dict(reward=f"{RULES}:form")),
    "the reward is upside down": (
        "unpaid",
        lambda d: dict(reward=reward(
            d, "return [float(example.target not in text) for text in completions]")),
    ),
    "what is right has no weight": ("unpaid", lambda d: dict(correct_weight=0.0)),
    "the reward raises": (
        "reward_fails", lambda d: dict(reward=reward(d, "return [1 / 0 for _ in completions]")),
    ),
    "the reward is no number": (
        "reward_fails",
        lambda d: dict(reward=reward(d, "return [float('nan') for _ in completions]")),
    ),
    "names that are never said": ("never", lambda d: dict(data=folders(d, names), shots=4)),
    "numbers are asked for, words are said": (
        "format_first",
        lambda d: dict(task="count", data=saved(
            d, examples("vqa"), lambda e: "3", question="What colour are all the flowers?")),
    ),
    "completions are cut": ("cut", lambda d: dict(max_completion_length=4)),
    "a model that has never acted": ("calls_first", lambda d: dict(task="lookup")),
    "nothing to gain": (
        "nothing_to_gain",
        lambda d: dict(task="count", temperature=0.01, data=saved(d, *answered(24))),
    ),
    "all samples are alike": ("few", lambda d: dict(task="count", temperature=0.01)),
    "the garden as it is": ("teachable", lambda d: {}),
}  # fmt: skip


def answered(count):
    """Questions, and what the base answers to them greedily, right or wrong."""
    from model.load import load_model
    from sample import generate_group

    found, processor = examples("count", count), load_processor(BASE_MODEL)
    prompts = [processor.prompt(e.id, e.images, e.question) for e in found]
    texts = generate_group(load_model(BASE_MODEL), processor, prompts, 1, 40, 0.0).texts
    said = {e.id: t.split("<answer>")[-1].split("<")[0] for e, t in zip(found, texts, strict=True)}
    return found, lambda e: said[e.id]


def verdicts(**flags):
    """All that preflight says of a run."""
    is_cls = flags.get("task", "cls") == "cls"
    few = dict(held_out_per_class=2) if is_cls else dict(held_out_size=16)
    cfg = PreflightConfig(**SMALL | ({} if "data" in flags else few) | flags)
    with contextlib.redirect_stdout(io.StringIO()):
        user, setup = user_reward(cfg), prepare(cfg)
        found, *_ = check(setup, setup.cfg, Scorer(setup.task, setup.cfg, user))
    return judge(found)


@pytest.mark.parametrize("name", TRAPS)
def test_each_trap_gets_its_verdict(tmp_path, name):
    expected, flags = TRAPS[name]
    first, *_ = verdicts(**flags(tmp_path))
    assert first.name == expected, first
    assert any(char.isdigit() for char in first.text), "the figure that it rests on"


@pytest.mark.parametrize(
    "task, rows, fix",
    [
        ("lookup", "", "--cot learns it from demonstrations"),
        ("zoom", "rows", "--cot without --data"),
    ],
)
def test_who_has_to_act_first_learns_it_where_demonstrations_are(tmp_path, task, rows, fix):
    data = {"data": saved(tmp_path, examples("vqa", 24))} if rows else {}
    first, *_ = verdicts(task=task, questions=8, **data)
    assert first.name == "calls_first" and fix in first.text


def test_a_constant_target_and_answers_that_need_no_picture_are_said(tmp_path):
    rows = saved(tmp_path, examples("vqa"), lambda e: "red", question="Which colour is a rose?")
    beside = {v.name: v for v in verdicts(task="vqa", data=rows)[1:]}
    assert beside["constant"].level == "watch" and "100%" in beside["constant"].text


def test_held_out_pictures_that_look_like_those_of_training_are_said(tmp_path):
    found, dim = examples("vqa", 24), random.Random(0)
    lines = []
    for k, e in enumerate(found):
        image = load_image(e.images[0])
        for split in ("train", "test"):
            image.save(tmp_path / f"{split}{k}.png")
            lines.append({"image": f"{split}{k}.png", "problem": "What colour?", "solution": "red"})
            image = ImageEnhance.Brightness(image).enhance(dim.uniform(0.9, 0.97))
        lines[-1]["split"], lines[-2]["split"] = "test", "train"
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    near = [v for v in verdicts(task="vqa", data=str(tmp_path / "rows.jsonl")) if v.name == "near"]
    assert near and int(near[0].text.split()[0]) >= 20


def test_pictures_of_the_garden_are_not_taken_for_each_other():
    assert "near" not in [v.name for v in verdicts(task="vqa")]


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava"])
def test_other_families_get_a_verdict_too(tmp_path, tiny_dirs, other_dirs, family):
    """Random weights: nothing that they say can be read."""
    flags = dict(model=(tiny_dirs | other_dirs)[family], max_completion_length=12)
    for task, more in (("cls", {}), ("ground", {"coords": "abs"})):
        first, *beside = verdicts(task=task, questions=4, samples=8, **flags, **more)
        assert first.name in ("cut", "format_first") and beside
