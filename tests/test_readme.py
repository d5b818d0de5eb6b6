"""The README tells the truth: files and functions exist, flags are real, line counts are close."""

import dataclasses
import importlib
import re
from pathlib import Path

import pytest
from reporting.page.verdict import RARELY_RIGHT

from evaluate import EvalConfig
from reporting.verdict import BOUNDS
from sample import SampleConfig
from train_grpo import GRPOConfig
from train_sft import SFTConfig

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = "\n".join(re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)).replace("\\\n", " ")


def test_every_path_named_in_the_readme_exists():
    named = set(re.findall(r"`([\w./-]+/|[\w./-]+\.(?:py|md|txt|json|png))[`:]", TEXT))
    named |= set(re.findall(r"\]\(([\w./-]+)\)", TEXT))
    named -= {name for name in named if name.startswith(("runs/", "http"))}
    left_by_a_run = {"metrics.jsonl", "completions.jsonl", "gallery.jsonl"}
    left_by_a_run |= {
        "config.json",
        "run.json",
        "not_finite.json",
        "images/",
        "step_N/hf/",
        "step_N/trainer/",
        "step_N/manifest.json",
    }
    missing = [name for name in named - left_by_a_run if not (ROOT / name).exists()]
    assert len(named) > 20 and not missing


def test_every_function_named_in_the_readme_exists():
    named = re.findall(r"`([\w/]+)\.py:(\w+)`", TEXT)
    assert len(named) >= 6
    for module, function in named:
        assert hasattr(importlib.import_module(module.replace("/", ".")), function), function


@pytest.mark.parametrize(
    "script, kind",
    [
        ("train_grpo.py", GRPOConfig),
        ("train_sft.py", SFTConfig),
        ("sample.py", SampleConfig),
        ("evaluate.py", EvalConfig),
    ],
)
def test_every_flag_of_a_printed_command_is_a_flag_of_that_script(script, kind):
    torchrun = "torchrun --nproc_per_node=4 --shutdown-timeout 600 "
    lines = [line.replace(torchrun, "python ") for line in COMMANDS.splitlines()]
    commands = [line for line in lines if line.startswith(f"python {script}")]
    assert commands
    fields = {field.name for field in dataclasses.fields(kind)}
    for command in commands:
        flags = set(re.findall(r"--(?:no-)?([a-z_]+)", command))
        assert flags <= fields, command


def test_every_flag_mentioned_anywhere_belongs_to_some_script():
    kinds = (GRPOConfig, SFTConfig, SampleConfig, EvalConfig)
    fields = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    assert set(re.findall(r"`--(?:no-)?([a-z_]+)", TEXT)) <= fields


def test_line_counts_of_the_tree_are_close():
    rows = re.findall(r"^\| `([\w/]+\.py)` \| (\d+) \|", TEXT, re.MULTILINE)
    assert len(rows) > 15
    for name, count in rows:
        real = len((ROOT / name).read_text(encoding="utf-8").splitlines())
        assert abs(real - int(count)) <= 0.1 * real + 5, f"{name}: {count} claimed, {real} real"
    lines = re.search(r"An afternoon: eleven files, ([\d,]+) lines", TEXT)[1]
    first = TEXT.split(f"{lines} lines")[1].split("The rest")[0]
    counts = [
        int(count) for count in re.findall(r"^\| `[\w/]+\.py` \| (\d+) \|", first, re.MULTILINE)
    ]
    assert len(counts) == 11 and abs(sum(counts) - int(lines.replace(",", ""))) < 100


def test_the_metrics_table_has_the_bounds_of_the_reports_traffic_lights():
    table = TEXT.split("## Metrics")[1].split("## ")[0]
    for metric, (green, red) in BOUNDS.items():
        name = metric.split("/mean")[0]
        row = next(line for line in table.splitlines() if line.startswith("|") and name in line)
        healthy = row.split("|")[-2]
        assert f" below {green:g} " in healthy and f"red: above {red:g})" in healthy, metric
    assert f"above {RARELY_RIGHT:g} (red: always 0)" in table


def test_numbers_of_the_results_table_stand_in_results_md():
    results = (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
    table = TEXT.split("## Results")[1].split("## ")[0]
    numbers = re.findall(r"\d+\.\d %", table)
    assert len(numbers) >= 6
    missing = [number for number in numbers if number not in results]
    assert not missing
