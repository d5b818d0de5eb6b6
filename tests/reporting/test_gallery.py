"""What a run writes beside its metrics: run.json, the gallery, where an answer looked."""

import re
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import config
import train_grpo
from data.examples import Example
from kernels import group_advantages
from model.config import FAMILIES
from model.pack import make_pack
from model.processor import Processor
from model.weights import load_model
from reporting import gallery
from reporting.attention_map import answer_heat, attention_to_prompt
from reporting.gallery import fixed_questions, groups_to_show, in_answer, relative_boxes
from reporting.metrics import rollout_metrics
from reporting.page import render
from reporting.page.saved_run import read_run
from rewards import Reward
from sample import Rollout
from tasks.task import Task
from tests.model.families import CLASSES
from train_grpo import GRPOConfig

FAKE = Task("fake", [], {}, lambda *_: Reward(0.0, {}), lambda *_: {})


def test_the_gallery_has_the_same_questions_at_every_evaluation_and_groups_of_the_step(run_dir):
    rows = read_run(run_dir).gallery
    held_out = [row for row in rows if row["view"] == "held_out"]
    assert [row["step"] for row in held_out] == [0] * 4 + [2] * 4 + [3] * 4
    assert len({row["id"] for row in held_out}) == 4
    # A random model earns nothing: no group of a step has an advantage to be the best by.
    assert {row["step"] for row in rows if row["view"] == "zero_std"} == {2, 3}
    assert not [row for row in rows if row["view"] in ("best", "worst")]
    for row in rows:
        assert all((run_dir / name).is_file() for name in row["images"])
        assert len(row["completions"]) == 8
        for completion in row["completions"]:
            assert len(completion["tokens"]) == len(completion["probabilities"])
            assert all(0 < p <= 1 for p in completion["probabilities"])
    heat = np.array(held_out[0]["completions"][0]["heat"])
    assert heat.ndim == 2 and heat.max() == 1.0 and heat.min() >= 0


def test_run_json_says_how_to_repeat_the_run(run_dir):
    about = read_run(run_dir).about
    assert about["command"].startswith("python train_grpo.py --task det ")
    assert {"python", "torch", "numpy"} <= about["versions"].keys()
    assert about["data"]["held_out"]["examples"] == 6
    assert re.fullmatch("[0-9a-f]{16}", about["data"]["train"]["sha256"])
    assert re.fullmatch(r"Find every \w+ flower\.", about["question"])
    assert re.search(r" CPU, (1 thread|\d+ threads) of \d+$", about["device"])
    assert about["headline"] == "mAP" and about["parameters"] > 1000 and about["skipped"] == []
    again = config.parse(GRPOConfig, about["command"].split()[2:], "")
    saved = config.load(GRPOConfig, run_dir / "config.json")
    assert again.output_dir is None and replace(again, output_dir=run_dir) == saved


@pytest.mark.case("F7")
def test_a_full_disk_costs_the_logs_and_the_page_but_not_the_run(
    tiny_dir, tmp_path, monkeypatch, capsys
):
    """completions.jsonl, gallery.jsonl, pictures and the report; the warning of logs comes once."""
    batches, original, generate = [], Path.open, gallery.sample_episodes

    def full(path, mode="r", *rest, **more):
        if mode in ("a", "wb") and path.suffix in (".jsonl", ".jpg"):
            raise OSError(28, "No space left on device")
        return original(path, mode, *rest, **more)

    def watched(model, processor, prompts, *rest):
        batches.append(len(prompts))
        return generate(model, processor, prompts, *rest)

    monkeypatch.setattr(Path, "open", full)
    monkeypatch.setattr(render, "write_atomically", Mock(side_effect=OSError("disk full")))
    monkeypatch.setattr(gallery, "sample_episodes", watched)
    words = f"--model {tiny_dir} --output_dir {tmp_path / 'run'} --max_steps 2 --eval_steps 1"
    words += " --prompts_per_step 2 --report_prompts 5 --held_out_per_class 1"
    train_grpo.main([*words.split(), "--max_completion_length", "6"])
    out, err = capsys.readouterr()
    assert err.count("a log cannot be written") == 1
    assert "report: not written (OSError: disk full)" in err and "report:" not in out
    assert (tmp_path / "run" / "step_2" / "hf" / "model.safetensors").is_file()
    assert batches == [2, 2, 1] * 3  # as in training: the report needs no more memory


@pytest.mark.case("I60")
@pytest.mark.parametrize(
    "text", ["plain words", "naïve Zürich 日本語 ☃", "🌼🌻 <think>é</think>", "\u0301combining"]
)
def test_token_texts_add_up_to_the_text_also_where_a_character_has_several_tokens(tiny_dir, text):
    processor = Processor(tiny_dir)
    ids = processor.encode(text)
    texts = gallery.token_texts(processor, ids)
    assert len(texts) == len(ids) and "".join(texts) == text
    cut = ids + processor.encode("☃")[:-1]
    assert gallery.token_texts(processor, cut)[-1] == "\ufffd"


def test_answer_tokens_lie_between_the_tags_and_boxes_are_relative_to_the_image():
    texts = ["<think>a", "</think><answer>", "So", "lara", "</answer>", ""]
    assert in_answer(texts) == [False, False, True, True, False, False]
    assert in_answer(["x<answer>y", "</answer>"]) == [True, False]  # shares a token with its tag
    assert in_answer(["no", " tags"]) == [False, False]
    assert relative_boxes("[[100, 200, 300, 400]]", (1000, 1000)) == [[0.1, 0.2, 0.3, 0.4]]
    assert relative_boxes("[[28, 14, 56, 28]]", (112, 56)) == [[0.25, 0.25, 0.5, 0.5]]
    assert relative_boxes("No Objects", (9, 9)) == [] and relative_boxes("red", (9, 9)) is None


