"""Do completions that act learn to act well? Cold start, then GRPO, and what a look is worth.

    python -m benchmarks.learning.acting                             # all three tasks, seeds 0-2
    python -m benchmarks.learning.acting --tasks zoom --seeds 0

For each task and seed: supervised fine-tuning on demonstrations that show how to act and not when,
then train_grpo.py from there. For `zoom` also, on the questions that need a look:

    blank     the model, shown grey in the place of what it asks for
    oracle    the model, with the look of the demonstration made for it
    no looks  trained likewise, without demonstrations of looks and without an environment
    bonus 0, bonus for all    GRPO from the same cold start, paid for no look, or for every one

Prints a row per run. Intervals: Wilson, 95 %.
"""

import argparse
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

import tasks.zoom
import train_grpo
import train_sft
from acting.episodes import demonstrated_calls
from acting.zoom import Zoom
from benchmarks.learning.runs import Outcome, train
from benchmarks.timing import Table, machine
from config import TaskConfig
from model.load import load_model, load_processor
from model.pack import continued
from sample import generate_group
from tasks import load_task
from training.evaluation import evaluate, wilson_interval

COLD = "--cot --train_size 4000 --learning_rate 1e-3 --prompts_per_step 16 --eval_steps 1000"
COLD_OF = {  # tiny flowers and a gardener are new to the tower
    "zoom": "--max_steps 600 --no-freeze_vision",
    "lookup": "--max_steps 100",
    "walk": "--max_steps 300 --no-freeze_vision",
}
GRPO = "--train_size 1000 --eval_steps 50"
STEPS = {"zoom": 100, "lookup": 100, "walk": 80}  # of it


class Blank(Zoom):
    """Shows grey in the place of what is asked for."""

    def show(self, state):
        """A grey picture of the same size."""
        (crop,) = super().show(state)
        return (Image.new("RGB", crop.size, (128, 128, 128)),)


class ForAll(Zoom):
    """Pays for every look, needed or not, whatever comes of it."""

    def reward(self, example, state, text):
        """1 for any look."""
        parts = super().reward(example, state, text)
        return parts | {"look_bonus": parts["called"]}


def without_looks(task):
    """The task for a model that cannot look: nothing is shown, demonstrated, or offered."""

    def plain(example):
        question = example.question.replace(f" {tasks.zoom.INVITATION}", "")
        return replace(example, question=question, reasoning=replace(example.reasoning, calls=()))

    splits = {name: [plain(e) for e in examples] for name, examples in task.splits.items()}
    return replace(task, train=[plain(e) for e in task.train], splits=splits, environment=None)


def paid_for_all(task):
    """The task with a bonus for every look."""
    own = task.environment
    return replace(task, environment=ForAll(own.is_right, own.weights["look_bonus"]))


FORKS = {"no_looks": without_looks, "for_all": paid_for_all}


def fork(name: str, script: str, flags: list[str]) -> None:
    """Run train_sft.py or train_grpo.py with another form of `zoom`, in this process."""
    load = tasks.zoom.load
    tasks.zoom.load = lambda *args: FORKS[name](load(*args))
    {"train_sft.py": train_sft, "train_grpo.py": train_grpo}[script].main(flags)


def run(out: Path, task: str, seed: int, script: str, flags: str, fork: str = "") -> Outcome:
    """A training run on one core."""
    words = ["--task", task, "--seed", str(seed), *flags.split()]
    command = ("-m", "benchmarks.learning.acting", "--fork", fork, script) if fork else (script,)
    return train(out, words, command, threads=1)


def checkpoint_of(out: Path) -> Path:
    """The newest one of a run."""
    return max(out.glob("step_*/hf"), key=lambda path: int(path.parent.name[5:]))


