"""The rollouts as the page shows them: which snapshots, in which columns, and each token's tint.

A snapshot is what the gallery holds of one step. Next: reporting/page/page.html.
"""

import base64
import io
import re
from collections import Counter, defaultdict
from itertools import accumulate, groupby
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from answers import TAGS, why_no_answer
from reporting.lights import LEAST_ADVANTAGE
from reporting.page.saved_run import Run, last_turn

MAX_BOXES = 50  # drawn of a target or a completion
MAX_HEAT = 2500  # cells of a heat map
MAX_PICTURE_BYTES = 10**6
VIEWS = (
    ("best", "Best groups", "Of each step shown, the highest mean reward."),
    ("worst", "Worst groups", "Of each step shown, the lowest mean reward."),
    ("zero_std", "Zero-std groups", "All rewards are equal: no advantage, nothing is learnt."),
    ("no_answer", "Unreadable answers", "Of each step shown, the group with the most of them."),
    ("lost", "Lost rewards", "Of each step shown, the most completions without a reward."),
)
TAG = re.compile(f"({'|'.join(TAGS)})")


class Limits(NamedTuple):
    """How much of the rollouts a page shows at most."""

    snapshots: int  # the first, the last, and evenly spaced ones between
    questions: int  # held out
    completions: int  # different ones of a group
    tokens: int  # of a completion


# A page takes the first that keep it small enough. The last leave all rollouts out.
LIMITS = (
    Limits(snapshots=4, questions=100, completions=64, tokens=400),
    Limits(snapshots=2, questions=100, completions=16, tokens=400),
    Limits(snapshots=2, questions=16, completions=8, tokens=100),
    Limits(snapshots=2, questions=4, completions=4, tokens=20),
    Limits(snapshots=0, questions=0, completions=0, tokens=0),
)


class Picture(NamedTuple):
    key: str  # its element's id: a page holds every picture once
    width: int
    height: int
    uri: str


MISSING = Picture("missing", 256, 192, "")  # an empty place


def read_picture(directory: Path, name: str) -> Picture:
    """A picture of the gallery; MISSING for what is none, since the text is still worth reading."""
    path = directory / name
    if not re.fullmatch(r"images/[0-9a-f]{16}\.jpg", name) or path.is_symlink():
        return MISSING
    try:
        if not path.is_file() or path.stat().st_size > MAX_PICTURE_BYTES:
            return MISSING
        return embedded(path.stem, path.read_bytes())
    except (OSError, Image.DecompressionBombError):
        return MISSING


def embedded(name: str, jpeg: bytes) -> Picture:
    """A picture inside a page; OSError for what is none."""
    width, height = Image.open(io.BytesIO(jpeg)).size
    uri = f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
    return Picture(f"i{name}", width, height, uri)


def pieces(tokens: list[str], probabilities: list[float]) -> list[tuple[str, list]]:
    """The text in pieces of one kind ("thought", "answer", "tag", "plain"): (kind, [(text, tint)]).

    The tint is the tenth that a token's probability lies in, 0 .. 9. A token has the kind of its
    first character; neighbours of one kind and tint are joined.
    """
    kinds, kind = [], "plain"  # kinds: of every character
    for part in TAG.split("".join(tokens)):  # tags, and the text between them
        if TAG.fullmatch(part):
            kinds += ["tag"] * len(part)
            kind = "answer" if part == "<answer>" else "thought"
            kind = "plain" if part.startswith("</") else kind
        else:
            kinds += [kind] * len(part)
    kinds.append(kind)  # of tokens without text at the end
    starts = accumulate(map(len, tokens), initial=0)
    tints = [max(0, min(int(10 * p), 9)) for p in probabilities]
    triples = [(kinds[s], tint, t) for s, tint, t in zip(starts, tints, tokens, strict=False)]
    texts = []
    for kind, run in groupby(triples, key=itemgetter(0)):
        tinted = groupby(run, key=itemgetter(1))
        texts.append((kind, [("".join(t for *_, t in same), tint) for tint, same in tinted]))
    return texts


def distinct(completions: list[dict]) -> list[tuple[dict, list[tuple]]]:
    """Each different completion once, the most frequent first, with its scores.

    A score is (count, reward, advantage, parts). The same text has one, unless a --reward looks at
    more than the text.
    """
    first, scores = {}, defaultdict(Counter)
    for completion in completions:
        text = (*completion["tokens"], completion["finish"])
        first.setdefault(text, completion)
        score = completion["reward"], completion["advantage"], tuple(completion["parts"].items())
        scores[text][score] += 1
    ordered = sorted(first, key=lambda text: -scores[text].total())
    return [(first[text], [(n, *score) for score, n in scores[text].items()]) for text in ordered]


