"""report.html: what training leaves for it, what it concludes, and that nothing in it can act.

The page is opened in a real browser where one is installed (chromium): it renders, says nothing on
the console, and hostile text stays text.
"""

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import config
import report
import train_grpo
import train_sft
from data.examples import Example
from model.processor import Processor
from model.vlm import make_pack
from model.weights import load_model
from reporting import gallery
from reporting.attention_map import answer_heat, attention_to_prompt
from reporting.gallery import box_shares, fixed_questions, in_answer, telling_groups, token_texts
from reporting.metrics import rollout_metrics
from reporting.page import curves
from reporting.page.rollouts import (
    Pictures,
    distinct,
    pieces,
    questions_shown,
    spread_out,
    what_fits,
)
from reporting.page.saved_run import Run, read_run
from reporting.verdict import lights, verdict
from runtime.errors import InputError, visible
from sample import Rollout
from train_grpo import GRPOConfig

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
HOSTILE = [
    "<script>document.title='owned'</script>",
    "</bdi></section><img src=x onerror=\"document.title='owned'\">",
    "<a href='https://example.com'>&lt;&amp;&#x3C;script></a>",
    "--></style></title><!--",
    "{{ 7 * 7 }} {% for %} ${1} %d [/bold]",
    "\x00\x07\x1b[31m\u202eevil\u2066 \ud800 \ufeff \u200b\u00ad\U000e0041 end",
]


class Tags(HTMLParser):
    """The elements of a page, and its visible text."""

    def __init__(self, text: str):
        super().__init__()
        self.elements, self.attributes, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def run_dir(tiny_dir, tmp_path_factory):
    """A GRPO run on boxes by the tiny random model, with heat maps."""
    out = tmp_path_factory.mktemp("report") / "run"
    words = f"--task det --model {tiny_dir} --output_dir {out} --max_steps 3 --eval_steps 2"
    words += " --max_completion_length 6 --prompts_per_step 2 --held_out_size 6 --report_attention"
    train_grpo.main(words.split())
    return out


