"""The scripts behind benchmarks/RESULTS.md run, and report what they measured.

On a CPU and in miniature; training runs are made in this process where a benchmark starts one.
"""

import importlib
import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

import train_grpo
import train_ppo
import train_sft
from benchmarks.learning import (
    algorithms,
    headline,
    learning_curve,
    loose_rewards,
    runs,
    task_table,
    variants,
)
from benchmarks.robustness import fuzz, mutations, soak
from benchmarks.speed import real_size
from benchmarks.timing import Table, interleaved, ratio
from data.examples import Example
from model.config import VLMConfig
from model.vlm import VLM
from runtime.signals import signals

ROOT = Path(__file__).resolve().parents[2]


# ---- speed ---------------------------------------------------------------------------------------

SPEED = ["head", "sampling", "update", "step"]


@pytest.mark.parametrize("name", SPEED)
def test_a_speed_benchmark_runs_in_miniature_and_ends_with_json(name, monkeypatch, capsys):
    monkeypatch.setattr(signals, "deferred", False)  # an optimizer's step leaves it set
    benchmark = importlib.import_module(f"benchmarks.speed.{name}")
    benchmark.main(["--device", "cpu", "--size", "small"])
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["id"] == name and "commit" in report["machine"]
    rows = report["rows"]
    if name == "head":
        assert {"ours", "torch"} == {row["head"] for row in rows} and rows[0]["extra_mb"] > 0
    elif name == "sampling":
        assert rows[0]["over_generate"]["median"] > 0
    elif name == "update":
        assert all(row["gradient_error"] < 1e-5 and row["shared_mb"] > 0 for row in rows)
        assert report["fit"].keys() >= {"us_per_token", "r2"} and "prefill" in report
    else:
        benchmark.main(["--device", "cpu", "--size", "small", "--lora_rank", "2"])
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["lora_rank"] == 2
        assert 0 < rows[0]["mismatch_mean"] <= rows[0]["mismatch_max"] < 1e-5


@pytest.mark.parametrize("size", real_size.SIZES)
def test_every_published_size_is_right_and_runs_in_miniature(size, tmp_path, capsys):
    config, parameters = real_size.SIZES[size]
    with torch.device("meta"):
        model = VLM(VLMConfig.from_dict(config))
    assert sum(p.numel() for p in model.parameters()) == parameters
    real_size.main(["--work_dir", str(tmp_path), "--size", size, "--small"])
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["size"] == size and 10**6 < report["parameters"] < 10**7
    assert report["shards"] > 2 and len(report["phases"]) == 7
    assert not list(tmp_path.iterdir())


def test_cpu_and_gpu_call_every_speed_benchmark_and_end_in_time():
    scripts = [(ROOT / "benchmarks" / f"{device}.sh").read_text() for device in ("cpu", "gpu")]
    for script in scripts:
        assert re.search(r"for name in (.*); do", script)[1].split() == SPEED
    smoke, tests, each, variant = map(int, re.findall(r"timeout (\d+)", scripts[1]))
    assert smoke <= 120 and smoke + tests + len(SPEED) * each + 3 * variant < 9 * 60


def test_candidates_take_turns_and_rows_become_a_table(capsys):
    calls = []
    both = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    seconds = interleaved(both, rounds=3, warmup=1)
    assert calls == ["a", "b"] * 4 and [len(values) for values in seconds.values()] == [3, 3]
    versus = ratio({"slow": [2.0, 3.0, 4.0], "fast": [1.0, 1.0, 1.0]}, slow="slow", fast="fast")
    assert versus == {"median": 3.0, "low": 2.5, "high": 3.5}
    Table().add(a_ms=0.12345, over_b=versus, c=None)
    lines = ["| a ms | over b | c |", "|---|---|---|", "| 0.1235 | 3.0 [2.5, 3.5] | - |"]
    assert capsys.readouterr().out.splitlines() == lines


