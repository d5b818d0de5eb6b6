"""A rater at work: what to show now, what an answer does, and what came of it.

The session knows nothing of HTTP, and the page nothing of rewards, steps and targets: `state` is
all that it is told. Next: rating/server.py.
"""

import base64
import io
import time
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from data.examples import Example, Picture
from data.ratings import LABELS, Act, act_of, agreement, ratings_of
from model.image import load_image
from rating.pairs import Item
from rating.ratings_file import RatingsFile
from reporting.gallery import answered_boxes
from reporting.page.rollouts import MAX_BOXES
from runtime.errors import InputError, visible
from training.evaluation import wilson_interval

MAX_SIDE = 1024  # pixels of a picture on the page
WORDS = {"left": "left better", "right": "right better", "tie": "ties", "skip": "skipped"}


class Refusal(Exception):
    """An act that is not done, with the reason in words.

    Attributes:
        status: of HTTP; 409 where the page is out of date, 400 for what no page sends.
    """

    def __init__(self, status: int, what: str):
        super().__init__(what)
        self.status = status


class Session:
    """One rater who works through a list. Not safe for threads: the server takes turns.

    Args:
        examples: the question and the pictures of every item, by id.
        scale: the highest score of single completions; None for pairs.
        seed: that the items were chosen with, kept with every act.
    """

    def __init__(
        self,
        items: list[Item],
        examples: Mapping[str, Example],
        file: RatingsFile,
        rater: str,
        scale: int | None = None,
        seed: int = 0,
    ):
        self.items, self.examples, self.file = items, examples, file
        self.rater, self.scale, self.seed = rater, scale, seed
        self.acts = file.acts
        self.turn = 0  # goes up with every act: a page that has missed one is told so
        self.shown_at: float | None = None  # when the current item was first asked for

    # ---- what is shown ---------------------------------------------------------------------------

    def own(self) -> list[Act]:
        """The standing acts of this rater on this scale, of this session and earlier ones."""
        return [act for act in self.acts if self._is_own(act)]

    def _is_own(self, act: Act) -> bool:
        return act.rater == self.rater and act.of == (self.scale or 0)

    def done(self) -> set[tuple]:
        """Keys of the items that this rater has rated or skipped."""
        return {(act.id, act.step, act.texts) for act in self.own()}

    def current(self) -> Item | None:
        """The first item that is not done; None if all are."""
        done = self.done()
        return next((item for item in self.items if item.key not in done), None)

    def can_undo(self) -> bool:
        """Whether the last act of the file is this rater's, about an item of this list."""
        if not self.acts or not self._is_own(self.acts[-1]):
            return False
        last = self.acts[-1]
        return any(item.key == (last.id, last.step, last.texts) for item in self.items)

    def state(self) -> dict[str, Any]:
        """All that the page knows, as JSON can hold it. Invisible characters are spelt out."""
        item, done = self.current(), self.done()
        state = {
            "turn": self.turn,
            "scale": self.scale,
            "total": len(self.items),
            "done": sum(item.key in done for item in self.items),
            "can_undo": self.can_undo(),
        }
        if item is None:
            return state | {"summary": self.summary()}
        if self.shown_at is None:
            self.shown_at = time.monotonic()
        example = self.examples[item.id]
        return state | {
            "question": visible(example.question),
            "pictures": [_data_uri(picture) for picture in example.images],
            "texts": [visible(text) for text in item.texts],
            "boxes": [(answered_boxes(t, example) or [])[:MAX_BOXES] for t in item.texts],
        }

    def summary(self) -> list[str]:
        """What this rater did so far, in two lines, with a 95 % interval of the self-agreement."""
        own = self.own()
        counts, ratings = Counter(act.value for act in own), ratings_of(own)
        if self.scale is not None:
            skipped = counts.pop(None, 0)
            scores = ", ".join(f"{counts[n]} x {n:g}" for n in sorted(counts)) or "none"
            what = f"{counts.total()} completions scored ({scores}), {skipped} skipped"
            return [what, f"{len(ratings)} comparisons follow from them"]
        words = ", ".join(f"{counts[LABELS[name]]} {word}" for name, word in WORDS.items())
        share, count = agreement(ratings)
        judged = "no pair was judged twice yet"
        if count:
            low, high = wilson_interval(share, count)
            judged = f"{share:.1%} [{low:.1%}, {high:.1%}] of {count} judged twice"
        return [f"{len(own)} pairs: {words}", f"self-agreement: {judged}"]

    # ---- what is done ----------------------------------------------------------------------------

    def act(self, turn: Any, choice: Any) -> None:
        """Do what the page asks, and return once it is on the disk.

        Args:
            turn: of the state that the page shows.
            choice: "left", "right" or "tie" of a pair, a score, "skip", or "undo".
        Raises Refusal, and OSError where the file cannot be written; then nothing is done.
        """
        if type(turn) is not int or turn != self.turn:
            raise Refusal(409, "this page was out of date; here is what comes now")
        if choice == "undo":
            self._undo()
        else:
            self._rate(choice)
        self.turn += 1
        self.shown_at = None

    def _rate(self, choice: Any) -> None:
        item = self.current()
        if item is None:
            raise Refusal(409, "everything is rated")
        row: dict[str, Any]
        if self.scale is None:
            row = {"kind": "pair", "texts": list(item.texts), "choice": choice}
            row["is_repeat"] = item.is_repeat
        elif choice is None:  # which would be a skip in the file
            raise Refusal(400, f"a score must be in 1 .. {self.scale}")
        else:
            score = None if choice == "skip" else choice
            row = {"kind": "score", "text": item.texts[0], "score": score, "of": self.scale}
        row |= {"id": item.id, "step": item.step, "rater": self.rater, "seed": self.seed}
        since = time.monotonic() if self.shown_at is None else self.shown_at
        row |= {"seconds": round(time.monotonic() - since, 1), "time": _now()}
        try:
            act = act_of(row)
        except ValueError as error:
            raise Refusal(400, str(error)) from None
        self.file.append(row)
        self.acts.append(act)

    def _undo(self) -> None:
        if not self.can_undo():
            raise Refusal(409, "there is nothing to take back")
        self.file.append({"kind": "undo", "rater": self.rater, "time": _now()})
        self.acts.pop()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _data_uri(picture: Picture) -> str | None:
    """A picture, upright and at most MAX_SIDE wide and high; None if it can be read no more."""
    try:
        image, encoded = load_image(picture), io.BytesIO()
    except InputError:
        return None
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    image.save(encoded, "JPEG", quality=95, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.getvalue()).decode()}"
