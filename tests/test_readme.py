"""README.md and docs/ tell the truth: files, functions, flags, numbers and links are real."""

import dataclasses
import importlib
import re
from pathlib import Path

import pytest

from evaluate import EvalConfig
from rate import RateConfig
from reporting.lights import BOUNDS, RARELY_RIGHT
from sample import SampleConfig
from train_grpo import GRPOConfig
from train_ppo import PPOConfig
from train_sft import SFTConfig
from train_verifier import VerifierConfig

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {path: path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("docs/*.md"))}
PAGES[ROOT / "README.md"] = README
ALL = "\n".join(PAGES.values())
COMMANDS = "\n".join(re.findall(r"```bash\n(.*?)```", ALL, re.DOTALL)).replace("\\\n", " ")
SCRIPTS = {"train_grpo.py": GRPOConfig, "train_sft.py": SFTConfig, "train_ppo.py": PPOConfig}
SCRIPTS["train_verifier.py"] = VerifierConfig
SCRIPTS |= {"sample.py": SampleConfig, "evaluate.py": EvalConfig, "rate.py": RateConfig}


def fields(kind: type) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def test_the_readme_is_short_and_every_page_is_linked_from_it():
    assert len(README.splitlines()) <= 250
    linked = set(re.findall(r"\]\((docs/\w+\.md)\)", README))
    assert linked == {str(path.relative_to(ROOT)) for path in ROOT.glob("docs/*.md")}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_link_and_picture_of_a_page_exists(page):
    links = re.findall(r"\]\(([^)#\s]+)\)", PAGES[page])
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


def test_every_path_named_in_a_page_exists():
    named = set(re.findall(r"`([\w./-]+/|[\w./-]+\.(?:py|md|txt|json|sh))[`:]", ALL))
    of_a_user = {
        "config.json",
        "run.json",
        "not_finite.json",
        "images/",
        "my_rewards.py",
        "reward.py",
        "verifier.json",
    }
    of_a_user |= {"abandoned_step_N/"}
    named = {n for n in named - of_a_user if not n.startswith(("runs/", "step_N/"))}
    folders = ("", "benchmarks", "reporting", "training")  # may be named once for their files
    missing = [n for n in named if not any((ROOT / folder / n).exists() for folder in folders)]
    assert len(named) > 30 and missing == []


def test_every_function_named_in_a_page_exists():
    named = re.findall(r"`([\w/]+)\.py:(\w+)`", ALL)
    assert len(named) >= 6
    for module, function in named:
        assert hasattr(importlib.import_module(module.replace("/", ".")), function), function


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_flag_of_a_printed_command_is_a_flag_of_that_script(script):
    lines = [re.sub(r"^torchrun .*?(?=\w+\.py)", "python ", line) for line in COMMANDS.splitlines()]
    commands = [line for line in lines if line.startswith(f"python {script}")]
    assert commands
    for command in commands:
        assert set(re.findall(r"--(?:no-)?([a-z_]+)", command)) <= fields(SCRIPTS[script]), command


def test_every_flag_mentioned_anywhere_belongs_to_some_script():
    known = set().union(*map(fields, SCRIPTS.values()))
    assert set(re.findall(r"`--(?:no-)?([a-z_]+)", ALL)) <= known


def test_line_counts_of_the_reading_order_are_close():
    rows = re.findall(r"^\| `([\w/]+\.py)` \| (\d+) \|", README, re.MULTILINE)
    for name, count in rows:
        real = len((ROOT / name).read_text(encoding="utf-8").splitlines())
        assert abs(real - int(count)) <= 0.1 * real + 5, f"{name}: {count} claimed, {real} real"
    lines = int(re.search(r"thirteen files, ([\d,]+) lines", README)[1].replace(",", ""))
    assert len(rows) == 13 and abs(sum(int(count) for _, count in rows) - lines) < 100


def test_the_metrics_table_has_the_bounds_of_the_reports_traffic_lights():
    table = PAGES[ROOT / "docs" / "metrics.md"]
    for metric, (green, red) in BOUNDS.items():
        name = metric.split("/mean")[0]
        row = next(line for line in table.splitlines() if line.startswith("|") and name in line)
        healthy = row.split("|")[-2]
        assert f" below {green:g} " in healthy and f"red: above {red:g})" in healthy, metric
    assert f"above {RARELY_RIGHT:g} (red: always 0)" in table


@pytest.mark.parametrize("page, heading", [("README.md", "## Results"), ("docs/sft.md", "#")])
def test_numbers_of_the_tables_stand_in_results_md(page, heading):
    results = (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
    table = PAGES[ROOT / page].split(heading, 1)[1].split("\n## ")[0]
    numbers = re.findall(r"\d+\.\d(?= %| ·| \|)", table)
    assert len(numbers) >= 20
    assert [number for number in numbers if number not in results] == []