# ---- learning ------------------------------------------------------------------------------------

FLAGS = "--max_steps 1 --held_out_size 2 --report_prompts 0 --device cpu --train_size 8".split()


def test_a_training_run_is_a_process_of_its_own(tmp_path):
    flags = ["--task", "order", *FLAGS]
    outcome = runs.train(tmp_path / "run", flags, threads=1)
    assert 0 < outcome.first_step_seconds <= outcome.seconds
    assert outcome.run.directory == tmp_path / "run" and len(runs.evaluations(outcome.run)) == 2
    assert {"strict", "ood_strict", "strict_low", "mean_length"} <= outcome.final.keys()
    with pytest.raises(SystemExit, match="failed: error: --max_stepz: no such flag"):
        runs.train(tmp_path / "other", ["--max_stepz", "1"])


@pytest.fixture
def in_process(monkeypatch):
    """Runs of the learning benchmarks are made here: the same run, without another interpreter."""
    scripts = {"train_grpo.py": train_grpo, "train_sft.py": train_sft, "train_ppo.py": train_ppo}

    def train(out, flags, script=("train_grpo.py",), threads=None):
        scripts[script[0]].main([*script[1:], *flags, "--output_dir", str(out)])
        return runs.outcome(out, 2.0, 1.0)

    for module in (algorithms, headline, task_table):
        monkeypatch.setattr(module, "train", train)


def test_the_task_table_has_a_row_per_run_and_a_median_per_task(in_process, capsys):
    task_table.main(["--tasks", "det", "order", "--seeds", "3", "--", *FLAGS])
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split(" | ")[:3] for line in lines if line.startswith(("| det", "| order"))]
    assert rows == [["| det", "mAP", "3"], ["| order", "strict", "3"]]
    assert lines[-3].startswith("det: median mAP") and lines[-2].startswith("order: median strict")
    first = json.loads(lines[-1])["runs"][0]
    assert first["base"].keys() == first["final"].keys() >= {"strict", "mean_length"}
    assert 0 <= first["final"]["mAP_low"] <= first["final"]["mAP_high"] <= 1


def cells(capsys, work_dir, words: str, methods: list[str], flags=FLAGS) -> tuple[list, list]:
    """Run the headline; its cells and the rows of its table."""
    words = [*f"{words} --others_size 1 --work_dir {work_dir} --methods".split(), *methods]
    capsys.readouterr()
    headline.main([*words, "--", *flags])
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split(" | ") for line in lines if line.startswith("| count")]
    return json.loads(lines[-1])["cells"], rows


def test_the_headline_fills_every_cell_once_and_resumes(in_process, tmp_path, capsys, monkeypatch):
    methods = ["base, think prompt", "CoT-SFT, then GRPO", "GRPO, loose reward"]
    first, rows = cells(capsys, tmp_path, "--tasks count ground --seeds 0", methods)
    assert [cell["method"] for cell in first] == methods + methods[:2]  # ground: no loose rule
    assert [cell["steps"] for cell in first[:3]] == [0, 2, 1] and [r[2] for r in rows] == methods
    (directory,) = tmp_path.glob("count*loose*.0.*")
    settings = json.loads((directory / "config.json").read_text())
    assert settings["reward"] == "benchmarks/learning/loose_rewards.py:number"
    monkeypatch.setattr(headline, "train", lambda *_: pytest.fail("ran again"))
    assert cells(capsys, tmp_path, "--tasks count ground --seeds 0", methods) == (first, rows)
    # A cell that was made with other flags is another cell.
    flags = [*FLAGS[:3], "3", *FLAGS[4:]]
    (cell,), _ = cells(capsys, tmp_path, "--tasks count --seeds 0 1", methods[:1], flags)
    assert headline.interval([0.4, 0.5, 0.6]) == "50.0 ± 24.8"  # 4.30 * 0.1 / sqrt(3)
    assert cell["flags"] == flags and round(3 * cell["metrics"]["strict"], 2) in (0, 1, 2, 3)


