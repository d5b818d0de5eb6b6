"""Human feedback on a run's completions: which of two is better, or how good is one.

    python rate.py runs/NAME                # pairs
    python rate.py runs/NAME --scale 5      # single completions, rated 1..5

Prints the address of a page on this machine that shows a question with its pictures and two
completions; rewards and targets are hidden. A key each: 1, 2, = for a tie, s to skip, u to undo.
Every act is on the disk before the next pair is shown, in runs/NAME/ratings.jsonl, and a second
start goes on where the first ended. The run may still be training. Read: docs/feedback.md.
"""

import getpass
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import config
from config import TaskConfig, flag, require, require_counts
from data.examples import INSTRUCTIONS, Example
from data.ratings import MAX_SCALE
from model.load import load_processor, local_directory
from rating.pairs import Completion, pairs, read_completions, singles
from rating.ratings_file import RatingsFile
from rating.server import Server
from rating.session import Session
from reporting.provenance import data_hash
from runtime import console
from runtime.errors import InputError
from tasks import load_task
from training.evaluation import usable_splits


@dataclass(frozen=True)
class RateConfig:
    run: Path = flag(Path(), "a run's directory; stands first, where --run may be left out")
    scale: int | None = flag(None, "rate single completions from 1 to this; default: pairs")
    count: int = flag(200, "pairs or completions at most, with the repeated ones")
    seed: int = flag(0, "of the choice of pairs, their order and their sides")
    rater: str | None = flag(None, "who rates, a name in the file; default: your login name")
    output: Path | None = flag(None, "default: ratings.jsonl in the run's directory")
    port: int = flag(0, "of the page; 0: a free one")
    model: Path | None = flag(None, "where the run's model is now, for its processor")
    data: str | None = flag(None, "where the run's data are now")
    data_root: Path | None = flag(None, "where the images of the data are now")

    def __post_init__(self) -> None:
        require(self.run != Path(), "run", "given: python rate.py runs/NAME", self)
        scale, rater = self.scale, self.rater
        require(scale is None or 2 <= scale <= MAX_SCALE, "scale", f"in 2 .. {MAX_SCALE}", self)
        require_counts(self, "count")
        require(0 <= self.seed < 2**63, "seed", "in 0 .. 2^63 - 1", self)
        is_name = rater is None or (0 < len(rater) <= 100 and rater.isprintable())
        require(is_name, "rater", "a name of at most 100 letters", self)
        require(0 <= self.port < 2**16, "port", "in 0 .. 65535", self)


def main(argv: list[str] | None = None) -> None:
    words = sys.argv[1:] if argv is None else argv
    if words and not words[0].startswith("-"):
        words = ["--run", *words]
    cfg = config.parse(RateConfig, words, __doc__)
    output = cfg.output or cfg.run / "ratings.jsonl"
    examples = examples_of(cfg)
    completions = known(read_completions(cfg.run), examples)
    items = (pairs if cfg.scale is None else singles)(completions, cfg.seed, cfg.count)
    if not items:
        what = "no question has two different completions yet"
        raise InputError(f"{cfg.run}: {what}; let it train on, or sample at a higher --temperature")
    file = RatingsFile(output)
    session = Session(items, examples, file, cfg.rater or login_name(), cfg.scale, cfg.seed)
    try:
        with Server(session, cfg.port) as server:
            print(f"{server.url}\nratings: {output}; end with Ctrl-C", flush=True)
            server.serve_forever()
    except KeyboardInterrupt:
        print("", *session.summary(), sep="\n")
    finally:
        file.close()


def examples_of(cfg: RateConfig) -> dict[str, Example]:
    """The training examples of a run by id, with their pictures; a warning if they have changed.

    Raises InputError for a directory that is no run, and for data or a model that are gone.
    """
    settings = config.load(TaskConfig, cfg.run / "config.json", strict=False)
    names = ("model", "data", "data_root")
    moved = {name: getattr(cfg, name) for name in names if getattr(cfg, name) is not None}
    settings = replace(settings, **moved)
    processor = load_processor(local_directory(settings.model), settings.max_pixels)
    task = load_task(settings, processor)
    if task.environment is not None:
        raise InputError(f"{cfg.run}: completions of --task {task.name} act, which no rater sees")
    examples = usable_splits({"train": task.train}, processor, settings)["train"]
    about = cfg.run / "run.json"
    recorded = config.read_settings(about).get("data") if about.is_file() else None
    of_train = recorded.get("train") if isinstance(recorded, dict) else None
    if isinstance(of_train, dict) and of_train.get("sha256") != data_hash(examples):
        what = "the data are not those that the run was trained on; the pictures may be others"
        print(f"warning: {cfg.run}: {what}", file=sys.stderr)
    how = INSTRUCTIONS[settings.prompt_mode]  # to answer: the model's business
    asked = [replace(e, question=e.question.removesuffix(how).strip()) for e in examples]
    return {example.id: example for example in asked}


def known(completions: list[Completion], examples: Iterable[str]) -> list[Completion]:
    """The completions whose question is still in the data; a line tells how many are not."""
    kept = [completion for completion in completions if completion.id in examples]
    if lost := len(completions) - len(kept):
        print(f"{lost} of {len(completions)} completions left out: the data lack their questions")
    if not kept:
        raise InputError("--data: has none of the run's questions; name the data it was trained on")
    return kept


def login_name() -> str:
    """Of who started this; InputError where the system has none."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        raise InputError("--rater: this system has no login name for you; give one") from None


if __name__ == "__main__":
    console.run(main)
