"""Episodes: completions in which an environment takes turns with the model.

A turn is a call of `sample.generate_group`. In the first, the G completions of a prompt share its
prefill; after that, every episode that goes on is a prompt of its own, with what was said and shown
behind it. Sampled tokens are never encoded a second time, and what is shown is never sampled: it is
neither predictor nor target in training (model/pack.py).

Randomness: an episode has one stream of numbers for its sampled tokens, so that its n-th token is
drawn with the same number however many observations came before.

Read first: acting/environment.py, sample.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from acting.environment import Environment, Observation
from data.examples import Example, Picture
from model.pack import Shown, continued
from model.processor import Processor
from model.vlm import VLM, Prompt, in_parts
from sample import Rollout, generate_group

MOST_TOKENS = 2**14  # prefilled at once in a later turn


@dataclass
class Episode:
    """What happened in one completion besides its own tokens.

    Attributes:
        state: the environment's, now.
        shown: what was put between the sampled tokens.
        turns: (what was said, what was shown), turn after turn.
    """

    state: Any
    shown: list[Shown] = field(default_factory=list)
    turns: list[tuple[str, Observation]] = field(default_factory=list)
    heard: int = 0  # characters up to the end of the last call: a token may bring more than that

    def hear(self, text: str, closings: Sequence[str]) -> str:
        """What was said since the last call, up to the end of the next one.

        `text`: all that was sampled. So the turns are the pieces of the text between closing tags.
        """
        said = text[self.heard :]
        stop = min(said.index(c) + len(c) for c in closings if c in said)
        self.heard += stop
        return said[:stop]

    def without_pictures(self) -> "Episode":
        """What other processes are told of it."""
        shown = [Shown(s.at, None) for s in self.shown]
        turns = [(said, replace(o, parts=tuple(map(text_of, o.parts)))) for said, o in self.turns]
        return Episode(None, shown, turns)


def text_of(part: str | Picture) -> str:
    """A part of an observation in words."""
    return part if isinstance(part, str) else "[picture]"


def sample_episodes(
    model: VLM,
    processor: Processor,
    prompts: list[Prompt],
    examples: Sequence[Example],
    environment: Environment | None,
    num_generations: int,
    max_completion_length: int,
    temperature: float = 1.0,
    seed: int = 0,
    step: int = 0,
    freeze_vision: bool = False,
) -> Rollout:
    """`sample.generate_group`, where completions may pause and be shown something.

    Args:
        examples: of the prompts. environment: None: completions only answer.
        max_completion_length: of the sampled tokens of all turns.
        freeze_vision: leave the tower's output in the prompts and in what was shown, for training.
    Returns: a Rollout of the sampled tokens, with the episode of each of its N * G rows. Where an
        observation was the last, `finish` is "over".
    """
    G, limit = num_generations, max_completion_length
    more = dict(temperature=temperature, seed=seed, step=step)
    if environment is None:
        return generate_group(model, processor, prompts, G, limit, **more)
    more["pause_at"] = environment.closings
    seen = [prompt for prompt in prompts if prompt.features is None]
    keep_features_of(model, seen)
    rollout = generate_group(model, processor, prompts, G, limit, **more)
    episodes = [Episode(environment.start(examples[b // G])) for b in range(len(rollout.ids))]
    while live := _act(rollout, episodes, environment, processor, limit):
        keep_features_of(model, [episodes[b].shown[-1].piece for b in live])
        starts = {
            b: continued(prompts[b // G], rollout.ids[b], b % G, episodes[b].shown) for b in live
        }
        lengths = [len(starts[b].ids) for b in live]  # each is computed with its whole history
        for rows in in_parts(live, lengths, MOST_TOKENS):
            room = limit - min(len(rollout.ids[b]) for b in rows)
            turn = generate_group(model, processor, [starts[b] for b in rows], 1, room, **more)
            for k, b in enumerate(rows):
                _append(rollout, b, turn, k, limit)
    seen += [shown.piece for episode in episodes for shown in episode.shown]
    if freeze_vision:
        keep_features_of(model, seen)  # of what was shown at the very end, too
    else:  # a tower that learns sees them anew
        for piece in seen:
            piece.features = None
    decode = processor.decode
    rollout.texts = [processor.opening + decode(ids) for ids in rollout.ids]
    rollout.episodes = episodes
    return rollout


def _act(
    rollout: Rollout,
    episodes: list[Episode],
    environment: Environment,
    processor: Processor,
    limit: int,
) -> list[int]:
    """The environment's turn in every episode that has paused. Returns the rows that go on."""
    live = []
    for b, episode in enumerate(episodes):
        if rollout.finish[b] != "pause":
            continue
        count = len(rollout.ids[b])
        said = episode.hear(processor.decode(rollout.ids[b]), environment.closings)
        episode.state, observation = environment.act(episode.state, said)
        episode.turns.append((said, observation))
        if observation.is_last:
            rollout.finish[b] = "over"
            continue
        piece = processor.piece(f"turn {len(episode.turns)}", observation.parts)
        episode.shown.append(Shown(count, piece))
        if count >= limit:
            rollout.finish[b] = "length"
        else:
            live.append(b)
    return live


def _append(rollout: Rollout, b: int, turn: Rollout, k: int, limit: int) -> None:
    """Put row k of a turn behind row b, as far as there is room."""
    room = limit - len(rollout.ids[b])
    is_cut = len(turn.ids[k]) > room
    rollout.ids[b] = torch.cat((rollout.ids[b], turn.ids[k][:room]))
    rollout.logps[b] = torch.cat((rollout.logps[b], turn.logps[k][:room]))
    rollout.finish[b] = "length" if is_cut else turn.finish[k]


@torch.no_grad()
def keep_features_of(model: VLM, pieces: Sequence[Prompt]) -> None:
    """Run the tower over the pictures of prompts or of what was shown: once, if they are alike."""
    alike: dict[tuple, list[Prompt]] = {}
    for piece in pieces:
        if piece.pixels is not None and piece.features is None:
            key = (*piece.grids, piece.pixels.numpy().tobytes())
            alike.setdefault(key, []).append(piece)
    model.keep_image_features([first for first, *_ in alike.values()])
    for first, *others in alike.values():
        for piece in others:
            piece.features = first.features


def demonstrated_calls(
    example: Example, mode: str, processor: Processor, environment: Environment | None
) -> tuple[list[int], list[Shown]]:
    """The calls that an example's reasoning makes, as tokens, and what they are shown."""
    ids, shown = [], []
    if environment is None or example.reasoning is None:
        return ids, shown
    state = environment.start(example)
    for thought, call in example.reasoning.calls:
        tag = {"think": "think", "steps": "reasoning"}.get(mode)
        said = f"<{tag}>{thought}</{tag}>{call}" if tag else call
        state, observation = environment.act(state, said)
        ids += processor.encode(said if ids else said.removeprefix(processor.opening))
        shown.append(Shown(len(ids), processor.piece(example.id, observation.parts)))
    return ids, shown


def tokens_computed_again(prompt: Prompt, episode: Episode, length: int) -> int:
    """Tokens of the prefills after the first: everything before, once for every turn.

    `length`: of the completion; behind what was shown at its end nothing was computed.
    """
    total, seen = 0, 0
    for shown in episode.shown:
        seen += len(shown.piece.ids)
        if shown.at < length:
            total += len(prompt.ids) + shown.at + seen
    return total
