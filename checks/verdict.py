"""From counts to a sentence: will reinforcement find something to learn from, and if not, why?

`judge` gives one verdict for the run, the first of these that holds, and lines beside it:

    reward_fails     the reward could not be computed for most completions
    frame            answers and targets are boxes of different frames
    cut              most completions are cut by the token limit
    format_first     most answers cannot be read
    calls_first      hardly any completion makes a call, where the task is to act
    unpaid           right answers earn no more than wrong ones
    nothing_to_gain  nearly all are right already
    labels           answers depend on the pictures, targets do not agree with them
    never            nearly no question is ever answered rightly
    few              some questions teach something, most do not
    teachable        most do

Each sentence has the figure that it rests on. The bounds are rules of thumb; the share of teachable
questions tells whether there is a gain, hardly how much (benchmarks/RESULTS.md). Next:
checks/page.py.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from checks.forecast import Forecast, Sampled, Share, share_of
from checks.frames import Overlap
from checks.linter import Attacked
from tasks.task import Task

Level = Literal["good", "watch", "bad"]
MOSTLY = 0.5  # of completions: lost, cut or unreadable ones
RARELY = 0.05  # of completions: with a call
NEARLY_ALL = 0.9  # of questions
FEW = 0.3  # of questions
SEEN = 0.25  # of the most frequent answers that change with the picture: it is looked at
KNOWN = 0.5  # of the questions: some answer is a target
ENOUGH = 20  # questions, to say that the picture makes no difference
FITS, TIMES = 0.25, 2.0  # overlap of boxes in another frame, and how much more than as asked
GAIN = 0.15  # of accuracy, by the right picture: if it certainly is less, there is none
LEAST = 0.02  # of accuracy: below, there is nothing to be told blind
TOLD_BLIND = 0.5  # of the accuracy


@dataclass(frozen=True)
class Verdict:
    """A finding: its name in the table above, how bad it is, and a sentence."""

    name: str
    level: Level
    text: str


@dataclass(frozen=True)
class Blind:
    """The same questions with their own pictures, grey ones, and those of other questions.

    Attributes:
        real, grey, swapped: share of right completions. gain: real - swapped, question by question.
        changes: share of the questions whose most frequent answer is another one with the picture
            of another question, beyond what two halves of the completions differ by chance.
        known: share of the questions with an answer that is the target of some question.
    """

    real: Share
    grey: Share
    swapped: Share
    gain: Share
    changes: float
    known: float


def blind_check(task: Task, real: Sampled, grey: Sampled, swapped: Sampled) -> Blind:
    """Compare completions of the same questions with different pictures."""
    shares = [s.right.double().mean(1).numpy() for s in (real, grey, swapped)]
    said, others, half = by_question(real), by_question(swapped), real.right.shape[1] // 2
    pairs = [(a[:half], a[half:], b[:half]) for a, b in zip(said, others, strict=True)]
    changed = np.mean([mode(own) != mode(other) for _, own, other in pairs])
    by_chance = np.mean([mode(first) != mode(own) for first, own, _ in pairs])
    targets = {task.answer(f"<answer>{e.target}</answer>", e) for e in task.train}
    return Blind(
        *map(share_of, shares),
        gain=share_of(shares[0] - shares[2]),
        changes=max(0.0, float(changed - by_chance)),
        known=float(np.mean([not targets.isdisjoint(answers) for answers in said])),
    )


def by_question(sampled: Sampled) -> list[list[str]]:
    """The answers to each question."""
    K, answers = sampled.right.shape[1], [str(answer) for answer in sampled.answers]
    return [answers[start : start + K] for start in range(0, len(answers), K)]


def mode(answers: list[str]) -> str:
    """The most frequent one; of equally frequent ones the first in order."""
    return min(answers, key=lambda text: (-answers.count(text), text), default="")


@dataclass(frozen=True)
class Findings:
    """All that was found. blind: None where pictures come later; overlap: None without boxes."""

    forecast: Forecast
    blind: Blind | None
    overlap: Overlap | None
    attacked: Attacked
    top_share: float  # of the most frequent target
    constant: float  # accuracy of the best answer that is always the same
    limit: int  # tokens of a completion
    near: int = 0  # pairs of a training and a held-out question with pictures alike
    demonstrated: bool = True  # the data say how an answer is reached


def judge(found: Findings) -> list[Verdict]:
    """The verdict, then what else has to be known, the worst first."""
    first = next(verdict for rule in RULES if (verdict := rule(found)) is not None)
    others = [verdict for rule in BESIDE if (verdict := rule(found)) is not None]
    return [first, *sorted(others, key=lambda verdict: verdict.level != "bad")]


# ---- the verdict, rule after rule ----------------------------------------------------------------


def _reward_fails(found: Findings) -> Verdict | None:
    lost = found.forecast.lost
    if lost <= MOSTLY:
        return None
    text = f"The reward could not be computed for {lost:.0%} of the completions: repair it."
    return Verdict("reward_fails", "bad", text)


def _frame(found: Findings) -> Verdict | None:
    overlap = found.overlap
    if overlap is None or overlap.other < max(FITS, TIMES * overlap.asked):
        return None
    text = (
        f"Boxes are in another frame: answers overlap the targets by {overlap.asked:.2f} (IoU), "
        f"but by {overlap.other:.2f} if {overlap.reading}. Then: {overlap.fix}."
    )
    return Verdict("frame", "bad", text)


def _cut(found: Findings) -> Verdict | None:
    cut = found.forecast.cut
    if cut <= MOSTLY:
        return None
    text = (
        f"{cut:.0%} of the completions are cut at {found.limit} tokens, before they have ended: "
        "raise --max_completion_length, or ask for less with --prompt_mode direct."
    )
    return Verdict("cut", "bad", text)


def _format_first(found: Findings) -> Verdict | None:
    unreadable = found.forecast.unreadable
    if unreadable <= MOSTLY:
        return None
    text = (
        f"Teach the format first: {unreadable:.0%} of the answers cannot be read. train_sft.py "
        "does it with a few hundred examples, then start train_grpo.py from its checkpoint."
    )
    return Verdict("format_first", "bad", text)


def _calls_first(found: Findings) -> Verdict | None:
    called = found.forecast.parts.get("called", 1.0)
    if called >= RARELY:
        return None
    fix = "train_sft.py --cot learns it from demonstrations (docs/acting.md)"
    if not found.demonstrated:
        fix = "the garden has demonstrations, these data have none: train_sft.py --cot without "
        fix += "--data, then --model with its checkpoint (docs/acting.md)"
    text = (
        f"Teach it to act first: {called:.0%} of the completions make a call that has a result. "
        f"What is never sampled is never paid; {fix}."
    )
    return Verdict("calls_first", "bad", text)


def _unpaid(found: Findings) -> Verdict | None:
    honest = found.attacked.honest  # what a right and a wrong answer in good form earn
    if honest is None or honest[0] > honest[1] + 1e-6:
        return None
    right, wrong = honest
    text = (
        f"The reward pays for something else: the target in good form earns {right:.2f}, a wrong "
        f"answer in the same form {wrong:.2f}. Check --reward and the weights."
    )
    return Verdict("unpaid", "bad", text)


def _nothing_to_gain(found: Findings) -> Verdict | None:
    forecast = found.forecast
    if forecast.pass_1 < NEARLY_ALL:
        return None
    text = (
        f"Nothing to gain: {forecast.pass_1:.0%} of the completions are right already, and "
        f"{forecast.always:.0%} of the questions are always answered rightly. Take harder ones."
    )
    return Verdict("nothing_to_gain", "watch", text)


def _never(found: Findings) -> Verdict | None:
    forecast = found.forecast
    if forecast.never < NEARLY_ALL:
        return None
    text = (
        f"Sampling never says it: {forecast.never:.0%} of the questions had no right answer in "
        f"{forecast.samples} tries. Reinforcement cannot help: train_sft.py first, another "
        "--model, or easier questions."
    )
    if forecast.teachable >= FEW:
        text += " (Groups differ in other parts of the reward, such as the format, alone.)"
    return Verdict("never", "bad", text)


def _labels(found: Findings) -> Verdict | None:
    """Sure of something, and right no more often than without the picture."""
    blind = found.blind
    if blind is None or found.forecast.questions < ENOUGH:
        return None
    if blind.changes < SEEN or blind.known < KNOWN or blind.gain.high > GAIN:
        return None
    text = (
        f"Targets and pictures do not agree: answers follow the picture ({blind.changes:.0%} "
        "change with it, beyond chance) and are of the right kind, but as often right with another "
        f"picture ({blind.real:.1%} and {blind.swapped:.1%}). Are the labels shuffled, or of other "
        "pictures? If they are right, the model cannot do this yet: train_sft.py first."
    )
    return Verdict("labels", "bad", text)


def _teachable(found: Findings) -> Verdict:
    forecast = found.forecast
    share, double = forecast.teachable, forecast.teachable_double
    which = f"in so many do not all {forecast.samples} completions"
    if not forecast.across:
        which = f"so many groups of {forecast.group} do not all"
    text = (
        f"{'REINFORCE' if forecast.across else 'GRPO'} will find {share:.0%} of the questions "
        f"teachable: {which} earn the same (95 %: {share.low:.0%} to {share.high:.0%})"
    )
    if share >= FEW:
        now = f"Right now {forecast.pass_1:.0%}, in one of {forecast.samples} tries"
        return Verdict("teachable", "good", f"{text}. {now} {forecast.pass_all:.0%}.")
    more = "take more and other questions (--shots, --train_size)"
    if not forecast.across:
        more = f"raise --num_generations, or {more}"
    if double is not None:
        more = f"--num_generations {2 * forecast.group} makes it {double:.0%}; or other questions"
    return Verdict("few", "watch", f"{text}: {more}.")


RULES = (
    *(_reward_fails, _frame, _cut, _format_first, _calls_first, _unpaid),
    *(_nothing_to_gain, _labels, _never),
    _teachable,
)


# ---- beside it -----------------------------------------------------------------------------------


def _told_blind(found: Findings) -> Verdict | None:
    blind = found.blind
    if blind is None or blind.real < LEAST:
        return None
    told = max(blind.swapped, blind.grey)
    level: Level = "watch" if told >= TOLD_BLIND * blind.real else "good"
    text = (
        f"{told:.1%} are right without looking, with grey or other pictures, {blind.real:.1%} with "
        f"the right ones; the best answer that is always the same gives {found.constant:.1%}."
    )
    if level == "watch":
        text += " More than half of that can be told from the words: expect a gain that is blind."
    return Verdict("blind", level, text)


def _holes(found: Findings) -> Verdict:
    attacked = found.attacked
    holes = [hole for hole in attacked.holes if hole.paid is not None]
    if attacked.honest is None:
        text = "The reward was not attacked: all targets are the same, or it cannot be computed."
        return Verdict("holes", "watch", text)
    slow = f" It is slow: {attacked.questions} questions were tried." * (not attacked.is_whole)
    if not holes:
        text = f"No attack on the reward earns more than an honest answer.{slow}"
        return Verdict("holes", "good" if attacked.is_whole else "watch", text)
    worst = ", ".join(f"{hole.attack!r}" for hole in holes[:3])
    as_right = sum(hole.is_as_right for hole in holes)
    text = (
        f"The reward has holes: {len(holes)} attacks are paid more than an honest wrong answer, "
        f"{as_right} of them like the right one, such as {worst}. GRPO will find them.{slow}"
    )
    return Verdict("holes", "bad" if as_right else "watch", text)


def _fails_on(found: Findings) -> Verdict | None:
    lost = [hole for hole in found.attacked.holes if hole.paid is None]
    if not lost:
        return None
    names = ", ".join(f"{hole.attack!r}" for hole in lost[:3])
    text = f"{len(lost)} attacks have no reward (a fault, a time-out, None), such as {names}: such "
    return Verdict("fails_on", "watch", f"{text}completions are left out of training.")


def _constant_target(found: Findings) -> Verdict | None:
    if found.top_share <= MOSTLY or found.blind is None:  # acting well is not told by the answer
        return None
    text = (
        f"{found.top_share:.0%} of the questions have the same target: a constant answer is paid."
    )
    return Verdict("constant", "watch", text)


def _near(found: Findings) -> Verdict | None:
    if not found.near:
        return None
    text = f"{found.near} held-out questions have a picture that looks like one of training."
    return Verdict("near", "watch", text)


def _partly_unreadable(found: Findings) -> Verdict | None:
    forecast = found.forecast
    if max(forecast.unreadable, forecast.cut) <= 0.1:
        return None
    text = f"{forecast.unreadable:.0%} of the answers cannot be read, {forecast.cut:.0%} are cut."
    return Verdict("unreadable", "watch", text)


BESIDE = (_told_blind, _holes, _fails_on, _constant_target, _near, _partly_unreadable)
