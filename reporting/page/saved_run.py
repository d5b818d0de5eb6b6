"""A run's directory, read back: `read_run`, which any page, table or script can start from.

Next: reporting/verdict.py.
"""

import json
import re
import shlex
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import config
from acting.environment import COUNTED
from acting.lookup import Lookup
from acting.walk import Walk
from answers import parse_answer
from config import TrainConfig
from reporting.lights import Light, lights
from reporting.verdict import RIGHT, beside, column, of_file, tail_length, verdict
from runtime.errors import InputError
from runtime.run_directory import FAULT_LOG, is_running, last_model

# Parts of the reward of completions that act: logged, not paid.
UNPAID = {*COUNTED, *Lookup.weights, *Walk.weights}


def last_turn(completion: dict) -> str:
    """The text of a completion of the gallery, behind what it was shown last."""
    turns = completion.get("turns") or [{"at": 0}]
    return "".join(completion["tokens"][turns[-1]["at"] :])


@dataclass
class Run:
    directory: Path
    settings: dict  # config.json
    about: dict  # run.json
    rows: list[dict]  # metrics.jsonl
    gallery: list[dict]  # gallery.jsonl
    faults: list[dict] = field(default_factory=list)  # reward_faults.jsonl
    label: str = ""

    @property
    def headline(self) -> str:
        """The held-out metric of the task, without its "eval/"."""
        return str(self.about.get("headline", "strict"))

    @property
    def verdict(self) -> str:
        """A few sentences on how the run went."""
        about = self.reward, self.common_answer, is_running(self.directory)
        return verdict(self.rows, self.headline, self.settings["max_steps"], *about)

    @property
    def lights(self) -> list[Light]:
        """The traffic lights of the page."""
        return lights(self.rows, self.headline, self.about.get("skipped"), self.reward)

    @property
    def reward(self) -> str | None:
        """The --reward, None where the task's own is paid."""
        reward = self.settings.get("reward")
        return reward if isinstance(reward, str) else None

    @property
    def beside(self) -> str:
        """The metric that goes beside the headline metric, from the start to now; "" for none."""
        rows = [row for row in self.rows if f"eval/{self.headline}" in row]
        return beside(rows[0], rows[-1], self.headline) if len(rows) > 1 else ""

    @property
    def formula(self) -> str:
        """What is paid, as a sum of parts: "correct + 0.5 x format"; "" where nothing is."""
        names = dict.fromkeys(name for row in self.rows for name in row)
        parts = [
            match[1] for match in map(re.compile("rewards/(.*)/mean").fullmatch, names) if match
        ]
        terms = []
        for part in parts:
            if part in UNPAID or (part == "look_bonus" and self.reward):
                continue
            flag = "correct_weight" if part in RIGHT else f"{part}_weight"
            flag = {"learned": "reward_model_weight", "look_bonus": "look_bonus"}.get(part, flag)
            weight = self.settings.get(flag, 1)
            name = of_file(self.reward) if part == "user" else part
            if part == "kl":  # --kl_in_reward
                weight = -self.settings.get("beta", 0)
            terms.append(str(name) if weight == 1 else f"{weight} x {name}")
        return " + ".join(terms).replace("+ -", "- ")

    @property
    def resumed_after(self) -> list[int]:
        """The steps after which the run was resumed."""
        steps = self.about.get("resumed_after")
        return [step for step in steps if type(step) is int] if isinstance(steps, list) else []

    @property
    def window(self) -> int:
        """How many steps the lights, and the lines of the curves, are means of."""
        return tail_length(len(column(self.rows, "loss") or column(self.rows, "reward")))

    @property
    def common_answer(self) -> str | None:
        """What most completions of the last held-out gallery answer; None if they differ."""
        rows = [row for row in self.gallery if row["view"] == "held_out"]
        texts = [
            last_turn(completion)
            for row in rows
            if row["step"] == rows[-1]["step"]
            for completion in row["completions"]
        ]
        most = Counter(map(parse_answer, texts)).most_common(1)
        return most[0][0] if most and most[0][1] > len(texts) / 2 else None

    @property
    def model_flags(self) -> str | None:
        """How to name the last model on a command line; None if there is none."""
        last = last_model(self.directory)
        if last is None or last.name != "adapter":
            return last and f"--model {shlex.quote(str(last))}"
        base = shlex.quote(str(self.settings["model"]))
        return f"--model {base} --adapter {shlex.quote(str(last))}"


def read_run(directory: Path) -> Run:
    """Read a run's directory. Raises InputError for a directory that is no run."""
    path, about_path = directory / "config.json", directory / "run.json"
    defaults = config.to_dict(config.load(TrainConfig, path, strict=False))
    settings = defaults | config.read_settings(path)
    about = config.read_settings(about_path) if about_path.is_file() else {}
    rows, gallery = (list(json_lines(directory / f"{n}.jsonl")) for n in ("metrics", "gallery"))
    faults = list(json_lines(directory / FAULT_LOG))
    for number, row in enumerate(rows, start=1):
        numbers = all(isinstance(value, int | float) for value in row.values())
        if not numbers or type(row.get("step")) is not int:
            where = directory / "metrics.jsonl"
            raise InputError(f"{where}: row {number} is no row of metrics; remove it")
    return Run(directory, settings, about, rows, gallery, faults, directory.resolve().name)


def json_lines(path: Path) -> Iterable[dict]:
    """The rows of a file that may still be written: a torn last line is not there yet."""
    if not path.is_file():
        return
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line) if line else {}
            if not isinstance(row, dict):
                raise ValueError
        except (ValueError, RecursionError):
            if number < len(lines):
                raise InputError(f"{path}:{number}: not a row of JSON; remove it") from None
            return
        if row:
            yield row
