"""What a run would cost, from a few of its own steps: seconds by phase, hours, money.

Next: checks/page.py.
"""

from dataclasses import dataclass
from statistics import median

from config import TrainConfig
from training.memory_plan import GIB, Plan

BETWEEN = ("eval", "report")  # phases that are no part of a step


@dataclass(frozen=True)
class Cost:
    """Seconds of a run.

    Attributes:
        phases: of a step, by name. evaluation: of one between; first_and_last: of the two that are
            more thorough. save: of a checkpoint. begin: until the first step.
        memory: GB in use at most, sampling for the forecast included.
        price: of an hour, None where nobody said it.
    """

    phases: dict[str, float]
    steps: int
    evaluation: float
    evaluations: int
    first_and_last: float
    save: float
    saves: int
    begin: float
    memory: float
    price: float | None = None

    @property
    def step(self) -> float:
        """Of one step."""
        return sum(self.phases.values())

    @property
    def evaluating(self) -> float:
        """Of all evaluations."""
        return self.evaluations * self.evaluation + 2 * self.first_and_last

    @property
    def total(self) -> float:
        """Of the whole run."""
        return self.begin + self.steps * self.step + self.evaluating + self.saves * self.save

    @property
    def money(self) -> float:
        """What it costs at `price`."""
        return self.price * self.total / 3600


def cost_of(
    rows: list[dict], cfg: TrainConfig, begin: float, save: float, price: float | None = None
) -> Cost:
    """From the rows of a short run (metrics.jsonl) to the whole one; the first step warms up.

    Args:
        begin: seconds that reading data and model takes. save: of a checkpoint.
    """
    steps = [row for row in rows if "step_time" in row]
    timed = steps[1:] or steps
    names = [key for key in timed[-1] if key.startswith("seconds/")]
    names = [key for key in names if key.removeprefix("seconds/") not in BETWEEN]
    phases = {k.removeprefix("seconds/"): median(row.get(k, 0.0) for row in timed) for k in names}
    spent = {name: [row.get(f"seconds/{name}", 0.0) for row in rows] for name in BETWEEN}
    evaluations, report = [value for value in spent["eval"] if value], max(spent["report"])
    middle = evaluations[1:-1] or evaluations
    every, saved = cfg.eval_steps, cfg.steps_between_saves
    return Cost(
        phases=phases,
        steps=cfg.max_steps,
        evaluation=middle[-1] + report,
        evaluations=-(-cfg.max_steps // every) - 1,
        first_and_last=evaluations[-1] + report,
        save=save,
        saves=-(-cfg.max_steps // saved) if saved else 1,
        begin=begin,
        memory=max(row["memory_gb"] for row in steps),
        price=price,
    )


def duration(seconds: float) -> str:
    """In words: 48 s, 12 min, 3.5 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


@dataclass(frozen=True)
class Memory:
    """Of a GPU, computed.

    Attributes:
        plan: None for families that run through transformers. available: bytes to plan for, None
            on a CPU. advice: what to change where the run does not fit.
    """

    plan: Plan | None
    available: float | None = None
    advice: str = ""

    def __str__(self) -> str:
        if self.plan is None:
            return "not computed for a family that runs through transformers"
        text = f"{self.plan.peak / GIB:.1f}"
        if self.available is not None:
            fits = "does not fit" if self.advice else "fits"
            text = f"{fits}, {text} of {self.available / GIB:.1f}"
        return f"{text} GiB, computed, most in the {self.plan.largest}"


def in_two_lines(cost: Cost | str, memory: Memory) -> list[str]:
    """Time and memory for the console."""
    if isinstance(cost, str):
        return [f"time and memory: not known, since a few steps of the run fail: {cost}"]
    phases = ", ".join(f"{name} {seconds:.2g}" for name, seconds in cost.phases.items())
    money = "" if cost.price is None else f", {cost.money:.2f} at {cost.price:g} an hour"
    lines = [
        f"time: {duration(cost.total)} for {cost.steps} steps of {cost.step:.2g} s ({phases}), "
        f"{cost.evaluations + 2} evaluations in {duration(cost.evaluating)}{money}"
    ]
    parts = [f"memory: {cost.memory:.1f} GB measured here", f"on a GPU {memory}", memory.advice]
    return [*lines, "; ".join(filter(None, parts))]
