"""The gallery as the page shows it: which snapshots, in which columns, every token with its tint.

Next: reporting/page.html.
"""

import base64
import html
import io
import re
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from answers import THOUGHTS
from reporting.saved import Run, shortened, visible

MAX_TOKENS = 400  # shown of one completion
VIEWS = (
    ("best", "Best groups of training steps", "The highest mean reward of the step."),
    ("worst", "Worst groups of training steps", "The lowest mean reward of the step."),
    ("no_spread", "Groups without spread", "All rewards are equal, so the group teaches nothing."),
    ("no_answer", "Answers that cannot be read", "The group with most of them in the step."),
)
TAGS = re.compile("|".join(f"</?{name}>" for name in (*THOUGHTS, "answer")))


@dataclass(frozen=True)
class Picture:
    key: str
    width: int
    height: int
    uri: str


@dataclass
class Group:
    """One question with its completions: one column per snapshot, or per run."""

    id: str
    question: str
    target: str
    boxes: list | None
    pictures: list[Picture]
    columns: list[tuple[str, list[dict]]]


class Pictures:
    """Every picture is stored once in the page, however often it is shown."""

    def __init__(self):
        self.by_key: dict[str, Picture] = {}

    def of(self, directory: Path, names: list[str]) -> list[Picture]:
        found = []
        for name in names:
            if not re.fullmatch(r"images/[0-9a-f]{16}\.jpg", name):  # nothing outside of the run
                continue
            key = f"i{name[7:23]}"
            if key not in self.by_key:
                try:
                    data = (directory / name).read_bytes()
                    width, height = Image.open(io.BytesIO(data)).size
                except OSError:  # the picture is gone: the text is still worth reading
                    continue
                uri = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
                self.by_key[key] = Picture(key, width, height, uri)
            found.append(self.by_key[key])
        return found


def pieces(tokens: list[str], probabilities: list[float]) -> list[tuple[str, list]]:
    """Tokens in runs of one kind ("thought", "answer", "tag", "plain"), each with its tint.

    The tint is the tenth that the token's probability lies in, None for the likeliest tenth. A
    token belongs where its first character stands.
    """
    whole, kinds, at, kind = "".join(tokens), [], 0, "plain"
    for found in TAGS.finditer(whole):
        kinds += [kind] * (found.start() - at) + ["tag"] * (found.end() - found.start())
        at, is_open = found.end(), not found[0].startswith("</")
        kind = ("answer" if "answer" in found[0] else "thought") if is_open else "plain"
    kinds += [kind] * (len(whole) - at + 1)
    made, at = [], 0
    for text, probability in zip(tokens, probabilities, strict=True):
        tint = min(int(10 * probability), 9)
        if not made or made[-1][0] != kinds[at]:
            made.append((kinds[at], []))
        made[-1][1].append((visible(text), None if tint == 9 else tint))
        at += len(text)
    return made


def _completion(raw: dict) -> dict:
    """A completion as the page shows it."""
    tokens, probabilities = raw["tokens"], raw["probabilities"]
    return {
        "reward": raw["reward"],
        "parts": [(visible(name), value) for name, value in raw["parts"].items()],
        "advantage": raw["advantage"],
        "finish": raw["finish"],
        "has_answer": raw["has_answer"],
        "pieces": pieces(tokens[:MAX_TOKENS], probabilities[:MAX_TOKENS]),
        "hidden_tokens": max(0, len(tokens) - MAX_TOKENS),
        "boxes": raw.get("boxes"),
        "heat": raw.get("heat") or [],
    }


def _group(run: Run, pictures: Pictures, row: dict, columns: list[tuple[str, dict]]) -> Group:
    return Group(
        shortened(row["id"]),
        shortened(row["question"]),
        shortened(row["target"]),
        row["boxes"],
        pictures.of(run.directory, row["images"]),
        [(heading, [_completion(c) for c in r["completions"]]) for heading, r in columns],
    )


def spread_out(steps: list[int]) -> list[int]:
    """The steps in the order of their worth for a reader: last, first, then halves of the gaps."""
    if len(steps) <= 2:
        return steps[::-1]
    ordered, gaps = [steps[-1], steps[0]], [(0, len(steps) - 1)]
    while gaps:
        low, high = gaps.pop(0)
        if high - low > 1:
            middle = (low + high) // 2
            ordered.append(steps[middle])
            gaps += [(low, middle), (middle, high)]
    return ordered


def _bytes_shown(row: dict) -> int:
    """About what a row of the gallery takes in the page, but for its pictures."""
    shown = 1000
    for completion in row["completions"]:
        tokens = completion["tokens"][:MAX_TOKENS]
        shown += 600 + sum(len(html.escape(visible(text)).encode()) + 22 for text in tokens)
        shown += 150 * sum(map(len, completion.get("heat") or []))
        shown += 120 * len(completion.get("boxes") or [])
    return shown


def shown_steps(run: Run, budget: int) -> tuple[list[int], str]:
    """The snapshots that fit the budget of bytes, and a word about those that do not."""
    sizes: dict[int, int] = {}
    for row in run.gallery:
        pictures = (run.directory / name for name in row["images"])
        weight = sum(path.stat().st_size * 4 // 3 for path in pictures if path.is_file())
        sizes[row["step"]] = sizes.get(row["step"], 0) + _bytes_shown(row) + weight
    chosen, used = [], 0
    for step in spread_out(sorted(sizes)):
        if used + sizes[step] <= budget:
            chosen.append(step)
            used += sizes[step]
    missing = len(sizes) - len(chosen)
    said = f"{missing} of {len(sizes)} snapshots are left out, to keep this page small."
    return sorted(chosen), said if missing else ""


def questions_shown(runs: list[Run], pictures: Pictures, steps: list[list[int]]) -> list[Group]:
    """The fixed questions: a column per snapshot of one run, or per run's last snapshot."""
    columns: dict[tuple[str, str], list[tuple[str, dict, Run]]] = {}
    for run, chosen in zip(runs, steps, strict=True):
        for row in run.gallery:
            if row["view"] != "held_out" or row["step"] not in chosen:
                continue
            if len(runs) == 1:
                heading = "start" if row["step"] == 0 else f"step {row['step']}"
            elif row["step"] == max(chosen):
                heading = f"{run.label}, step {row['step']}"
            else:
                continue
            columns.setdefault((row["id"], row["question"]), []).append((heading, row, run))
    return [
        _group(own[0][2], pictures, own[0][1], [(heading, row) for heading, row, _ in own])
        for own in columns.values()
    ]


def views_shown(run: Run, pictures: Pictures, steps: list[int]) -> list[tuple[str, str, str, list]]:
    """The telling groups of the training steps, the newest first."""
    made = []
    for view, name, what in VIEWS:
        rows = [r for r in run.gallery if r["view"] == view and r["step"] in steps]
        groups = [_group(run, pictures, row, [(f"step {row['step']}", row)]) for row in rows[::-1]]
        if groups:
            made.append((view, name, what, groups))
    return made
