"""The scripts behind benchmarks/RESULTS.md run, and report what they measured."""

import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.learning import garden_picture, headline, learning_curve, loose_rewards
from benchmarks.robustness import fuzz, mutations, soak
from benchmarks.speed import real_size
from benchmarks.timing import ratio, take_turns
from data.examples import Example

ROOT = Path(__file__).resolve().parents[2]


def test_the_real_size_check_runs_at_a_small_size(tmp_path, monkeypatch, capsys):
    small = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=96)
    small |= dict(num_key_value_heads=1, rope_scaling={"type": "mrope", "mrope_section": [4, 6, 6]})
    vision = real_size.CONFIG["vision_config"] | dict(
        depth=2, embed_dim=64, num_heads=2, hidden_size=64
    )
    monkeypatch.setattr(real_size, "CONFIG", real_size.CONFIG | small | {"vision_config": vision})
    monkeypatch.setattr(real_size, "FREE_BYTES", 0)
    report = real_size.run(tmp_path)
    assert report["parameters"] > 10**6
    assert json.loads(json.dumps(report)) == report


def test_the_first_run_benchmark_prints_a_row_per_seed_and_json():
    command = [
        sys.executable,
        "-m",
        "benchmarks.learning.first_run",
        "--name",
        "short",
        "--seeds",
        "3",
        "--",
    ]
    command += ["--max_steps", "2", "--held_out_per_class", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    report = json.loads(lines[-1])
    assert report["name"] == "short" and [run["seed"] for run in report["runs"]] == [3]
    assert 0 < report["runs"][0]["first_step_s"] <= report["runs"][0]["run_s"]
    assert lines[3].startswith("| 3 |") and report["runs"][0]["n"] == 30


def test_the_task_table_prints_a_row_per_run_a_median_per_task_and_json():
    command = [sys.executable, "-m", "benchmarks.learning.task_table", "--tasks", "det", "order"]
    command += ["--seeds", "3", "--threads", "1", "--jobs", "2", "--"]
    command += ["--max_steps", "1", "--held_out_size", "4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(" | ")[:3] for line in lines if line.startswith(("| det", "| order"))] == [
        ["| det", "mAP", "3"],
        ["| order", "strict", "3"],
    ]
    assert lines[-3].startswith("det: median mAP") and lines[-2].startswith("order: median strict")
    runs = json.loads(lines[-1])["runs"]
    assert all(
        {"strict", "mean_length"} <= run["first"].keys() & run["last"].keys() for run in runs
    )
    assert 0 <= runs[0]["first"]["mAP_low"] <= runs[0]["first"]["mAP_high"] <= 1


def test_the_pictures_of_the_readme_are_those_of_the_garden(tmp_path, monkeypatch):
    (tmp_path / "assets").mkdir()
    monkeypatch.setattr(garden_picture, "ROOT", tmp_path)
    garden_picture.main()
    for name in ("garden.png", "flower.png"):
        drawn, kept = (Image.open(root / "assets" / name) for root in (tmp_path, ROOT))
        assert drawn.convert("RGB").tobytes() == kept.convert("RGB").tobytes()


@pytest.mark.parametrize("name", ["gpu_head", "gpu_decode", "gpu_update", "gpu_step"])
def test_the_gpu_benchmarks_run_in_miniature(name):
    command = [sys.executable, "-m", f"benchmarks.speed.{name}", "--size", "small"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["id"] in "KDUE" and len(report) > 2


@pytest.mark.parametrize("name", ["head_memory", "sampler_vs_trainer"])
def test_a_benchmark_without_peers_ends_with_its_id(name):
    command = [sys.executable, "-m", f"benchmarks.speed.{name}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["id"] == {"head_memory": "K2", "sampler_vs_trainer": "E2"}[name]
    if name == "sampler_vs_trainer":  # sampling against training, on the embedded model
        assert report["mean"] <= 1e-5


def candidate(turns, pause):
    turns.ready(pause > 0)
    for _ in turns:
        time.sleep(pause)


def test_candidates_take_turns_in_processes_of_their_own():
    both = {"slow": partial(candidate, pause=0.03), "fast": partial(candidate, pause=0.01)}
    evidence, seconds = take_turns(both, 3, 1)
    assert evidence == {"slow": True, "fast": True}
    assert [len(values) for values in seconds.values()] == [3, 3]
    assert 1.2 < ratio(seconds, slow="slow", fast="fast")["median"] < 4


def test_the_headline_fills_every_cell_once_and_goes_on_where_it_stopped(
    tmp_path, capsys, monkeypatch
):
    words = "headline --tasks count --seeds 0 1 --others_size 2 --methods".split()
    words += ["base, think prompt", "SFT on answers", "CoT-SFT, then GRPO"]
    words += ["--work_dir", str(tmp_path), "--", "--max_steps", "1", "--held_out_size", "2"]
    monkeypatch.setattr(sys, "argv", words)
    headline.main()
    first = capsys.readouterr().out.splitlines()
    rows = [line for line in first if line.startswith("| count | - |")]
    assert [row.split(" | ")[2] for row in rows] == words[9:12]
    assert len(json.loads(first[-1])["cells"]) == 5 == len(list(tmp_path.glob("*.json")))
    monkeypatch.setattr(headline.subprocess, "run", lambda *_, **__: pytest.fail("ran again"))
    monkeypatch.setattr(headline, "machine", lambda: "-")
    headline.main()
    assert [line for line in capsys.readouterr().out.splitlines() if "| count" in line] == rows


def test_an_interval_is_students(capsys):
    assert headline.interval([0.5]) == "50.0"
    assert headline.interval([0.4, 0.5, 0.6]) == "50.0 ± 24.8"  # 4.30 * 0.1 / sqrt(3)


def test_the_headline_pays_one_policy_loosely_and_says_what_was_published(
    tmp_path, capsys, monkeypatch
):
    words = "headline --tasks count ground --seeds 0 --others_size 2 --methods".split()
    words += ["GRPO, loose reward", "--work_dir", str(tmp_path)]
    words += ["--", "--max_steps", "1", "--held_out_size", "2"]
    monkeypatch.setattr(sys, "argv", words)
    headline.main()
    said = capsys.readouterr().out
    cells = json.loads(said.splitlines()[-1])["cells"]
    assert [cell["task"] for cell in cells] == ["count"]  # ground has no loose reward
    assert cells[0]["steps"] == 1 and cells[0]["cpu_seconds"] > 0
    (run,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    kept = json.loads((run / "config.json").read_text())
    assert kept["reward"] == "benchmarks/learning/loose_rewards.py:number"
    assert "Published: Reason-RFT" in said


def test_the_headline_does_not_take_a_cell_of_other_flags(tmp_path, capsys, monkeypatch):
    for size in ("2", "3"):
        words = "headline --tasks count --seeds 0 --others_size 1 --methods".split()
        words += ["base, direct prompt", "--work_dir", str(tmp_path), "--", "--held_out_size", size]
        monkeypatch.setattr(sys, "argv", words)
        headline.main()
        (cell,) = json.loads(capsys.readouterr().out.splitlines()[-1])["cells"]
        assert cell["flags"] == ["--held_out_size", size]
        assert (cell["metrics"]["strict"] * int(size)) % 1 == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(
    "rule, text, target, paid",
    [
        (loose_rewards.name, "<think></think><answer>Solara</answer>", "Solara minor", 2.0),
        (loose_rewards.name, "", "Solara minor", 1.0),
        (loose_rewards.number, "<think>3 - 2 = 2</think><answer>2</answer>", "3", 2.0),
        (loose_rewards.number, "<answer>4</answer>", "3", 0.0),
        (loose_rewards.yes_no, "I know it is yes", "no", 1.0),
    ],
)
def test_loose_rewards_pay_what_their_sources_pay(rule, text, target, paid):
    assert rule([text], Example("e", (), "?", target)) == [paid]


@pytest.mark.case("O22")
@pytest.mark.parametrize("bug", mutations.BUGS, ids=lambda bug: bug.name)
def test_every_bug_of_the_mutation_table_can_still_be_planted(bug):
    assert (ROOT / bug.file).read_text(encoding="utf-8").count(bug.right) == 1
    tests = [name.split("::")[0] for name in bug.tests.split()]
    assert bug.right != bug.wrong and all((ROOT / name).is_file() for name in tests)


def test_the_pictures_of_a_run_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    rows = [{"step": s, "eval/strict": s / 9, "eval/loose": 1.0} for s in range(10)]
    learning_curve.draw(dict.fromkeys(learning_curve.REWARDS, [rows, rows]), tmp_path / "a.png")
    picture = Image.open(tmp_path / "a.png")
    assert picture.width <= learning_curve.WIDTH and len(set(picture.convert("L").getdata())) > 5


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_a_fuzz_target_starts_from_what_is_valid_and_survives_a_few_cases(name, monkeypatch):
    target = fuzz.TARGETS[name]
    monkeypatch.setattr(fuzz, "InputError", Refused)  # not caught: a valid file is not refused
    for data in target.seeds():
        target.check(data)
    monkeypatch.undo()
    found = fuzz.generated(name, 15, number=0)
    assert found["cases"] == 15 and found["wrong"] == ""


class Refused(Exception):
    """Nothing raises it."""


def test_the_fuzzer_sees_what_is_wrong(monkeypatch):
    monkeypatch.setattr(fuzz, "LIMIT", 0.0)
    assert "Wrong" in fuzz.generated("any json", 5, number=0)["wrong"]
    monkeypatch.undo()
    with pytest.raises(fuzz.Wrong, match="pays"):
        task, example, _ = fuzz.asked()[0]
        monkeypatch.setattr(fuzz, "asked", lambda: [(task, example, -1.0)])
        fuzz.check_completion(b"<answer>x</answer>")
    with pytest.raises(RecursionError):
        fuzz.reading("any.json", lambda path: (_ for _ in ()).throw(RecursionError()), b"{}")


def test_a_soak_reports_slopes_and_stops_where_files_stay_open(monkeypatch, capsys):
    kept = []

    def leaking(cfg):
        kept.append(open("/dev/null"))
        return {"eval/strict": 0.5}

    monkeypatch.setattr(sys, "argv", ["soak", "--hours", "0", "--max_steps", "3"])
    monkeypatch.setattr(soak.train_grpo, "train", lambda cfg: {"eval/strict": cfg.max_steps / 6})
    soak.main()
    printed = capsys.readouterr()
    report = json.loads(printed.out.splitlines()[-1])
    assert report["runs"] == 6 and len(report["memory_mb"]) == 3 and "50.0%" in printed.err
    monkeypatch.setattr(soak.train_grpo, "train", leaking)
    with pytest.raises(SystemExit, match="grow"):
        soak.main()
    for file in kept:
        file.close()


def test_the_slope_is_that_of_a_line():
    growth, error = soak.slope([1.0, 3.0, 5.0, 7.0])
    assert growth == pytest.approx(2.0) and error == pytest.approx(0.0, abs=1e-12)
    assert soak.slope([1.0, 2.0, 1.0, 2.0])[1] > 0.1