@pytest.fixture
def hostile_dir(run_dir, tmp_path):
    """The same run, whose texts are all hostile."""
    out = tmp_path / "<b>run"
    shutil.copytree(run_dir, out)
    rows = json_lines(out / "gallery.jsonl")
    for row in rows:
        row["question"], row["target"], row["id"] = HOSTILE[0], HOSTILE[1], HOSTILE[2]
        for completion in row["completions"]:
            completion["tokens"] = ["<think>", *HOSTILE, "</think><answer>", *HOSTILE, "</answer>"]
            completion["probabilities"] = [0.5] * len(completion["tokens"])
            completion["parts"] = {HOSTILE[0]: 1.0}
    (out / "gallery.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    about = json.loads((out / "run.json").read_text())
    about |= {"command": HOSTILE[0], "device": HOSTILE[1], "skipped": HOSTILE, "commit": HOSTILE[5]}
    (out / "run.json").write_text(json.dumps(about))
    metrics = json_lines(out / "metrics.jsonl")
    metrics[-1] |= {f"rewards/{HOSTILE[0]}/mean": 1.0, f"rewards/{HOSTILE[3]}/mean": 1.0}
    (out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    report.write_report(out)
    return out


def json_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# ---- what training leaves for it -----------------------------------------------------------------


def test_a_run_leaves_a_gallery_of_the_same_questions_and_of_telling_groups(run_dir):
    rows = json_lines(run_dir / "gallery.jsonl")
    held_out = [row for row in rows if row["view"] == "held_out"]
    assert [row["step"] for row in held_out] == [0] * 4 + [2] * 4 + [3] * 4
    assert len({row["id"] for row in held_out}) == 4
    assert {row["step"] for row in rows if row["view"] in ("best", "worst")} == {2, 3}
    completions = json_lines(run_dir / "completions.jsonl")
    for row in rows:
        assert all((run_dir / name).is_file() for name in row["images"])
        assert len(row["completions"]) == 8
        for completion in row["completions"]:
            assert len(completion["tokens"]) == len(completion["probabilities"])
            assert all(0 < p <= 1 for p in completion["probabilities"])
        if row["view"] == "best":  # as it was paid, not scored again
            paid = [c for c in completions if c["step"] == row["step"] and c["id"] == row["id"]]
            rewards = [c["reward"] for c in row["completions"]]
            assert rewards == [c["reward"] for c in paid][: len(rewards)]
    heat = np.array(held_out[0]["completions"][0]["heat"])
    assert heat.ndim == 2 and heat.max() == 1.0 and heat.min() >= 0


def test_what_a_run_was_is_written_down(run_dir, tiny_dir):
    about = json.loads((run_dir / "run.json").read_text())
    assert about["command"].startswith("python train_grpo.py --task det ")
    assert {"python", "torch", "numpy"} <= about["versions"].keys()
    assert about["data"]["held_out"]["examples"] == 6
    assert re.fullmatch("[0-9a-f]{16}", about["data"]["train"]["sha256"])
    assert about["headline"] == "mAP" and about["parameters"] > 1000 and about["skipped"] == []
    again = config.parse(GRPOConfig, about["command"].split()[2:], "")
    kept = config.load(GRPOConfig, run_dir / "config.json")
    assert again.output_dir is None and replace(again, output_dir=run_dir) == kept


def test_supervised_fine_tuning_leaves_a_report_too(tiny_dir, tmp_path, capsys):
    words = f"--task count --model {tiny_dir} --output_dir {tmp_path / 'run'} --max_steps 2"
    words += " --prompts_per_step 2 --held_out_size 4 --max_completion_length 6"
    train_sft.main(words.split())
    assert capsys.readouterr().out.splitlines()[-1] == f"report: {tmp_path / 'run/report.html'}"
    page = Tags((tmp_path / "run" / "report.html").read_text(encoding="utf-8"))
    assert "supervised fine-tuning" in page.text and "python train_sft.py" in page.text


def test_without_prompts_there_is_no_gallery_of_held_out_questions(tiny_dir, tmp_path):
    words = f"--model {tiny_dir} --output_dir {tmp_path / 'run'} --max_steps 1 --report_prompts 0"
    words += " --prompts_per_step 2 --held_out_per_class 1 --max_completion_length 6"
    train_grpo.main(words.split())
    assert "None yet." in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


@pytest.mark.case("F7")
def test_a_report_that_cannot_be_written_does_not_end_a_run(
    tiny_dir, tmp_path, monkeypatch, capsys
):
    def full(path, text):
        raise OSError("no space left on device")

    monkeypatch.setattr(report, "write_whole", full)
    words = f"--model {tiny_dir} --output_dir {tmp_path / 'run'} --max_steps 1"
    words += " --prompts_per_step 2 --held_out_per_class 1 --max_completion_length 6"
    train_grpo.main(words.split())
    out, err = capsys.readouterr()
    assert "report: not written (OSError: no space left on device)" in err and "report:" not in out
    assert (tmp_path / "run" / "step_1" / "hf" / "model.safetensors").is_file()


@pytest.mark.case("F7")
def test_a_disk_that_is_full_costs_the_logs_and_not_the_run(
    tiny_dir, tmp_path, monkeypatch, capsys
):
    """completions.jsonl, gallery.jsonl and pictures; the warning comes once."""
    original = Path.open

    def full(path, mode="r", *rest, **more):
        if mode in ("a", "wb") and path.suffix in (".jsonl", ".jpg"):
            raise OSError(28, "No space left on device")
        return original(path, mode, *rest, **more)

    monkeypatch.setattr(Path, "open", full)
    words = f"--model {tiny_dir} --output_dir {tmp_path / 'run'} --max_steps 2 --eval_steps 1"
    words += " --prompts_per_step 2 --held_out_per_class 1 --max_completion_length 6"
    train_grpo.main(words.split())
    assert capsys.readouterr().err.count("a log cannot be written") == 1
    assert (tmp_path / "run" / "step_2" / "hf" / "model.safetensors").is_file()


def test_questions_of_the_report_never_need_more_memory_than_training(
    tiny_dir, tmp_path, monkeypatch
):
    sizes, original = [], gallery.generate_group

    def watched(model, processor, prompts, *rest):
        sizes.append(len(prompts))
        return original(model, processor, prompts, *rest)

    monkeypatch.setattr(gallery, "generate_group", watched)
    words = f"--model {tiny_dir} --output_dir {tmp_path / 'run'} --max_steps 1 --report_prompts 5"
    words += " --prompts_per_step 2 --held_out_per_class 1 --max_completion_length 6"
    train_grpo.main(words.split())
    assert sizes == [2, 2, 1] * 2


@pytest.mark.parametrize(
    "text", ["plain words", "naïve Zürich 日本語 ☃", "🌼🌻 <think>é</think>", "\u0301combining"]
)
def test_token_texts_add_up_to_the_text_also_where_a_character_has_several_tokens(tiny_dir, text):
    processor = Processor(tiny_dir)
    ids = processor.encode(text)
    texts = token_texts(processor, ids)
    assert len(texts) == len(ids) and "".join(texts) == text


@pytest.mark.case("I60")
def test_broken_bytes_at_the_end_are_shown_as_such(tiny_dir):
    processor = Processor(tiny_dir)
    ids = processor.encode("☃")[:-1]
    assert token_texts(processor, ids)[-1] == "\ufffd"


def test_the_answers_tokens_are_those_between_its_tags():
    texts = ["<think>a", "</think><answer>", "So", "lara", "</answer>", ""]
    assert in_answer(texts) == [False, False, True, True, False, False]
    assert in_answer(["x<answer>y", "</answer>"]) == [True, False]  # shares a token with its tag
    assert in_answer(["no", " tags"]) == [False, False]


def test_boxes_are_shares_of_the_image_in_any_frame():
    assert box_shares("[[100, 200, 300, 400]]", (1000, 1000)) == [[0.1, 0.2, 0.3, 0.4]]
    assert box_shares("[[28, 14, 56, 28]]", (112, 56)) == [[0.25, 0.25, 0.5, 0.5]]
    assert box_shares("No Objects", (1000, 1000)) == [] and box_shares("red", (9, 9)) is None


def test_telling_groups_are_best_worst_flat_and_unread():
    rewards = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [0.0, 0.5]])
    good, bad = "<answer>x</answer>", "x"
    texts = [good, good, good, good, good, bad, bad, bad]
    assert telling_groups(rewards, texts) == {
        "best": 0,  # group 1 earned more, but had no advantage: nothing was learnt from it
        "worst": 3,
        "no_spread": 2,
        "no_answer": 3,
    }
    assert telling_groups(rewards[:1], [good, good]) == {"best": 0}
    flat = telling_groups(rewards[1:3], [good] * 4)  # nothing teaches: still worth a look
    assert flat == {"best": 0, "worst": 1, "no_spread": 1}


@pytest.mark.parametrize(
    "targets, wanted, chosen",
    [
        ("abcd" * 25, 4, [0, 25, 50, 75]),  # a b c d as they fall
        ("ab" * 50, 2, [0, 51]),  # 50 is an a again: the next one
        ("aaab", 2, [0, 3]),
        ("aaaa", 3, [0, 1, 2]),  # one target only: still different examples
        ("abab", 4, [0, 1, 2, 3]),
        ("baaa", 2, [0, 2]),
        ("ab", 5, [0, 1]),
        ("", 4, []),
        ("ab", 0, []),
    ],
)
def test_the_fixed_questions_differ_in_their_targets_where_possible(targets, wanted, chosen):
    examples = [Example(str(i), (), "?", target) for i, target in enumerate(targets)]
    assert [int(e.id) for e in fixed_questions(examples, wanted)] == chosen


