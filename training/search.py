"""Search at test time: which of several completions answers a question, and what that costs.

    majority    the most frequent answer (self-consistency, arXiv:2203.11171)
    best        the completion that a verifier finds best (best of n)
    weighted    the answer for which a verifier's probabilities add up to most
    beam        statement by statement: of W beginnings with M continuations each the W best stay
                (step beam; a verifier of statements)

The measure of cost is tokens computed: those of every prefill, of every completion, and of the
verifier's forward. Sample i of a question is the same text for every method at the same seed.

Read first: training/evaluation.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from acting.environment import Environment
from acting.episodes import Episode, sample_episodes, tokens_computed_again
from answers import parse_answer
from data.examples import Example
from model.pack import Shown, continued
from model.processor import Processor
from model.scored import ScoredVLM
from model.vlm import VLM, Prompt
from sample import Rollout, generate_group
from tasks.task import Task
from training.batches import MOST_GROUPS, scores_of_completions
from training.verifier import ends, in_chunks, what_is_read

Method = Literal["majority", "best", "weighted", "beam"]
SEPARATORS = ",;:\n>"  # end a statement of a thought


@dataclass
class Chosen:
    """The answer to one question.

    Attributes:
        texts: every completion that was finished, the chosen one included.
        computed: tokens, see above.
        episode: what else happened, where there is something to act in.
    """

    text: str
    ids: Tensor
    texts: list[str]
    computed: int
    episode: Episode | None = None


@dataclass
class Sampling:
    """How completions are drawn."""

    model: VLM
    processor: Processor
    length: int
    temperature: float
    seed: int
    environment: Environment | None = None

    def __call__(
        self, prompts: list[Prompt], count: int, length: int = 0, pause_at: Sequence[str] = ()
    ) -> Rollout:
        """`count` completions of each prompt, of at most `length` tokens (0: as configured)."""
        sizes = (count, length or self.length, self.temperature, self.seed)
        return generate_group(self.model, self.processor, prompts, *sizes, pause_at=pause_at)

    def about(self, prompts: list[Prompt], examples: list[Example], count: int) -> Rollout:
        """`count` completions of each prompt: episodes, where there is something to act in."""
        acting = (examples, self.environment)
        sizes = (count, self.length, self.temperature, self.seed)
        return sample_episodes(self.model, self.processor, prompts, *acting, *sizes)


# ---- choosing among whole completions ------------------------------------------------------------


def heaviest(answers: Sequence[str | None], weights: Sequence[float]) -> int:
    """Index of the first completion with the answer whose weights add up to most.

    Completions without an answer (None) have no vote; where none has one, the first is chosen.
    """
    votes: dict[str, float] = {}
    for answer, weight in zip(answers, weights, strict=True):
        if answer is not None:
            votes[answer] = votes.get(answer, 0.0) + weight
    return answers.index(max(votes, key=votes.get)) if votes else 0


def majority(texts: list[str]) -> int:
    """Index of the first completion with the most frequent answer."""
    return heaviest([parse_answer(text) for text in texts], [1.0] * len(texts))


def completion_scores(
    verifier: ScoredVLM,
    prompts: list[Prompt],
    ids: list[Tensor],
    shown: list[list[Shown]] | None = None,
) -> Tensor:
    """What a verifier says after each completion (N * G of them): (N, G) fp32 on the CPU.

    `prompts`: as `training.verifier.what_is_read` has them.
    """
    scores = scores_of_completions(verifier, prompts, ids, shown=shown)  # (C,)
    return scores[ends(ids)].view(len(prompts), -1)


def among_samples(
    sampling: Sampling,
    task: Task,
    prompts: list[Prompt],
    examples: list[Example],
    count: int,
    method: str,
    verifier: ScoredVLM | None,
) -> list[Chosen]:
    """One of `count` completions of every question: majority, best or weighted."""
    rollout, scores, read = sampling.about(prompts, examples, count), None, prompts
    if verifier is not None:
        read = what_is_read(verifier, prompts)
        scores = completion_scores(verifier, read, rollout.ids, rollout.shown)
    chosen = []
    for n, (prompt, example) in enumerate(zip(prompts, examples, strict=True)):
        rows = slice(n * count, (n + 1) * count)
        texts, ids = rollout.texts[rows], rollout.ids[rows]
        if method == "majority":
            index = majority([task.last_turn(text) for text in texts])
        elif method == "best":
            index = int(scores[n].argmax())
        else:
            answers = [task.answer(text, example) for text in texts]
            index = heaviest(answers, scores[n].sigmoid().tolist())
        episodes = rollout.episodes[rows] if rollout.episodes else [None] * count
        tokens = len(prompt.ids) + sum(map(len, ids))
        shown = [len(s.piece.ids) for e in episodes if e is not None for s in e.shown]
        computed = tokens if verifier is None else 2 * tokens + sum(shown)
        if own := len(read[n].ids) - len(prompt.ids):  # the solver's answer, written and read
            computed += len(prompt.ids) + 2 * own
        computed += sum(
            tokens_computed_again(prompt, e, len(i))
            for e, i in zip(episodes, ids, strict=True)
            if e is not None
        )
        chosen.append(Chosen(texts[index], ids[index], texts, computed, episodes[index]))
    return chosen


# ---- statement by statement ----------------------------------------------------------------------


@dataclass
class Beginning:
    """What a completion has said so far.

    Attributes:
        scores: log-odds of its statements. finish: "pause" while it goes on.
    """

    ids: Tensor
    sample: int
    scores: list[float]
    finish: str = "pause"

    @property
    def value(self) -> float:
        """The mean probability that a statement is true; 0.5 where there is none."""
        said = torch.tensor(self.scores).sigmoid()
        return float(said.mean()) if len(said) else 0.5


class Beam:
    """Step beam search. `width`: beginnings that stay, W; `count`: continuations of each, M."""

    def __init__(self, sampling: Sampling, verifier: ScoredVLM, width: int, count: int):
        self.sampling, self.verifier = sampling, verifier
        self.width, self.count = width, count

    def __call__(self, prompts: list[Prompt]) -> list[Chosen]:
        """The completion of every question that is left in the end."""
        nothing = torch.zeros(0, dtype=torch.int64)
        beams = [[Beginning(nothing, 0, [])] for _ in prompts]
        computed = [0] * len(prompts)
        while live := self._live(beams):
            grown: list[list[Beginning]] = [
                [b for b in beam if b.finish != "pause"] for beam in beams
            ]
            for chunk in in_chunks(live, 8 * MOST_GROUPS):
                for n, children, tokens in self._grow(prompts, chunk):
                    grown[n] += children
                    computed[n] += tokens
            beams = [sorted(beam, key=lambda b: -b.value)[: self.width] for beam in grown]
        decode = self.sampling.processor.decode
        opening = self.sampling.processor.opening
        return [
            Chosen(
                opening + decode(beam[0].ids),
                beam[0].ids,
                [opening + decode(b.ids) for b in beam],
                tokens,
            )
            for beam, tokens in zip(beams, computed, strict=True)
        ]

    def _live(self, beams: list[list[Beginning]]) -> list[tuple[int, Beginning]]:
        """(question, beginning) of all that go on."""
        return [(n, b) for n, beam in enumerate(beams) for b in beam if b.finish == "pause"]

    def _grow(self, prompts: list[Prompt], live: list[tuple[int, Beginning]]):
        """Yield for every beginning: its question, its continuations by one statement, and the
        tokens computed, by the policy and by the verifier."""
        starts = [continued(prompts[n], b.ids, b.sample * self.count) for n, b in live]
        room = self.sampling.length - min(len(b.ids) for _, b in live)
        rollout = self.sampling(starts, self.count, room, SEPARATORS)
        scores = self._scores(starts, rollout)
        for k, (n, b) in enumerate(live):
            rows = range(k * self.count, (k + 1) * self.count)
            children, tokens = [], 2 * len(starts[k].ids)
            for m, row in enumerate(rows):
                ids = torch.cat((b.ids, rollout.ids[row]))[: self.sampling.length]
                finish = rollout.finish[row] if len(ids) < self.sampling.length else "length"
                child = Beginning(ids, b.sample * self.count + m, b.scores, finish)
                if rollout.finish[row] == "pause":
                    child.scores = [*b.scores, scores[row]]
                children.append(child)
                tokens += 2 * len(rollout.ids[row])
            yield n, children, tokens

    def _scores(self, starts: list[Prompt], rollout: Rollout) -> list[float]:
        """What the verifier says after each continuation."""
        # A state is read before a token: any will do.
        after = torch.tensor([self.sampling.processor.end_ids[0]])
        ids = [torch.cat((tokens, after)) for tokens in rollout.ids]
        return completion_scores(self.verifier, starts, ids).flatten().tolist()


def choose(
    sampling: Sampling,
    task: Task,
    prompts: list[Prompt],
    examples: list[Example],
    count: int,
    method: Method = "majority",
    verifier: ScoredVLM | None = None,
    width: int = 1,
) -> list[Chosen]:
    """An answer to every question by any method. `count`: of completions, or continuations."""
    if method == "beam":
        return Beam(sampling, verifier, width, count)(prompts)
    return among_samples(sampling, task, prompts, examples, count, method, verifier)
