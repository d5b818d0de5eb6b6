"""Know before you train: what the data are, what reinforcement will find in them, what it costs.

    python preflight.py --task cls --shots 1
    python preflight.py --task count --data rows.jsonl --model DIR --reward my.py:f --max_steps 500

It takes the flags of train_grpo.py, reads the data as a run would, samples the policy with the
run's own sampler, prompt and reward, attacks that reward, and times a few real steps. Nothing is
kept but the page (`--output`); the console has the verdicts. Read first: train_grpo.py. Next:
checks/forecast.py.
"""

import contextlib
import io
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import ClassVar

import config
import train_grpo
from checks.cost import Cost, Memory, cost_of, in_two_lines
from checks.forecast import Sampled, forecast, sample
from checks.frames import overlaps
from checks.linter import Payer, asks_boxes, lint
from checks.page import Checked, write_page
from checks.survey import Survey, survey
from checks.verdict import Findings, blind_check, judge
from config import flag, require, require_counts
from data.examples import Example
from data.files import optional_import
from model.transformers_processor import TransformersProcessor
from reporting.page.saved_run import read_run
from runtime import console
from runtime.errors import InputError
from tasks import TASKS
from tasks.boxes import resizer
from train_grpo import GRPOConfig
from training import memory_plan
from training.batches import questions_at
from training.blind import with_pictures
from training.learned_reward import learned_reward
from training.scoring import Scorer, user_reward
from training.setup import Setup, prepare

STEPS = 4  # of the run that is timed; the first is left out


@dataclass(frozen=True)
class PreflightConfig(GRPOConfig):
    """The flags of train_grpo.py, and those of the checks."""

    script: ClassVar[str] = "preflight.py"

    questions: int = flag(64, "training questions that are sampled")
    samples: int | None = flag(None, "completions of each; default: 16, or --num_generations")
    price_per_hour: float | None = flag(None, "of the machine, in any currency")
    output: Path = flag(Path("preflight.html"), "the page")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_counts(self, "questions" if self.samples is None else "questions samples")
        enough = self.tries >= self.num_generations
        require(enough, "samples", f"at least --num_generations {self.num_generations}", self)
        price = self.price_per_hour
        require(price is None or 0 <= price <= 1e9, "price_per_hour", "0 or more", self)
        is_new = self.resume_from_checkpoint is None
        require(is_new, "resume_from_checkpoint", "left out: nothing is trained", self)
        require(not self.plan, "plan", "left out: the page has it", self)
        require(not self.fsdp, "fsdp", "left out: one process samples here", self)
        output = self.output
        is_page = output.suffix == ".html" and not output.is_dir() and output.parent.is_dir()
        require(is_page, "output", "a .html file in a folder that exists", self)

    @property
    def tries(self) -> int:
        """Completions of each question."""
        return self.samples or max(16, self.num_generations)


@contextlib.contextmanager
def heard() -> Iterator[list[str]]:
    """The lines that are printed inside."""
    lines, said, out = [], io.StringIO(), sys.stdout
    with contextlib.redirect_stdout(said):
        try:
            yield lines
        finally:
            lines += said.getvalue().splitlines()
            out.write(said.getvalue())


def asked_questions(cfg: PreflightConfig, train: list[Example]) -> list[Example]:
    """The first questions that a run with these flags would ask."""
    places = range(min(cfg.questions, len(train)))
    return [example for _, example in questions_at(train, places, cfg)]