def test_groups_to_show_are_best_worst_zero_std_unreadable_and_lost():
    def views(rewards: list[list[float]], is_readable=None, lost=()) -> dict[str, int]:
        parts = [None if b in lost else {} for b in range(sum(map(len, rewards)))]
        rollout = Rollout([], [], [], [], torch.tensor(rewards), parts)
        rollout.advantages = group_advantages(rollout.rewards)
        everything = torch.ones_like(rollout.rewards, dtype=torch.bool)
        return groups_to_show(
            rollout, everything if is_readable is None else torch.tensor(is_readable)
        )

    rewards = [[1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [0.0, 0.5]]
    # Group 1 earned most, but had no advantage: nothing was learnt from it.
    readable = [[True, True], [True, True], [True, False], [False, False]]
    shown = {"best": 0, "worst": 3, "zero_std": 2, "no_answer": 3}
    assert views(rewards, readable) == shown
    assert views(rewards[:1]) == {"best": 0}
    # No advantage, no best or worst, be it that a reward is all but equal to the others.
    assert views(rewards[1:3]) == {"zero_std": 1}
    assert views([[1.0, 1.0 + 1e-7]]) == {"zero_std": 0}
    # A group whose rewards were lost is none of zero std, although its stand-ins are equal.
    assert views(rewards, lost=(4, 5)) == {"best": 0, "worst": 3, "zero_std": 1, "lost": 2}
    assert views(rewards[2:3], lost=(0, 1)) == {"lost": 0}


def test_the_fixed_questions_differ_in_their_targets_where_possible():
    for targets, wanted, places in (
        ("abcd" * 25, 2, [0, 2]),  # a and c, the first of each
        ("ab" * 50, 4, [0, 25, 50, 75]),  # too few targets: evenly spread
        ("aaab", 2, [0, 3]),
        ("aaaa", 3, [0, 1, 2]),  # one target only: still different examples
        ("ab", 5, [0, 1]),
        ("", 4, []),
        ("ab", 0, []),
    ):
        examples = [Example(str(i), (), "?", target) for i, target in enumerate(targets)]
        assert [int(e.id) for e in fixed_questions(examples, wanted)] == places


@pytest.mark.parametrize("family", FAMILIES)
def test_the_heat_map_is_transformers_attention(family, tiny_dirs):
    """The mean over layers and heads of the eager attention weights of the same model."""
    tiny_dir = tiny_dirs[family]
    processor, model = Processor(tiny_dir), load_model(tiny_dir)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8))
    prompt = processor.prompt("p", (image,), "Which species?")
    completion = torch.tensor([7, 11, 13, 17])
    ours = attention_to_prompt(model, prompt, completion)  # (C, P)
    kind = getattr(transformers, f"{CLASSES[family]}ForConditionalGeneration")
    load, eager = kind.from_pretrained, {"attn_implementation": "eager"}
    pack, P = make_pack([prompt], [[completion]]), len(prompt.ids)
    inputs = {"input_ids": pack.ids[None], "position_ids": pack.positions[:, None]}
    inputs |= {"pixel_values": prompt.pixels, "image_grid_thw": torch.tensor(prompt.grids)}
    inputs["mm_token_type_ids"] = (pack.ids[None] == model.cfg.image_token_id).int()
    with torch.no_grad():
        theirs = load(tiny_dir, **eager).eval()(**inputs, output_attentions=True).attentions
    expected = torch.stack(theirs).mean(dim=(0, 2))[0, P:, :P]  # layers, 1, H, T, T
    assert torch.allclose(ours, expected, atol=1e-6)

    t, h, w = prompt.grids[0]
    slots = pack.ids[:P] == model.cfg.image_token_id
    for answer, rows in (([False, True, True, False], slice(1, 3)), ([False] * 4, slice(0, 4))):
        by_hand = expected[rows, slots].mean(0).view(h // 2, w // 2)
        heat = answer_heat(model, prompt, completion, answer)
        assert np.allclose(heat, by_hand / by_hand.max(), atol=0.006)
    assert answer_heat(model, processor.prompt("q", (), "Hm?"), completion, [True] * 4) == []


def test_metrics_say_how_many_zero_std_groups_are_all_right_or_all_wrong():
    def metrics(name: str) -> dict:
        ids, logps = [torch.tensor([1, 2])] * 10, [torch.zeros(2)] * 10
        parts = [{name: v} for v in (1, 1, 0, 0, 1, 0, 1, 1, 0.5, 0.5)]
        rewards = torch.tensor([p[name] for p in parts]).view(5, 2).float()
        rewards[3] += torch.tensor([0.0, 0.5])  # all right, but one of them is formatted badly
        rollout = Rollout(ids, logps, ["stop"] * 10, ["x"] * 10, rewards, parts)
        return rollout_metrics(rollout, [Example("e", (), "?", "x")] * 5, FAKE)

    names = ("frac_reward_zero_std", "frac_groups_all_right", "frac_groups_all_wrong")
    for part in ("correct", "iou"):
        assert [metrics(part)[name] for name in names] == pytest.approx([0.6, 0.2, 0.2])
    assert names[1] not in metrics("user")  # nobody knows what is right
