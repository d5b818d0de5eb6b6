"""A run's directory, read back: `read_run`, which any page, table or script can start from.

Next: reporting/page/verdict.py.
"""

import json
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import config
from config import TrainConfig
from reporting.page.curves import COLOURS
from reporting.verdict import Light, brief_rise, lights, verdict
from runtime.errors import InputError
from runtime.run_directory import last_model
from tasks import TASKS, reads

MAX_FACTS = 20
MAX_CHARS = 2000  # shown of a question, a target or a setting


def shortened(value: object) -> str:
    text = str(value)
    return text if len(text) <= MAX_CHARS else f"{text[:MAX_CHARS]} …"


@dataclass
class Run:
    directory: Path
    settings: dict
    about: dict  # run.json
    rows: list[dict]  # metrics.jsonl
    gallery: list[dict]  # gallery.jsonl
    label: str = ""
    colour: str = COLOURS[0]

    @property
    def summary(self) -> str:
        """What was trained how, where and when."""
        task, is_sft = self.settings["task"], "cot" in self.settings
        parts = ["supervised fine-tuning" if is_sft else "GRPO"]
        has_shots = task in TASKS and reads(task, "shots")
        parts += [f"--task {task}" + (f" --shots {self.settings['shots']}" if has_shots else "")]
        parts += [Path(self.settings["model"]).name]
        if "parameters" in self.about:
            parts += [f"{self.about['parameters'] / 1e6:.1f} M parameters"]
        parts += [str(self.about[name]) for name in ("device", "started") if name in self.about]
        return shortened(" · ".join(parts))

    @property
    def changed_flags(self) -> list[str]:
        """Names of the settings that differ from their defaults."""
        names = self.about.get("changed_flags")
        return names if isinstance(names, list) else []

    @property
    def headline(self) -> str:
        return str(self.about.get("headline", "strict"))

    @cached_property
    def verdict(self) -> str:
        return verdict(self.rows, self.headline, self.settings.get("max_steps", 0))

    @property
    def brief(self) -> str:
        """The run for the title of a window: task, rise and name."""
        found = [str(self.settings["task"]), brief_rise(self.rows, self.headline)]
        return f"{' '.join(filter(None, found))} · {self.label}"

    @cached_property
    def lights(self) -> list[Light]:
        skipped = self.about.get("skipped")
        return lights(self.rows, self.headline, skipped)

    @property
    def command(self) -> str:
        return shortened(self.about.get("command", "not known: run.json is missing"))

    @property
    def checkpoint(self) -> str | None:
        """The last model, quoted for a shell."""
        last = last_model(self.directory)
        return None if last is None else shlex.quote(str(last))

    @property
    def facts(self) -> list[tuple[str, str]]:
        """Versions, seed, commit, and the fingerprints of the data."""
        about, versions = self.about, self.about.get("versions", {})
        found = [
            ("commit", about.get("commit") or "not a git checkout"),
            ("seed", self.settings.get("seed")),
            ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ]
        for name, split in about.get("data", {}).items():
            found.append(
                (f"data: {name}", f"{split['examples']} examples, sha256 {split['sha256']}")
            )
        return [(shortened(name), shortened(value)) for name, value in found[:MAX_FACTS]]


def read_run(directory: Path) -> Run:
    """Read what a run left. Raises InputError for a directory that is no run."""
    directory = Path(directory)
    path = directory / "config.json"
    known = config.to_dict(config.load(TrainConfig, path, strict=False))
    settings = known | config.read_settings(path)
    about_path = directory / "run.json"
    about = {}
    if about_path.is_file():
        try:
            about = json.loads(about_path.read_text(encoding="utf-8"))
            if not isinstance(about, dict):
                raise ValueError("not an object")
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{about_path}: cannot be read as JSON ({error})") from None
    rows, gallery = (list(_json_lines(directory / f"{n}.jsonl")) for n in ("metrics", "gallery"))
    return Run(directory, settings, about, rows, gallery, label=directory.resolve().name)


def _json_lines(path: Path) -> Iterable[dict]:
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