# ---- where an answer looked ----------------------------------------------------------------------


def test_the_heat_map_is_transformers_attention(tiny_dir):
    """The mean over layers and heads of the eager attention weights of the same model."""
    from transformers import Qwen2VLForConditionalGeneration

    processor, model = Processor(tiny_dir), load_model(tiny_dir)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8))
    prompt = processor.prompt("p", (image,), "Which species?")
    completion = torch.tensor([7, 11, 13, 17])
    found = attention_to_prompt(model, prompt, completion)  # (C, P)
    reference = Qwen2VLForConditionalGeneration.from_pretrained(
        tiny_dir, attn_implementation="eager"
    ).eval()
    pack = make_pack([prompt], [[completion]])
    with torch.no_grad():
        theirs = reference(
            input_ids=pack.ids[None],
            pixel_values=prompt.pixels,
            image_grid_thw=torch.tensor(prompt.grids),
            position_ids=pack.positions[:, None],
            mm_token_type_ids=(pack.ids[None] == model.cfg.image_token_id).int(),
            output_attentions=True,
        ).attentions
    P = len(prompt.ids)
    expected = torch.stack(theirs).mean(dim=(0, 2))[0, P:, :P]  # layers, 1, H, T, T
    assert torch.allclose(found, expected, atol=1e-6)
    assert float(found.sum(1).max()) <= 1 + 1e-5

    heat = answer_heat(model, prompt, completion, [False, True, True, False])
    t, h, w = prompt.grids[0]
    slots = pack.ids[:P] == model.cfg.image_token_id
    by_hand = expected[1:3, slots].mean(0).view(h // 2, w // 2)
    assert np.allclose(heat, by_hand / by_hand.max(), atol=0.006)
    assert answer_heat(model, processor.prompt("q", (), "Hm?"), completion, [True] * 4) == []


# ---- verdict and lights --------------------------------------------------------------------------


def steps_of(count: int, **columns) -> list[dict]:
    """Rows 0..count; a column is a number or a function of the share of the run that is done."""
    rows = [{"step": 0, "eval/strict": 0.3, "eval/strict_low": 0.25, "eval/strict_high": 0.35}]
    for step in range(1, count + 1):
        own = {k: v(step / count) if callable(v) else v for k, v in columns.items()}
        rows.append({"step": step, "reward_std": 0.4} | own)
    return rows


def light(rows, name, skipped=()):
    return next(found for found in lights(rows, "strict", list(skipped)) if found.name == name)


@pytest.mark.parametrize("metric", ["kl", "sampling/sampling_logp_difference/mean"])
def test_a_metric_that_is_no_number_is_a_red_light(metric):
    rows = steps_of(9, reward=1.0, **{metric: float("nan")})
    assert "bad" in [found.level for found in lights(rows, "strict", [])]


@pytest.mark.parametrize(
    "metric, name, value, level",
    [
        ("frac_reward_zero_std", "Groups without spread", 0.9, "bad"),
        ("frac_reward_zero_std", "Groups without spread", 0.6, "watch"),
        ("frac_reward_zero_std", "Groups without spread", 0.1, "good"),
        ("completions/clipped_ratio", "Cut at the length limit", 0.4, "bad"),
        ("completions/no_answer_ratio", "Answers that cannot be read", 0.2, "watch"),
        ("kl", "KL to the starting model, nats per token", 0.5, "good"),
        ("kl", "KL to the starting model, nats per token", 7.0, "bad"),
        (
            "sampling/sampling_logp_difference/mean",
            "Sampler against trainer, nats per token",
            0.3,
            "bad",
        ),
        ("steps_skipped_nonfinite", "Updates that were not finite", 1.0, "bad"),
        ("reward/exception", "Your reward: exception", 2.0, "bad"),
    ],
)
def test_a_light_follows_its_metric_and_says_what_to_do(metric, name, value, level):
    found = light(steps_of(20, reward=1.0, **{metric: value}), name)
    assert found.level == level and bool(found.advice) == (level != "good")


@pytest.mark.parametrize(
    "flat, right, wrong, level, value, words",
    [
        (0.78, 0.75, 0.03, "good", "78% (75% all right, 3% all wrong)", "learnt; may stop"),
        (0.95, 0.95, 0.0, "good", "95% (95% all right, 0% all wrong)", "learnt; may stop"),
        (0.95, 0.0, 0.95, "bad", "95% (0% all right, 95% all wrong)", "nothing: more --num_g"),
        (0.6, 0.3, 0.3, "watch", "60% (30% all right, 30% all wrong)", "All right: harder"),
        (0.3, 0.3, 0.0, "good", "30% (30% all right, 0% all wrong)", ""),
    ],
)
def test_groups_without_spread_are_fine_where_they_are_all_right(
    flat, right, wrong, level, value, words
):
    shares = {"frac_reward_zero_std": flat, "frac_groups_all_right": right}
    rows = steps_of(20, reward=1.0, frac_groups_all_wrong=wrong, **shares)
    found = light(rows, "Groups without spread")
    assert (found.level, found.value) == (level, value)
    assert words in found.advice and bool(words) == bool(found.advice)


def test_of_groups_without_spread_the_log_says_how_many_are_all_right_or_all_wrong():
    def logged(name: str) -> dict:
        ids, logps = [torch.tensor([1, 2])] * 10, [torch.zeros(2)] * 10
        rollout = Rollout(ids, logps, ["stop"] * 10, ["x"] * 10)
        parts = [{name: v} for v in (1, 1, 0, 0, 1, 0, 1, 1, 0.5, 0.5)]
        rewards = torch.tensor([p[name] for p in parts]).view(5, 2).float()
        rewards[3] += torch.tensor([0.0, 0.5])  # all right, but one of them is formatted badly
        return rollout_metrics(rollout, rewards, parts)

    found = logged("correct")
    assert found["frac_reward_zero_std"] == pytest.approx(0.6)
    assert found["frac_groups_all_right"] == pytest.approx(0.2)
    assert found["frac_groups_all_wrong"] == pytest.approx(0.2)
    assert logged("iou")["frac_groups_all_right"] == pytest.approx(0.2)
    assert "frac_groups_all_right" not in logged("user")  # nobody knows what is right


@pytest.mark.parametrize(
    "part, value, level, shown",
    [
        ("correct", 0.0, "bad", "never"),
        ("correct", 0.01, "watch", "1.0%"),
        ("correct", lambda done: 0.5 if done < 0.5 else 0.0, "watch", "0.0%"),
        ("correct", float("nan"), "watch", "nan%"),
        ("correct", 0.3, "good", "30.0%"),
        ("iou", 0.0, "bad", "never"),
    ],
)
def test_what_sampling_never_says_is_a_red_light(part, value, level, shown):
    rows = steps_of(20, reward=0.4, **{f"rewards/{part}/mean": value})
    found = light(rows, "Right answers sampled")
    assert (found.level, found.value) == (level, shown)
    assert ("train_sft.py" in found.advice) == (level != "good")
    assert ("cannot be learnt" in found.advice) == (level == "bad")


def test_of_a_users_reward_nobody_knows_what_is_right():
    rows = steps_of(20, reward=0.0, **{"rewards/user/mean": 0.0})
    assert "Right answers sampled" not in [found.name for found in lights(rows, "strict", [])]


def test_only_the_last_steps_count():
    rows = steps_of(50, reward=1.0, frac_reward_zero_std=lambda done: 1.0 if done < 0.8 else 0.0)
    assert light(rows, "Groups without spread").level == "good"


def test_a_kl_that_was_not_measured_is_no_green_light():
    assert (
        light(steps_of(5, reward=1.0), "KL to the starting model, nats per token").level
        == "unknown"
    )


@pytest.mark.parametrize(
    "reward_end, strict_end, level",
    [
        (1.5, 0.9, "good"),
        (1.5, 0.31, "watch"),  # paid more, no better
        (1.05, 0.24, "watch"),  # a little worse: may be chance
        (1.05, 0.1, "bad"),  # far worse, and still paid more
        (0.9, 0.1, "good"),  # worse, and paid less: no hacking
        (1.0, 0.3, "good"),
    ],
)
def test_a_reward_that_rises_alone_is_suspicious(reward_end, strict_end, level):
    rows = steps_of(50, reward=lambda done: 1 + (reward_end - 1) * done)
    rows[-1]["eval/strict"] = strict_end
    assert light(rows, "Reward against held-out metric").level == level


def test_skipped_data_are_named():
    found = light(steps_of(3), "Skipped data", ["2 of 90 records skipped; no image: a.png"])
    assert found.level == "watch" and "a.png" in found.value
    assert light(steps_of(3), "Skipped data").level == "good"


def test_lights_that_do_not_apply_to_supervised_fine_tuning_are_left_out():
    names = [found.name for found in lights(steps_of(3, loss=0.1), "strict", [])]
    assert names == ["Skipped data"]


@pytest.mark.parametrize(
    "last, words",
    [(0.9, "Better than the start."), (0.33, "No change beyond chance"), (0.1, "Worse than the")],
)
def test_the_verdict_compares_with_the_interval_of_the_start(last, words):
    rows = steps_of(10)
    rows[-1] |= {"eval/strict": last, "eval/loose": 1.0}
    rows[0]["eval/loose"] = 0.99
    said = verdict(rows, "strict", 20)
    assert said.startswith(words) and "10 of 20 steps" in said and "loose 99.0% -> 100.0%" in said
    assert f"30.0% -> {last:.1%}" in said


def test_a_run_without_evaluation_has_a_verdict_too():
    assert verdict([], "strict", 5) == "0 of 5 steps: not evaluated yet."
    assert verdict(steps_of(3), "strict", 5) == (
        "3 of 5 steps, not evaluated since the start: held-out strict 30.0%."
    )


# ---- curves --------------------------------------------------------------------------------------


def points(text: str) -> list[tuple[float, float]]:
    return [tuple(map(float, pair.split(","))) for pair in text.split()]


def test_a_curve_runs_from_the_first_step_to_the_last_inside_its_axes():
    rows = [{"step": s, "reward": s / 10} for s in range(1, 11)]
    (panel,) = curves.panels([("a", "strict", rows)])
    drawn = points(panel.curves[0].smooth)
    assert panel.title == "Reward" and (panel.low, panel.high) == ("0", "1")
    assert drawn[0][0] == curves.LEFT and drawn[-1] == (curves.WIDTH - curves.RIGHT, curves.TOP)
    assert drawn[0][1] == pytest.approx(curves.TOP + 0.9 * 104)  # 0.1 of the way up


def test_long_and_broken_curves_stay_small_and_drawable():
    rows = [{"step": s, "reward": float(s % 7), "kl": 0.0} for s in range(5000)]
    rows[17]["reward"], rows[18]["reward"] = float("nan"), float("inf")
    reward, kl = curves.panels([("a", "strict", rows)])
    assert len(points(reward.curves[0].raw)) <= curves.MAX_POINTS
    assert points(reward.curves[0].raw)[-1][0] == curves.WIDTH - curves.RIGHT
    assert all(np.isfinite(points(kl.curves[0].smooth)).ravel())


def test_two_runs_share_an_axis_and_differ_in_colour():
    a = [{"step": s, "reward": 1.0} for s in range(3)]
    b = [{"step": s, "reward": 3.0, "kl": 1.0} for s in range(6)]
    reward, kl = curves.panels([("a", "strict", a), ("b", "strict", b)])
    assert [curve.label for curve in reward.curves] == ["a: reward", "b: reward"]
    assert len({curve.colour for curve in reward.curves}) == 2
    assert reward.last_step == 5 and kl.curves[0].colour == reward.curves[1].colour


def test_evaluations_are_drawn_as_they_were_however_many():
    rows = [{"step": s, "eval/strict": 0.3 + 0.65 * (s >= 30)} for s in range(40)]
    (panel,) = curves.panels([("a", "strict", rows)])
    assert points(panel.curves[0].smooth)[-1][1] == curves.TOP


@pytest.mark.parametrize("metric", ["memory_gb", "seconds/eval", "tokens_per_second"])
def test_time_memory_and_speed_are_drawn_from_zero(metric):
    rows = [{"step": s, metric: 1.0 + 0.01 * s, "entropy": 1.0 + 0.01 * s} for s in range(9)]
    drawn = {panel.title: panel for panel in curves.panels([("a", "strict", rows)])}
    entropy = drawn.pop("Entropy, nats per token")
    (panel,) = drawn.values()
    assert (entropy.low, panel.low) == ("1", "0")
    assert points(panel.curves[0].smooth)[0][1] < curves.TOP + 10  # nearly level


def test_legends_are_words():
    names = ["frac_reward_zero_std", "grad_norm", "eval/mAP", "eval/ood_mAP", "seconds/eval"]
    rows = [{"step": 1} | dict.fromkeys(names, 0.5)]
    drawn = curves.panels([("a", "mAP", rows)])
    labels = [curve.label for panel in drawn for curve in panel.curves]
    assert set(labels) == {
        *("groups without spread", "norm before clipping", "seconds"),
        *("mAP", "mAP, out of distribution"),
    }


@pytest.mark.parametrize(
    "value, text",
    [
        (999.7, "1k"),
        (999_700, "1.0e+06"),
        (0, "0"),
        (0.97312, "0.973"),
        (11234, "11.2k"),
        (1.23e-6, "1.2e-06"),
    ],
)
def test_numbers_have_three_digits(value, text):
    assert curves.short(value) == text


# ---- the page ------------------------------------------------------------------------------------


def test_the_page_shows_everything_and_needs_nothing(run_dir):
    text = (run_dir / "report.html").read_text(encoding="utf-8")
    page = Tags(text)
    for words in (
        "held-out mAP",
        "Groups without spread",
        "Gradient norm",
        "Parts of the reward",
        "Memory at most",
        "start",
        "step 2",
        "Best groups",
        "right answer",
        "python train_grpo.py --task det",
        "sha256",
        "num_generations",
    ):
        assert words in page.text, words
    assert "script" not in page.elements and "link" not in page.elements
    kept = [value for name, value in page.attributes if name in ("src", "href")]
    assert kept and all(value.startswith(("data:image/jpeg;base64,", "#i")) for value in kept)
    classes = [value for name, value in page.attributes if name == "class"]
    assert "true" in classes and "heat" in classes  # boxes of the target, and where it looked
    assert len(text.encode()) <= report.MAX_BYTES


def test_a_riddle_of_a_word_is_explained_where_it_appears(run_dir, tmp_path):
    page = Tags((run_dir / "report.html").read_text(encoding="utf-8"))
    assert "nats: logarithms of probabilities" in page.text and "advantage A" in page.text
    assert "strict: " not in page.text  # the headline of det is mAP, and it has no loose rule
    out = tmp_path / "run"
    shutil.copytree(run_dir, out)
    rows = [{"step": s, "eval/strict": 0.5, "eval/loose": 0.9} for s in range(3)]
    (out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (out / "run.json").write_text('{"headline": "strict"}')
    page = Tags(report.write_report(out).read_text(encoding="utf-8"))
    assert "strict: the whole answer is right." in page.text and "loose: right by" in page.text
    assert "nats: " not in page.text


def test_the_title_says_task_and_rise():
    def brief(*values: float, task: str = "cls") -> str:
        rows = [{"step": s, "eval/strict": value} for s, value in enumerate(values)]
        return Run(Path("a"), {"task": task}, {}, [*rows, {"step": 9}], [], label="a").brief

    assert brief(0.2733, 0.5, 0.9767) == "cls 27.3% -> 97.7% · a"
    assert brief(0.2733) == "cls 27.3% · a" and brief(task="count") == "count · a"


def test_the_window_of_a_page_has_that_title(run_dir):
    text = (run_dir / "report.html").read_text(encoding="utf-8")
    assert re.search(r"<title>det \d+\.\d% -&gt; \d+\.\d% · run</title>", text)


@pytest.mark.parametrize("has_answer", [True, False])
def test_only_an_answer_that_can_be_read_gets_a_box(run_dir, tmp_path, has_answer):
    out = tmp_path / "run"
    shutil.copytree(run_dir, out)
    row = json_lines(out / "gallery.jsonl")[0]
    row["completions"] = [sampled(["<answer>", "Rosa"], 0.0, has_answer=has_answer)]
    (out / "gallery.jsonl").write_text(json.dumps(row) + "\n")
    page = Tags(report.write_report(out).read_text(encoding="utf-8"))
    assert (("class", "answer") in page.attributes) == has_answer
    assert ("no answer" in page.text) != has_answer and "Rosa" in page.text


@pytest.mark.case("I61", "I62")
def test_hostile_text_is_shown_and_does_nothing(hostile_dir):
    text = (hostile_dir / "report.html").read_text(encoding="utf-8")
    page = Tags(text)
    assert not {"script", "img", "a"} & set(page.elements)
    assert not any(name.startswith("on") for name, _ in page.attributes)
    for hostile in HOSTILE:
        assert visible(hostile) in page.text
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2060-\u206f]", text)
    assert "default-src 'none'" in text


def test_pieces_put_thought_answer_and_tags_apart():
    tokens = ["<think>", "a", " b", "</think>", "<answer>", "Solara", " minor", "</answer>", "!"]
    made = pieces(tokens, [0.05, 0.95, 0.999, 1.0, 0.5, 0.2, 0.9, 1.0, 0.0])
    assert [(kind, "".join(text for text, _ in own)) for kind, own in made] == [
        ("tag", "<think>"),
        ("thought", "a b"),
        ("tag", "</think><answer>"),
        ("answer", "Solara minor"),
        ("tag", "</answer>"),
        ("plain", "!"),
    ]
    tints = [tint for _, own in made for _, tint in own]
    assert tints == [0, None, None, None, 5, 2, None, None, 0]


def test_pieces_of_text_without_an_end_or_a_beginning():
    assert [kind for kind, _ in pieces(["<answer>", "x"], [1, 1])] == ["tag", "answer"]
    assert [kind for kind, _ in pieces(["x", "</think>", "", ""], [1] * 4)] == [
        "plain",
        "tag",
        "plain",
    ]


def test_a_huge_run_stays_below_the_limit_and_keeps_its_ends(run_dir, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(run_dir, out)
    rows = [row for row in json_lines(out / "gallery.jsonl") if row["step"] == 2]
    for row in rows:
        for number, completion in enumerate(row["completions"]):
            completion["tokens"] = [f"<b{number}>"] * 3000  # all different: none can be left out
            completion["probabilities"] = [0.55] * 3000
    with (out / "gallery.jsonl").open("w") as file:
        for step in range(0, 1000, 50):
            file.writelines(json.dumps(row | {"step": step}) + "\n" for row in rows)
    text = report.write_report(out).read_text(encoding="utf-8")
    assert 1_000_000 < len(text.encode()) <= report.MAX_BYTES
    page = Tags(text)
    assert "of 20 snapshots are left out" in page.text and re.search(r"\d+ more tokens", page.text)
    assert "step 950" in page.text and "start" in page.text


@pytest.mark.parametrize("what", ["boxes", "pieces", "a huge group", "questions"])
def test_other_kinds_of_much_stay_below_the_limit_too(run_dir, tmp_path, what):
    """Many right boxes, many changes of kind, many completions, many questions: rollouts are cut,
    and neither the first nor the last snapshot is lost."""
    out = tmp_path / "run"
    shutil.copytree(run_dir, out)
    rows = [row for row in json_lines(out / "gallery.jsonl") if row["step"] == 2]
    for row in rows:
        if what == "boxes":
            row["boxes"] = [[0.1, 0.2, 0.3, 0.4]] * 400
        if what == "a huge group":
            row["completions"] = [dict(c) for c in row["completions"] * 16]
        for number, completion in enumerate(row["completions"]):
            completion["boxes"] = [[0.1, 0.2, 0.3, 0.4]] if what == "boxes" else None
            tokens = ["<think>", f"a{number}"] * 200 if what != "boxes" else [f"a{number}"] * 20
            completion |= {"tokens": tokens, "probabilities": [0.55] * len(tokens)}
    if what == "questions":
        held_out = [row for row in rows if row["view"] == "held_out"]
        rows = [row | {"id": f"{row['id']}-{i}"} for i in range(25) for row in held_out]
    steps = range(0, 3000, 50) if what in ("boxes", "pieces") else (0, 50)
    with (out / "gallery.jsonl").open("w") as file:
        for step in steps:
            file.writelines(json.dumps(row | {"step": step}) + "\n" for row in rows)
    text = report.write_report(out).read_text(encoding="utf-8")
    page = Tags(text)
    assert len(text.encode()) <= report.MAX_BYTES
    assert f"step {steps[-1]}" in page.text and "start" in page.text and "None yet" not in page.text


def test_snapshots_are_chosen_from_the_ends_inwards():
    assert spread_out([0]) == [0] and spread_out([0, 9]) == [9, 0]
    assert spread_out([0, 1, 2, 3, 4]) == [4, 0, 2, 1, 3]


def sampled(tokens: list[str], advantage: float, **more) -> dict:
    """A completion as gallery.jsonl has it."""
    return {
        "tokens": tokens,
        "probabilities": [0.5] * len(tokens),
        "reward": advantage,
        "parts": {"correct": 1.0},
        "advantage": advantage,
        "finish": "stop",
        "has_answer": True,
    } | more


def test_equal_completions_stand_there_once_with_every_score():
    rare, often = sampled(["a"], -2.0), sampled(["b", "c"], 0.25)
    cut, other = sampled(["b", "c"], 0.25, finish="length"), sampled(["b", "c"], 0.75)
    made = distinct([rare, often, often, other, cut], at_most=9)
    assert made == [
        (often, [(2, often), (1, other)]),
        (rare, [(1, rare)]),
        (cut, [(1, cut)]),
    ]
    assert distinct([rare, often, often, other, cut], at_most=1) == [(often, [(2, often)])]


def test_the_page_prints_a_text_once_and_says_how_often_it_was_sampled(run_dir, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(run_dir, out)
    rows = [row for row in json_lines(out / "gallery.jsonl") if row["step"] == 0][:1]
    rows[0]["completions"] = [sampled(["Solara minor"], 0.5)] * 5 + [sampled(["Rosa"], -2.5)] * 3
    (out / "gallery.jsonl").write_text(json.dumps(rows[0]) + "\n")
    page = Tags(report.write_report(out).read_text(encoding="utf-8"))
    assert page.text.count("Solara minor") == 1 and page.text.count("Rosa") == 1
    assert page.text.index("5 × 0.50 correct 1.00 A +0.50") < page.text.index("3 × -2.50")
    assert ("class", "completion paid") in page.attributes
    assert ("class", "completion charged") in page.attributes


def with_snapshots(run_dir: Path, out: Path, steps: list[int]) -> Path:
    """A copy of the run whose gallery has the same groups at all these steps."""
    shutil.copytree(run_dir, out)
    rows = [row for row in json_lines(out / "gallery.jsonl") if row["step"] == 2]
    with (out / "gallery.jsonl").open("w") as file:
        for step in steps:
            file.writelines(json.dumps(row | {"step": step}) + "\n" for row in rows)
    report.write_report(out)
    return out


@pytest.mark.parametrize("count", [1, 2, 6, 7, 9])
def test_of_many_snapshots_the_first_and_the_last_stand_side_by_side(run_dir, tmp_path, count):
    steps = [10 * i for i in range(count)]
    run = read_run(with_snapshots(run_dir, tmp_path / "run", steps))
    group = questions_shown([run], Pictures(), [what_fits(run, report.MAX_BYTES)])[0]
    shown, between = ([name for name, _ in own] for own in (group.columns, group.between))
    names = ["start", *(f"step {step}" for step in steps[1:])]
    if count <= 6:
        assert (shown, between) == (names, [])
    else:
        assert (shown, between) == ([names[0], names[-1]], names[1:-1])
        page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
        assert f"<summary>{count - 2} evaluations between them</summary>" in page


def test_of_many_runs_none_is_folded_away(run_dir, tmp_path):
    runs = [read_run(run_dir) for _ in range(8)]
    shown = [what_fits(run, 10**6, only_last=True) for run in runs]
    assert all(
        (len(group.columns), group.between) == (8, [])
        for group in questions_shown(runs, Pictures(), shown)
    )


def test_two_runs_side_by_side(run_dir, tiny_dir, tmp_path, capsys):
    other = tmp_path / "other"
    words = f"--task det --model {tiny_dir} --output_dir {other} --max_steps 1 --held_out_size 6"
    words += " --max_completion_length 6 --prompts_per_step 2 --seed 1 --learning_rate 1e-3"
    train_grpo.main(words.split())
    capsys.readouterr()
    report.main([str(other), str(run_dir), "--output", str(tmp_path / "both.html")])
    assert capsys.readouterr().out.strip() == str(tmp_path / "both.html")
    page = Tags((tmp_path / "both.html").read_text(encoding="utf-8"))
    assert "other: reward" in page.text and "run: reward" in page.text
    assert "other, step 1" in page.text and "run, step 3" in page.text
    assert "learning_rate" in page.text and "freeze_vision" not in page.text  # only differences


@pytest.mark.case("F22")
def test_a_run_that_is_being_written_can_be_read(run_dir, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(run_dir, out)
    for name in ("metrics.jsonl", "gallery.jsonl"):
        with (out / name).open("a") as file:
            file.write('{"step": 4, "torn')
    (out / "report.html").unlink()
    report.main([str(out)])
    assert "3 of 3 steps" in (out / "report.html").read_text(encoding="utf-8")
    assert not [path for path in out.iterdir() if path.name.startswith(".report")]


@pytest.mark.case("F22")
def test_a_page_is_replaced_whole(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError):
        report.write_whole(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_what_is_no_run_is_one_line(tmp_path, run_dir):
    with pytest.raises(InputError, match="config.json"):
        report.main([str(tmp_path)])
    out = tmp_path / "run"
    shutil.copytree(run_dir, out)
    lines = (out / "metrics.jsonl").read_text().splitlines()
    (out / "metrics.jsonl").write_text("\n".join([lines[0], "{broken", lines[1]]) + "\n")
    with pytest.raises(InputError, match=r"metrics.jsonl:2: not a row of JSON"):
        report.main([str(out)])
    for place in (tmp_path / "no" / "page.html", tmp_path, Path(".")):
        with pytest.raises(InputError, match="--output .*(cannot be written|is no page)"):
            report.main([str(run_dir), "--output", str(place)])
    for damage in ('{"step": "many"}', '{"step": null, "reward": 1}', "[1]", "null", "3"):
        (out / "metrics.jsonl").write_text(damage + "\n\n")
        with pytest.raises(InputError, match="damaged|not a row"):
            report.main([str(out)])


def test_a_run_of_an_earlier_version_has_a_page(run_dir, tmp_path):
    """Without run.json, gallery and pictures: what is there is shown."""
    out = tmp_path / "run"
    shutil.copytree(run_dir, out)
    (out / "run.json").unlink()
    (out / "gallery.jsonl").unlink()
    shutil.rmtree(out / "images")
    page = Tags(report.write_report(out).read_text(encoding="utf-8"))
    assert "None yet." in page.text and "Reward" in page.text
    assert read_run(out).headline == "strict"


def test_only_settings_that_were_chosen_stand_out(run_dir):
    text = (run_dir / "report.html").read_text(encoding="utf-8")
    bold = re.findall(r'<tr class="set"><td>(\w+)</td>', text)
    assert set(bold) == {
        *("task", "model", "max_steps", "eval_steps", "prompts_per_step", "held_out_size"),
        "report_attention",
    }


def test_two_runs_of_one_name_can_be_told_apart(run_dir, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(run_dir, tmp_path / name / "run")
    both = [str(tmp_path / name / "run") for name in ("a", "b")]
    report.main([*both, "--output", str(tmp_path / "both.html")])
    page = Tags((tmp_path / "both.html").read_text(encoding="utf-8"))
    assert "1: a/run" in page.text and "2: b/run" in page.text and "left out" not in page.text


def test_only_pictures_of_the_run_itself_are_shown(run_dir, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(run_dir, out)
    (tmp_path / "secret.jpg").write_bytes(next((out / "images").iterdir()).read_bytes())
    rows = json_lines(out / "gallery.jsonl")
    for row in rows:
        row["images"] = ["images/../../secret.jpg", "/etc/passwd", "images/0123456789abcdef.jpg"]
    (out / "gallery.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "image" not in Tags(report.write_report(out).read_text(encoding="utf-8")).elements


# ---- in a browser --------------------------------------------------------------------------------


def browse(page: Path, *more: str) -> subprocess.CompletedProcess:
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    command += ["--window-size=1240,2000", *more, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.skipif(BROWSER is None, reason="no chromium")
@pytest.mark.parametrize("kind", ["run_dir", "hostile_dir"])
def test_a_browser_renders_the_page_without_a_word_on_its_console(kind, request, tmp_path):
    directory = request.getfixturevalue(kind)
    done = browse(directory / "report.html", f"--screenshot={tmp_path / 'page.png'}")
    assert "CONSOLE" not in done.stderr
    pixels = np.asarray(Image.open(tmp_path / "page.png").convert("L"))
    assert pixels.shape == (2000, 1240) and (pixels < 100).mean() > 0.005  # there is ink
    done = browse(directory / "report.html", "--dump-dom")
    title = html.unescape(re.search("<title>(.*?)</title>", done.stdout)[1])
    assert "CONSOLE" not in done.stderr and title.endswith(f" · {directory.name}")
    dom = Tags(done.stdout)
    assert "owned" not in title
    assert not {"script", "img", "a"} & set(dom.elements)


MEASURE = """<meta charset="utf-8"><style>body { margin: 0 } iframe { border: 0 }</style>
<iframe width="WIDTH" height="9000" srcdoc="PAGE"></iframe>
<script>onload = () => {
  const page = document.querySelector("iframe").contentDocument;
  const columns = [...page.querySelector(".strip").children].map(e => e.getBoundingClientRect());
  const ends = [...page.body.querySelectorAll("*:not(svg *)")].map(
    e => e.getBoundingClientRect().right);
  const lines = e => {
    const range = page.createRange();
    range.selectNodeContents(e);
    return new Set([...range.getClientRects()].map(r => r.top)).size; };
  const whole = [...page.querySelectorAll(".flag, td:first-child")];
  document.title = JSON.stringify({
    words: whole.map(e => e.textContent),
    broken: whole.filter(e => lines(e) > 1).map(e => e.textContent),
    end: Math.max(...ends), scroll: page.documentElement.scrollWidth,
    lefts: columns.map(e => e.left), tops: columns.map(e => e.top)});
}</script>"""


def measured(page: Path, width: int, work: Path) -> dict:
    """Where things stand in a window that wide. Chromium's own is never narrower than 500."""
    text = re.sub("<meta http-equiv.*", "", page.read_text(encoding="utf-8"))  # our script may run
    outer = work / "outer.html"
    outer.write_text(MEASURE.replace("WIDTH", str(width)).replace("PAGE", html.escape(text)))
    done = browse(outer, "--dump-dom", "--window-size=1400,9000")
    return json.loads(html.unescape(re.search("<title>(.*?)</title>", done.stdout)[1]))


@pytest.mark.skipif(BROWSER is None, reason="no chromium")
@pytest.mark.parametrize("width", [1300, 420])
def test_all_snapshots_can_be_seen_at_once_and_stand_below_each_other_on_a_phone(
    run_dir, tmp_path, width
):
    out = with_snapshots(run_dir, tmp_path / "run", [0, 1, 2, 3, 4, 5])
    found = measured(out / "report.html", width, tmp_path)
    assert found["end"] <= width and found["scroll"] <= width  # nothing is cut off or scrolls
    rows, columns = len(set(found["tops"])), len(set(found["lefts"]))
    assert (rows, columns) == ((1, 6) if width == 1300 else (6, 1))


@pytest.mark.skipif(BROWSER is None, reason="no chromium")
def test_flags_and_names_are_not_broken_across_lines_on_a_phone(run_dir, tmp_path):
    out, page = tmp_path / "run", tmp_path / "page.html"
    shutil.copytree(run_dir, out)
    rows = json_lines(out / "metrics.jsonl")
    rows[-1]["sampling/sampling_logp_difference/mean"] = 3.2e-7
    (out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page.write_text(report.write_report(out).read_text().replace("<details", "<details open"))
    found = measured(page, 420, tmp_path)
    assert {"--model", "commit", "max_completion_length", "3.2e-07"} <= set(found["words"])
    assert all(word.startswith("/") for word in found["broken"])  # a path may be too long
    assert found["end"] <= 420 and found["scroll"] <= 420


@pytest.mark.skipif(BROWSER is None, reason="no chromium")
def test_the_browser_would_report_a_script(tmp_path):
    """The check above can fail: a page with a script does write to the console."""
    page = tmp_path / "page.html"
    page.write_text("<title>x</title><script>console.log('hello')</script>")
    assert "CONSOLE" in browse(page, "--dump-dom").stderr