def check(setup: Setup, cfg: PreflightConfig, scorer: Scorer) -> tuple[Findings, Survey, Sampled]:
    """Look at the data, sample the policy, attack the reward."""
    task, processor, model = setup.task, setup.processor, setup.model
    examples, blind, overlap = asked_questions(cfg, task.train), None, None
    about, learned = (model, processor, task, scorer, cfg), learned_reward(cfg, model)
    real = sample(*about, examples, cfg.tries, learned)
    if task.environment is None:  # elsewhere, what is shown later would be real
        with_others = [
            sample(*about, with_pictures(examples, pictures), cfg.num_generations, learned)
            for pictures in ("grey", "swapped")
        ]
        blind = blind_check(task, real, *with_others)
        if asks_boxes(task):
            overlap = overlaps(examples, real.texts, resizer(processor.image_cfg))
    data = survey(task, processor, examples)
    pay = Payer(scorer, processor, learned)
    found = Findings(
        forecast=forecast(real, cfg.num_generations, cfg.advantage_estimator == "reinforce"),
        blind=blind,
        overlap=overlap,
        attacked=lint(task, pay, task.train, cfg.prompt_mode),
        top_share=data.top_share,
        constant=data.constant,
        limit=cfg.max_completion_length,
        near=len(data.same) + len(data.near),
        demonstrated=any(example.reasoning is not None for example in task.train),
    )
    return found, data, real


def run_config(cfg: PreflightConfig) -> GRPOConfig:
    """The flags of the run that is checked."""
    return GRPOConfig(**{field.name: getattr(cfg, field.name) for field in fields(GRPOConfig)})


def short_run(cfg: PreflightConfig, begin: float) -> Cost | str:
    """Train for a few steps in a directory that is not kept, and tell what the whole run takes.

    Args:
        begin: seconds that reading data and model took here.
    Returns: why it cannot be told, where the run fails.
    """
    with tempfile.TemporaryDirectory(dir=cfg.output.resolve().parent) as folder:
        directory = Path(folder) / "run"
        few = dict(max_steps=min(STEPS, cfg.max_steps), eval_steps=STEPS // 2, save_steps=0)
        short = replace(run_config(cfg), **few, output_dir=directory, report_to="none")
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                train_grpo.train(short)
        except InputError as error:
            return str(error)
        except (MemoryError, RuntimeError) as error:
            if not console.is_out_of_memory(error):
                raise
            return f"out of memory; {console.advice or 'lower --groups_per_micro_batch'}"
        saved = max(path.stat().st_mtime for path in directory.glob("step_*/**/*"))
        save = saved - (directory / "metrics.jsonl").stat().st_mtime
        return cost_of(read_run(directory).rows, cfg, begin, save, cfg.price_per_hour)


def memory_of(cfg: PreflightConfig, setup: Setup) -> Memory:
    """The memory plan of the run, and what to change where it does not fit."""
    if isinstance(setup.processor, TransformersProcessor):
        return Memory(None)
    available = memory_plan.memory_at_hand(cfg, setup.model.device)
    plan = memory_plan.plan_of(setup.cfg, setup.processor, available)
    if available is None or memory_plan.fits(plan, available):
        return Memory(plan, available)
    return Memory(plan, available, memory_plan.advice(setup.cfg, setup.processor, available))


def main(argv: list[str] | None = None) -> None:
    cfg = config.parse(PreflightConfig, argv, __doc__, task=TASKS)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise InputError("preflight.py runs in one process; leave torchrun out")
    optional_import("imagehash", "ImageHash")
    start, command = time.time(), config.command(run_config(cfg))
    user = user_reward(cfg)
    with heard() as lines:
        setup = prepare(cfg)
    begin = time.time() - start
    cfg = setup.cfg
    found, data, real = check(setup, cfg, Scorer(setup.task, cfg, user))
    verdicts = judge(found)
    for verdict in verdicts:
        print(f"{verdict.level}: {verdict.text}")
    memory = memory_of(cfg, setup)
    setup.model = None  # the short run loads its own
    cost = short_run(cfg, begin)
    for line in in_two_lines(cost, memory):
        print(line)
    about = (lines, found, data, real, verdicts, cost, memory)
    write_page(Checked(cfg, command, *about))
    print(f"{cfg.output}: {time.time() - start:.0f} s")


if __name__ == "__main__":
    lower = "--questions, --samples, --prompts_per_step, --max_completion_length, --max_pixels"
    console.run(main, memory_flags=lower)