@torch.no_grad()
def oracle(checkpoint: Path, size: int) -> float:
    """Accuracy where the look of the demonstration is made for the model."""
    processor, model = load_processor(checkpoint), load_model(checkpoint)
    task = load_task(TaskConfig(task="zoom", train_size=1, held_out_size=size), processor)
    examples = [e for e in task.splits["held_out"] if e.world.region is not None]
    starts, said = [], []
    for e in examples:
        ids, shown = demonstrated_calls(e, "think", processor, task.environment)
        prompt = processor.prompt(e.id, e.images, e.question)
        starts.append(continued(prompt, torch.tensor(ids), 0, shown))
        said.append(processor.decode(ids))
    rollout = generate_group(model, processor, starts, 1, 64, 0.0)
    texts = map("".join, zip(said, rollout.texts, strict=True))
    right = [task.scores(t, e)["strict"] for t, e in zip(texts, examples, strict=True)]
    return sum(right) / len(right)


def blank(checkpoint: Path, size: int) -> float:
    """Accuracy on the questions that need a look, where looks show nothing."""
    processor, model = load_processor(checkpoint), load_model(checkpoint)
    task = load_task(TaskConfig(task="zoom", train_size=1, held_out_size=size), processor)
    task = replace(task, environment=Blank(task.environment.is_right, 0.0))
    metrics, _ = evaluate(model, processor, task, task.splits["held_out"])
    return metrics["needs_look/strict"]


def shares(metrics: dict[str, float], name: str, size: int) -> str:
    """A share of `size` questions, with its interval, and that out of distribution."""
    low, high = wilson_interval(metrics[name], size)
    return f"{metrics[name]:.1%} [{low:.1%}, {high:.1%}], ood {metrics[f'ood_{name}']:.1%}"


def case(task: str, seed: int, size: int, with_controls: bool) -> list[dict]:
    """All rows of one task and seed. `with_controls`: of `zoom` also those of other rewards."""
    cold = f"{COLD} {COLD_OF[task]} --held_out_size {size}"
    rows = []

    def add(what: str, out: Path, result: Outcome, can_look: bool = True) -> None:
        row = {"task": task, "seed": seed, "what": what}
        row["strict"] = shares(result.final, "strict", size)
        if task == "zoom":
            for half in ("needs_look", "at_sight"):
                row[f"{half}: right"] = shares(result.final, f"{half}/strict", size // 2)
                row[f"{half}: looked"] = f"{result.final.get(f'{half}/looked', 0):.1%}"
            for measure in (oracle, blank):
                share = f"{measure(checkpoint_of(out), size):.1%}" if can_look else "-"
                row[measure.__name__] = share
        rows.append(row | {"s": result.seconds})

    with tempfile.TemporaryDirectory() as work:
        start = Path(work) / "cold"
        add("cold start", start, run(start, task, seed, "train_sft.py", cold))
        paid = f"{GRPO} --max_steps {STEPS[task]} --held_out_size {size}"
        paid += f" --model {checkpoint_of(start)}"
        end = Path(work) / "grpo"
        add("then GRPO", end, run(end, task, seed, "train_grpo.py", paid))
        if task == "zoom" and with_controls:
            none = Path(work) / "none"
            add("no looks", none, run(none, task, seed, "train_sft.py", cold, "no_looks"), False)
            from_none = paid.replace(str(checkpoint_of(start)), str(checkpoint_of(none)))
            for what, flags, other in (
                ("no looks, then GRPO", from_none, "no_looks"),
                ("bonus 0", f"{paid} --look_bonus 0", ""),
                ("bonus for all", paid, "for_all"),
            ):
                out = Path(work) / what.replace(" ", "_")
                result = run(out, task, seed, "train_grpo.py", flags, other)
                add(what, out, result, other != "no_looks")
    return rows


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["--fork"]:
        fork(argv[1], argv[2], argv[3:])
        return
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--tasks", nargs="+", default=list(COLD_OF))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--controls", type=int, nargs="+", default=[0], help="their seeds")
    parser.add_argument("--size", type=int, default=400, help="held-out questions")
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args(argv)
    print(machine())
    cases = [(t, s, args.size, s in args.controls) for s in args.seeds for t in args.tasks]
    with ThreadPoolExecutor(args.jobs) as pool:
        for rows in pool.map(lambda arguments: case(*arguments), cases):
            table = Table()
            for row in rows:
                table.add(**row)


if __name__ == "__main__":
    main()
