"""What people think of completions: the file ratings.jsonl, read for whoever learns from it.

    ratings = read_ratings(Path("runs/NAME/ratings.jsonl"))
    share, count = agreement(ratings)

rate.py appends a line for every act of a rater; nothing in the file is ever changed:

    {"kind": "pair", "id": "rose-3", "step": 40, "texts": [LEFT, RIGHT], "choice": "left", ...}
    {"kind": "score", "id": "rose-3", "step": 40, "text": TEXT, "score": 4, "of": 5, ...}
    {"kind": "undo", ...}

A score of null is a skip. An undo takes back the last act before it that still stands.
Next: rating/pairs.py, which chooses what is rated.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import nan
from pathlib import Path
from typing import Any, Literal

from runtime import unique_json
from runtime.errors import InputError

LABELS = {"left": 1.0, "tie": 0.5, "right": 0.0, "skip": None}
MAX_SCALE = 9  # one key for every score
FIX = "repair or remove the line"


@dataclass(frozen=True)
class Rating:
    """Two completions of one question, compared by a person.

    Attributes:
        step: that both were sampled at; of two scores, the later one.
        label: 1.0 if the first text is better, 0.0 if the second is, 0.5 for a tie.
    """

    id: str
    step: int
    texts: tuple[str, str]
    label: float
    rater: str = ""


@dataclass(frozen=True)
class Act:
    """A line of the file about a pair or a single completion.

    Attributes:
        texts: (left, right) as they were shown, or the one text that was scored.
        value: the label of a pair, the score of a single completion, None if it was skipped.
        of: the highest score; 0 for a pair.
    """

    kind: Literal["pair", "score"]
    id: str
    step: int
    texts: tuple[str, ...]
    value: float | None
    of: int
    rater: str


def read_ratings(path: Path) -> list[Rating]:
    """All comparisons of a file: those of pairs in the order of the file, then those of scores.

    Two scores that one rater gave to completions of one question are a comparison, if they differ.
    What was skipped or taken back is left out. Raises InputError as `read_acts` does.
    """
    return ratings_of(read_acts(path))


def agreement(ratings: Sequence[Rating]) -> tuple[float, int]:
    """How often a rater judges a pair as before: the share of repetitions alike, and their count.

    The sides of a repeated pair do not matter. A tie is like a tie alone. Without any repetition
    the share is nan.
    """
    first: dict[tuple, float] = {}
    alike = []
    for rating in ratings:
        key = rating.rater, rating.id, rating.step, frozenset(rating.texts)
        is_sorted = rating.texts[0] < rating.texts[1]
        label = rating.label if is_sorted else 1 - rating.label
        if key in first:
            alike.append(label == first[key])
        first.setdefault(key, label)
    return (sum(alike) / len(alike) if alike else nan), len(alike)


def ratings_of(acts: Sequence[Act]) -> list[Rating]:
    """The comparisons that the acts make, see `read_ratings`."""
    ratings = [
        Rating(act.id, act.step, act.texts, act.value, act.rater)
        for act in acts
        if act.kind == "pair" and act.value is not None
    ]
    scores: dict[tuple, dict[str, Act]] = {}  # of a text the last
    for act in acts:
        if act.kind == "score" and act.value is not None:
            scores.setdefault((act.rater, act.id, act.of), {})[act.texts[0]] = act
    for same in scores.values():
        for one, other in combinations(same.values(), 2):
            if one.value != other.value:
                step, label = max(one.step, other.step), float(one.value > other.value)
                texts = one.texts[0], other.texts[0]
                ratings.append(Rating(one.id, step, texts, label, one.rater))
    return ratings


# ---- the lines -----------------------------------------------------------------------------------


def read_acts(path: Path) -> list[Act]:
    """The acts of a file that still stand. A line at its end that was never finished is no act.

    Raises InputError naming file and line for what is no act, and for a file that cannot be read.
    """
    if not path.is_file():  # opening a FIFO may never return
        raise InputError(f"{path}: is missing or no regular file; rate.py writes it")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check its rights") from None
    acts: list[Act] = []
    whole = data[: len(data) - len(unfinished_line(data))]
    for number, line in enumerate(whole.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            _add(acts, unique_json.loads(line.decode("utf-8")))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}:{number}: {error}; {FIX}") from None
    return acts


def unfinished_line(data: bytes) -> bytes:
    """What stands behind the last line feed and is no JSON: its writing was cut short."""
    last = data[data.rfind(b"\n") + 1 :]
    try:
        unique_json.loads(last.decode("utf-8"))
    except (ValueError, RecursionError):
        return last
    return b""


def _add(acts: list[Act], row: Any) -> None:
    if not isinstance(row, dict):
        raise ValueError("is no object of JSON")
    if row.get("kind") != "undo":
        acts.append(act_of(row))
    elif acts:
        acts.pop()
    else:
        raise ValueError("takes back an act, but none stands before it")


def act_of(row: dict) -> Act:
    """A row of the file as an act; raises ValueError saying which value of it is impossible."""
    kind = row.get("kind")
    if kind not in ("pair", "score"):
        raise ValueError(f"kind {kind!r:.40} is not pair, score or undo")
    texts = row.get("texts") if kind == "pair" else [row.get("text")]
    are_texts = isinstance(texts, list) and all(isinstance(text, str) for text in texts)
    if not are_texts or len(set(texts)) != (2 if kind == "pair" else 1):
        need = "texts must be two different texts" if kind == "pair" else "text must be a text"
        raise ValueError(need)
    for name in ("id", "rater"):
        if not isinstance(row.get(name), str):
            raise ValueError(f"{name} {row.get(name)!r:.40} is no text")
    step = row.get("step")
    if type(step) is not int or step < 0:
        raise ValueError(f"step {step!r:.40} is no count")
    value, of = _choice(row) if kind == "pair" else _score(row)
    return Act(kind, row["id"], step, tuple(texts), value, of, row["rater"])


def _choice(row: dict) -> tuple[float | None, int]:
    choice = row.get("choice")
    if not isinstance(choice, str) or choice not in LABELS:
        raise ValueError(f"choice {choice!r:.40} is not one of {', '.join(LABELS)}")
    return LABELS[choice], 0


def _score(row: dict) -> tuple[float | None, int]:
    score, of = row.get("score"), row.get("of")
    if type(of) is not int or not 2 <= of <= MAX_SCALE:
        raise ValueError(f"of {of!r:.40} is not in 2 .. {MAX_SCALE}")
    if score is not None and (type(score) is not int or not 1 <= score <= of):
        raise ValueError(f"score {score!r:.40} is not in 1 .. {of}")
    return None if score is None else float(score), of
