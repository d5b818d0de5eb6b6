"""The gallery as the page shows it: which snapshots, in which columns, every token with its tint.

Next: reporting/page/page.html.
"""

import base64
import html
import io
import re
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from answers import THOUGHTS
from reporting.page.saved_run import Run, shortened
from runtime.errors import visible

# What is shown of a group at most: (tokens of a completion, different completions). The first pair
# that lets the first and the last snapshot into the page is taken.
LIMITS = ((400, 64), (200, 32), (100, 16), (50, 8), (20, 4))
MAX_COLUMNS = 6  # side by side in the page; of more, all but the start and the end are folded
MAX_BOXES = 50  # right ones that are drawn
MAX_HEAT = 2500  # cells of a heat map
MAX_PICTURE_BYTES = 10**6
VIEWS = (
    (
        "best",
        "Best groups of training steps",
        "The highest mean reward of the step, among groups whose answers earned differently.",
    ),
    (
        "worst",
        "Worst groups of training steps",
        "The lowest mean reward of the step, among groups whose answers earned differently.",
    ),
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


MISSING = Picture("missing", 256, 192, "")  # an empty place


@dataclass
class Group:
    """One question with its completions: one column per snapshot, or per run.

    columns: (heading, completions). between: further ones, which the page folds away.
    """

    id: str
    question: str
    target: str
    boxes: list | None
    pictures: list[Picture]
    columns: list[tuple[str, list[dict]]]
    between: list[tuple[str, list[dict]]] = field(default_factory=list)


class Pictures:
    """Every picture is stored once in the page, however often it is shown."""

    def __init__(self):
        self.by_key: dict[str, Picture] = {}

    def of(self, directory: Path, names: list[str]) -> list[Picture]:
        found = []
        for name in names:
            key = f"i{name[7:23]}"
            if key not in self.by_key and (made := self._read(directory, name, key)):
                self.by_key[key] = made
            found.append(self.by_key.get(key, MISSING))
        return found

    def _read(self, directory: Path, name: str, key: str) -> Picture | None:
        """None for what is no picture of this run: the text is still worth reading."""
        path = directory / name
        if not re.fullmatch(r"images/[0-9a-f]{16}\.jpg", name) or path.is_symlink():
            return None
        try:
            if not path.is_file() or path.stat().st_size > MAX_PICTURE_BYTES:
                return None
            data = path.read_bytes()
            width, height = Image.open(io.BytesIO(data)).size
        except (OSError, Image.DecompressionBombError):
            return None
        uri = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
        return Picture(key, width, height, uri)


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
        tint = max(0, min(int(10 * probability), 9))
        if not made or made[-1][0] != kinds[at]:
            made.append((kinds[at], []))
        made[-1][1].append((text, None if tint == 9 else tint))
        at += len(text)
    return made


def distinct(completions: list[dict], at_most: int) -> list[tuple[dict, list[tuple[int, dict]]]]:
    """Each different completion once, the most frequent first: (it, its scores with their counts).

    The same text has one score, unless a reward of the user's looks at more than the text.
    """
    of_text: dict[tuple, list[dict]] = {}
    for raw in completions:
        of_text.setdefault((*raw["tokens"], raw["finish"]), []).append(raw)
    made = []
    for same in sorted(of_text.values(), key=len, reverse=True)[:at_most]:
        scores: dict[tuple, list[dict]] = {}
        for raw in same:
            score = (raw["reward"], raw["advantage"], *raw["parts"].items())
            scores.setdefault(score, []).append(raw)
        counted = [(len(own), own[0]) for own in scores.values()]
        made.append((same[0], counted[:at_most]))
    return made


def _completion(raw: dict, scores: list[tuple[int, dict]], max_tokens: int) -> dict:
    """A completion as the page shows it."""
    tokens, probabilities, heat = raw["tokens"], raw["probabilities"], raw.get("heat") or []
    return {
        "scores": [
            (count, own["reward"], list(own["parts"].items()), own["advantage"])
            for count, own in scores
        ],
        "advantage": sum(count * own["advantage"] for count, own in scores),
        "finish": raw["finish"],
        "has_answer": raw["has_answer"],
        "pieces": [  # a block that could not be read is no answer, and gets no box
            ("plain" if kind == "answer" and not raw["has_answer"] else kind, own)
            for kind, own in pieces(tokens[:max_tokens], probabilities[:max_tokens])
        ],
        "hidden_tokens": max(0, len(tokens) - max_tokens),
        "boxes": raw.get("boxes"),
        "heat": heat if sum(map(len, heat)) <= MAX_HEAT else [],
    }


def _group(run: Run, pictures: Pictures, shown: "Shown", columns: list[tuple[str, dict]]) -> Group:
    row, (max_tokens, max_completions) = columns[0][1], shown.limits
    made = [
        (
            heading,
            [_completion(*own, max_tokens) for own in distinct(r["completions"], max_completions)],
        )
        for heading, r in columns
    ]
    return Group(
        shortened(row["id"]),
        shortened(row["question"]),
        shortened(row["target"]),
        (row["boxes"] or [])[:MAX_BOXES] if row["boxes"] is not None else None,
        pictures.of(run.directory, row["images"]),
        made,
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


@dataclass(frozen=True)
class Shown:
    """What of a run's gallery goes into a page of limited size."""

    steps: list[int]
    limits: tuple[int, int]
    left_out: str  # a sentence about the rest, if there is any


def _bytes_shown(row: dict, limits: tuple[int, int]) -> int:
    """About what a row of the gallery takes in the page, but for its pictures."""
    (max_tokens, max_completions), shown = limits, 2000
    shown += 3 * sum(len(shortened(row[name])) for name in ("id", "question", "target"))
    for completion, scores in distinct(row["completions"], max_completions):
        kinds = pieces(completion["tokens"][:max_tokens], completion["probabilities"][:max_tokens])
        texts = [text for _, tokens in kinds for text, _ in tokens]
        shown += 500 + 200 * len(scores) + 30 * len(kinds)
        plain = html.escape(visible("".join(texts))).encode("utf-8", "replace")
        shown += len(plain) + 22 * len(texts)
        cells = sum(map(len, completion.get("heat") or []))
        shown += 150 * cells if cells <= MAX_HEAT else 0
        boxes = len(completion.get("boxes") or []) + len((row["boxes"] or [])[:MAX_BOXES])
        shown += 110 * boxes
    return shown


def what_fits(run: Run, budget: int, only_last: bool = False) -> Shown:
    """Choose snapshots and limits for a budget of bytes: the ends first, then the gaps in halves.

    only_last: of the fixed questions alone, the last snapshot (where runs stand side by side).
    """
    rows = [row for row in run.gallery if not only_last or row["view"] == "held_out"]
    steps = sorted({row["step"] for row in rows})
    steps = steps[-1:] if only_last else steps
    for limits in LIMITS:
        chosen, used, seen = [], 0, set()
        for step in spread_out(steps):
            own = [row for row in rows if row["step"] == step]
            files = {name for row in own for name in row["images"]} - seen
            own_pictures = Pictures()
            size = sum(len(picture.uri) for picture in own_pictures.of(run.directory, list(files)))
            size += sum(_bytes_shown(row, limits) for row in own)
            if used + size <= budget:
                chosen, used, seen = [*chosen, step], used + size, seen | files
        if set(spread_out(steps)[:2]) <= set(chosen):
            break
    missing = len(steps) - len(chosen)
    said = f"{run.label}: {missing} of {len(steps)} snapshots are left out to keep this page small."
    return Shown(sorted(chosen), limits, said if missing else "")


def questions_shown(runs: list[Run], pictures: Pictures, shown: list[Shown]) -> list[Group]:
    """The fixed questions: a column per snapshot of one run, or per run's last snapshot."""
    columns: dict[tuple, list[tuple[str, dict, Run, Shown]]] = {}
    for run, own in zip(runs, shown, strict=True):
        for row in run.gallery:
            if row["view"] == "held_out" and row["step"] in own.steps:
                heading = "start" if row["step"] == 0 else f"step {row['step']}"
                heading = heading if len(runs) == 1 else f"{run.label}, {heading}"
                key = (row["id"], row["question"], row["target"], *row["images"])
                columns.setdefault(key, []).append((heading, row, run, own))
    groups = [
        _group(found[0][2], pictures, found[0][3], [(heading, row) for heading, row, *_ in found])
        for found in columns.values()
    ]
    for group in groups if len(runs) == 1 else []:
        if len(group.columns) > MAX_COLUMNS:  # the start and the end stand side by side
            group.between = group.columns[1:-1]
            group.columns = [group.columns[0], group.columns[-1]]
    return groups


def views_shown(run: Run, pictures: Pictures, shown: Shown) -> list[tuple[str, str, list[Group]]]:
    """The telling groups of the training steps, the newest first: (name, what, groups)."""
    made = []
    for view, name, what in VIEWS:
        rows = [r for r in run.gallery if r["view"] == view and r["step"] in shown.steps]
        groups = [
            _group(run, pictures, shown, [(f"step {row['step']}", row)]) for row in rows[::-1]
        ]
        if groups:
            made.append((name, what, groups))
    return made
