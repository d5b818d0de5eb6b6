"""A run's directory, read back: `read_run`, which any page, table or script can start from.

What a model or a data set said may hold anything; `visible` spells out the characters that would
vanish or turn the direction of a page. Next: reporting/verdict.py.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import config
from model.errors import InputError
from reporting.curves import COLOURS
from reporting.verdict import Light, lights, verdict

MAX_CHARS = 2000  # shown of a question, a target or a setting
# Control characters and those that turn the direction of writing: shown as what they are.
UNSEEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]"
)


def visible(text: str) -> str:
    """The text with every invisible or direction-turning character spelt out."""
    return UNSEEN.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", text)


def shortened(value: object) -> str:
    text = visible(str(value))
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
    def task(self) -> str:
        kind = "supervised fine-tuning" if "cot" in self.settings else "GRPO"
        return f"{kind}, --task {self.settings['task']} --shots {self.settings['shots']}"

    @property
    def model(self) -> str:
        return f"{self.about.get('parameters', 0) / 1e6:.1f} M parameters"

    @property
    def device(self) -> str:
        return str(self.about.get("device", "unknown device"))

    @property
    def started(self) -> str:
        return str(self.about.get("started", ""))

    @property
    def headline(self) -> str:
        return str(self.about.get("headline", "strict"))

    @cached_property
    def verdict(self) -> str:
        return verdict(self.rows, self.headline, self.settings.get("max_steps", 0))

    @cached_property
    def lights(self) -> list[Light]:
        return lights(self.rows, self.headline, self.about.get("skipped", []))

    @property
    def command(self) -> str:
        return shortened(self.about.get("command", ""))

    @property
    def checkpoint(self) -> Path | None:
        saved = [p for p in self.directory.glob("step_*/hf") if p.parent.name[5:].isdigit()]
        return max(saved, key=lambda path: int(path.parent.name[5:]), default=None)

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
        return [(name, shortened(value)) for name, value in found]


def read_run(directory: Path) -> Run:
    """Read what a run left. Raises InputError for a directory that is no run."""
    directory = Path(directory)
    settings = config.to_dict(config.load_run(directory / "config.json"))
    about_path = directory / "run.json"
    about = {}
    if about_path.is_file():
        try:
            about = json.loads(about_path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{about_path}: cannot be read as JSON ({error})") from None
    rows, gallery = (list(_json_lines(directory / f"{n}.jsonl")) for n in ("metrics", "gallery"))
    return Run(directory, settings, about, rows, gallery, label=directory.name)


def _json_lines(path: Path) -> Iterable[dict]:
    """The rows of a file that may still be written: a torn last line is not there yet."""
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, start=1):
        try:
            if line:
                yield json.loads(line)
        except ValueError:
            if number < len(lines):
                raise InputError(f"{path}:{number}: not a line of JSON; remove it") from None