def test_algorithms_stand_side_by_side_and_a_second_start_goes_on(
    in_process, tmp_path, capsys, monkeypatch
):
    out = tmp_path / "algorithms.jsonl"
    words = ["--tasks", "count", "--only", "RLOO", "PPO", "--seeds", "0", "--out", str(out)]
    flags = [*FLAGS[:1], "2", *FLAGS[2:], "--prompts_per_step", "2", "--num_generations", "3"]
    algorithms.main([*words, "--jobs", "1", "--", *flags])
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [run["algorithm"] for run in found] == ["RLOO", "PPO"]
    assert all(run["tokens"] > 0 and 0 <= run["held_out"] <= 1 for run in found)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| count")]
    assert [row.split(" | ")[1] for row in rows] == ["RLOO", "PPO"]
    monkeypatch.setattr(algorithms, "train", lambda *_: pytest.fail("ran again"))
    algorithms.main([*words, "--jobs", "1", "--", *flags])


def test_half_of_a_group_may_answer_noised_pictures(tmp_path, monkeypatch):
    """With noise the second half says something else; what it is paid for is the clean picture."""
    groups = {}
    for noise in (0.0, 3.0):
        monkeypatch.setattr(train_grpo, "sample_groups", variants.noisy_groups)
        monkeypatch.setattr(variants, "NOISE", noise)
        line = f"--task count --output_dir {tmp_path / str(noise)} --num_generations 4"
        train_grpo.main([*FLAGS, *line.split(), "--prompts_per_step", "4"])
        log = (tmp_path / str(noise) / "completions.jsonl").read_text().splitlines()
        texts = [json.loads(row)["completion"] for row in log]
        groups[noise] = [texts[n : n + 4] for n in range(0, len(texts), 4)]
    assert [group[:2] for group in groups[0.0]] == [group[:2] for group in groups[3.0]]
    assert [group[2:] for group in groups[0.0]] != [group[2:] for group in groups[3.0]]
    assert variants.noise_left(0.0) > 0.99 and variants.noise_left(1.0) < 0.01


def test_without_noise_a_variant_is_the_run_itself(tmp_path, monkeypatch):
    line = ["--task", "count", *FLAGS, "--num_generations", "4", "--prompts_per_step", "4"]
    train_grpo.main([*line, "--output_dir", str(tmp_path / "plain")])
    monkeypatch.setattr(train_grpo, "sample_groups", variants.noisy_groups)
    monkeypatch.setattr(variants, "NOISE", 0.0)
    train_grpo.main([*line, "--output_dir", str(tmp_path / "noisy")])
    logs = [(tmp_path / name / "completions.jsonl").read_bytes() for name in ("plain", "noisy")]
    assert logs[0] == logs[1]


def test_questions_that_are_always_or_never_answered_are_left_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train_grpo, "prepare", variants.prepare_chosen)
    shares = torch.tensor([0.0, 0.5, 1.0, 0.25, 0.0, 0.0, 1.0, 0.75])
    monkeypatch.setattr(variants, "share_right", lambda setup: shares)
    train_grpo.main([*FLAGS, "--task", "count", "--output_dir", str(tmp_path / "run")])
    assert "3 kept, 3 never and 2 always right" in capsys.readouterr().out
    log = (tmp_path / "run" / "completions.jsonl").read_text().splitlines()
    assert len({json.loads(row)["id"] for row in log}) == 3


def test_loose_rewards_pay_what_their_sources_pay():
    for rule, text, target, total in (
        (loose_rewards.name, "<think></think><answer>Solara</answer>", "Solara minor", 2.0),
        (loose_rewards.name, "", "Solara minor", 1.0),
        (loose_rewards.number, "<think>3 - 2 = 2</think><answer>2</answer>", "3", 2.0),
        (loose_rewards.number, "<answer>4</answer>", "3", 0.0),
        (loose_rewards.yes_no, "I know it is yes", "no", 1.0),
    ):
        assert rule([text], Example("e", (), "?", target)) == [total]