def with_turns(
    tokens: list[str], probabilities: list[float], turns: list[dict], directory: Path
) -> list[tuple[str, list]]:
    """`pieces` of the tokens between the turns, each followed by what was shown there: ("shown",
    texts and pictures)."""
    found, start = [], 0
    for turn in [*turns, None]:
        stop = len(tokens) if turn is None else min(turn["at"], len(tokens))
        found += pieces(tokens[start:stop], probabilities[start:stop])
        start = stop
        if turn is not None and turn["at"] <= len(tokens):
            parts = [
                part if isinstance(part, str) else read_picture(directory, part["image"])
                for part in turn["parts"]
            ]
            found.append(("shown", parts))
    return found


def _completion(completion: dict, scores: list[tuple], max_tokens: int, directory: Path) -> dict:
    """A completion as the page shows it."""
    tokens, heat = completion["tokens"], completion.get("heat") or []
    turns = completion.get("turns") or []
    shortened = (tokens[:max_tokens], completion["probabilities"][:max_tokens])
    parts = with_turns(*shortened, turns, directory)
    regions = [turn["region"] for turn in turns if turn["region"]]
    if not completion["has_answer"]:  # an answer that cannot be parsed gets no border
        parts = [("plain" if kind == "answer" else kind, tinted) for kind, tinted in parts]
    return completion | {
        "scores": scores,
        "advantage": sum(count * advantage for count, _, advantage, _ in scores),
        "pieces": parts,
        "fault": why_no_answer(last_turn(completion)) or "no answer block",
        "hidden_tokens": max(0, len(tokens) - max_tokens),
        "boxes": (regions or completion.get("boxes") or [])[:MAX_BOXES],
        "heat": heat if sum(map(len, heat)) <= MAX_HEAT else [],
    }


def _group(columns: list[tuple[str, dict, Path]], limits: Limits) -> dict:
    """A question as the page shows it. columns: (heading, row, directory of the run) of each."""
    (_, first, directory), contents = columns[0], []
    for heading, row, place in columns:
        pairs = distinct(row["completions"])
        completions = [
            _completion(*pair, limits.tokens, place) for pair in pairs[: limits.completions]
        ]
        contents.append((heading, completions, len(pairs) - len(completions)))
    pictures = [read_picture(directory, name) for name in first["images"]]
    boxes = (first["boxes"] or [])[:MAX_BOXES]
    pieces_of_all = [c["pieces"] for _, completions, _ in contents for c in completions]
    shown = [
        part for parts in pieces_of_all for kind, seen in parts if kind == "shown" for part in seen
    ]
    shown = [part for part in shown if isinstance(part, Picture)]
    return first | {"columns": contents, "pictures": pictures, "boxes": boxes, "shown": shown}


def teaches(row: dict) -> bool:
    """Whether a completion of the group has an advantage that the page does not show as 0.00."""
    return any(abs(completion["advantage"]) >= LEAST_ADVANTAGE for completion in row["completions"])


def snapshots(run: Run, view: str, at_most: int) -> list[dict]:
    """The rows of a view at evenly spaced steps, the last and the first among them."""
    rows = [row for row in run.gallery if row["view"] == view]
    if view in ("best", "worst"):  # the galleries of older versions hold others, too
        rows = [row for row in rows if teaches(row)]
    steps = sorted({row["step"] for row in rows}, reverse=True)
    count = min(at_most, len(steps))
    spread = {steps[i * (len(steps) - 1) // max(1, count - 1)] for i in range(count)}
    return [row for row in rows if row["step"] in spread]


def held_out_groups(runs: list[Run], limits: Limits) -> list[dict]:
    """The held-out questions, with a column per snapshot."""
    columns: dict[tuple, list[tuple[str, dict, Path]]] = {}
    for run in runs:
        for row in snapshots(run, "held_out", limits.snapshots):
            heading = "start" if row["step"] == 0 else f"step {row['step']}"
            heading = heading if len(runs) == 1 else f"{run.label}, {heading}"
            key = (row["id"], row["question"], row["target"], *row["images"])
            columns.setdefault(key, []).append((heading, row, run.directory))
    return [_group(group, limits) for group in list(columns.values())[: limits.questions]]


def training_groups(run: Run, limits: Limits) -> list[tuple[str, str, list[dict]]]:
    """Groups of the training steps, the newest first: (title, description, groups) per view."""
    views = []
    for view, title, description in VIEWS:
        rows = snapshots(run, view, limits.snapshots)[::-1]
        groups = [_group([(f"step {row['step']}", row, run.directory)], limits) for row in rows]
        views += [(title, description, groups)] if groups else []
    return views