def test_the_pictures_of_the_readme_are_those_of_the_garden_and_of_runs(tmp_path, monkeypatch):
    from benchmarks.learning import garden_picture  # a script: it changes sys.path

    (tmp_path / "assets").mkdir()
    monkeypatch.setattr(garden_picture, "ROOT", tmp_path)
    garden_picture.main()
    for name in ("garden.png", "flower.png"):
        drawn, asset = (Image.open(root / "assets" / name) for root in (tmp_path, ROOT))
        assert drawn.convert("RGB").tobytes() == asset.convert("RGB").tobytes()
    pytest.importorskip("matplotlib")
    rows = [{"step": s, "eval/strict": s / 9, "eval/loose": 1.0} for s in range(10)]
    learning_curve.draw(dict.fromkeys(learning_curve.REWARDS, [rows, rows]), tmp_path / "a.png")
    picture = Image.open(tmp_path / "a.png")
    assert picture.width <= learning_curve.WIDTH and len(set(picture.convert("L").tobytes())) > 5


@pytest.mark.case("O22")
@pytest.mark.parametrize("bug", mutations.BUGS, ids=lambda bug: bug.name)
def test_every_bug_of_the_mutation_table_can_still_be_planted(bug):
    assert (ROOT / bug.file).read_text(encoding="utf-8").count(bug.right) == 1
    files = [name.split("::")[0] for name in bug.tests.split()]
    assert bug.right != bug.wrong and all((ROOT / name).is_file() for name in files)


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_a_fuzz_target_starts_from_what_is_valid_and_survives_a_few_cases(name, monkeypatch):
    seeds, check = fuzz.TARGETS[name]
    monkeypatch.setattr(fuzz, "InputError", ZeroDivisionError)  # not caught: no seed is refused
    for data in seeds():
        check(data)
    monkeypatch.undo()
    result = fuzz.fuzz(name, 15, number=0)
    assert result["cases"] == 15 and result["wrong"] == ""


def test_the_fuzzer_sees_what_is_wrong(monkeypatch):
    monkeypatch.setattr(fuzz, "LIMIT", 0.0)
    assert "Wrong" in fuzz.fuzz("any json", 5, number=0)["wrong"]
    task, example, _ = fuzz.examples()[0]
    monkeypatch.setattr(fuzz, "examples", lambda: [(task, example, -1.0)])
    with pytest.raises(fuzz.Wrong, match="pays"):
        fuzz.check_completion(b"<answer>x</answer>")
    with pytest.raises(RecursionError):
        fuzz.reading("any.json", lambda path: (_ for _ in ()).throw(RecursionError()), b"{}")


def test_a_soak_reports_the_slope_and_stops_where_files_stay_open(monkeypatch, capsys):
    files = []

    def leaking(cfg):
        files.append(open("/dev/null"))
        return {"eval/strict": 0.5}

    words = ["--hours", "0", "--max_steps", "3"]
    monkeypatch.setattr(soak.train_grpo, "train", lambda cfg: {"eval/strict": cfg.max_steps / 6})
    soak.main(words)
    output = capsys.readouterr()
    report = json.loads(output.out.splitlines()[-1])
    assert report["runs"] == 6 and len(report["memory_mb"]) == 3 and "50.0%" in output.err
    monkeypatch.setattr(soak.train_grpo, "train", leaking)
    with pytest.raises(SystemExit, match="grow"):
        soak.main(words)
    for file in files:
        file.close()
    growth, error = soak.slope([1.0, 3.0, 5.0, 7.0])
    assert growth == pytest.approx(2.0) and error == pytest.approx(0.0, abs=1e-12)
    assert soak.slope([1.0, 2.0, 1.0, 2.0])[1] > 0.1
