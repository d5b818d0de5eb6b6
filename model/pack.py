"""Packs: whole groups end to end, every prompt once, and the log-probabilities of completions.

    Pack                [prefix | c_1 | .. | c_G], group after group
    completion_logps    one log-probability per completion token: the only place of the next-token
                        shift
    Shown               what an environment put into a completion; it is read and never learned

Letters are those of model/vlm.py. Next: model/attention.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kernels import linear_logprob
from model.attention import PackLayout
from model.vlm import VLM, Prompt


@dataclass
class Shown:
    """What an environment put into a completion: tokens and pictures that were not sampled.

    Attributes:
        at: how many sampled tokens of the completion stand before it.
        piece: its tokens, its pictures, and its positions, which count from 0.
    """

    at: int
    piece: Prompt


def interleaved(
    tokens: Tensor, shown: Sequence[Shown], first: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The sampled tokens (C_i,) of a completion with the S tokens that it was shown in between.

    Args:
        first: position of the first token.
    Returns: ids (C_i + S,), positions (3, C_i + S), is_sampled (C_i + S,) bool.
    """
    parts, at = [], 0
    for stop, piece in [*((s.at, s.piece) for s in shown), (len(tokens), None)]:
        said = tokens[at:stop]
        places = (torch.arange(len(said)) + first).expand(3, -1)  # (3, tokens)
        parts.append((said, places, torch.ones(len(said), dtype=torch.bool)))
        at, first = stop, first + len(said)
        if piece is not None:
            nothing_sampled = torch.zeros(len(piece.ids), dtype=torch.bool)
            parts.append((piece.ids, piece.positions + first, nothing_sampled))
            first += piece.next_position
    ids, positions, is_sampled = zip(*parts, strict=True)
    return torch.cat(ids), torch.cat(positions, dim=1), torch.cat(is_sampled)


def continued(prompt: Prompt, tokens: Tensor, sample: int, shown: Sequence[Shown] = ()) -> Prompt:
    """A prompt with the beginning (C_i,) of its completion number `sample` behind it.

    The random numbers of what follows are those that follow in the whole completion.
    """
    ids, positions, _ = interleaved(tokens, shown, prompt.next_position)
    pieces = [p for p in (prompt, *(s.piece for s in shown)) if p.pixels is not None]
    features = [p.features for p in pieces]
    is_known = bool(pieces) and all(part is not None for part in features)
    return replace(
        prompt,
        ids=torch.cat((prompt.ids, ids)),
        positions=torch.cat((prompt.positions, positions), dim=1),
        pixels=torch.cat([p.pixels for p in pieces]) if pieces else None,
        grids=[grid for p in pieces for grid in p.grids],
        features=torch.cat(features) if is_known else None,
        first_sample=sample,
        said=prompt.said + len(tokens),
    )


@dataclass
class Pack:
    """Whole groups end to end, with everything one training forward needs."""

    prompts: list[Prompt]
    layout: PackLayout
    pieces: list[Prompt]  # the prompts, each followed by what its completions were shown
    starts: list[int]  # packed token at which each piece begins
    ids: Tensor  # (T,) int64
    positions: Tensor  # (3, T) int64
    predictors: Tensor  # (C,) int64: packed token whose hidden state predicts completion token c
    targets: Tensor  # (C,) int64


def make_pack(
    prompts: list[Prompt],
    completions: list[list[Tensor]],
    device: torch.device | str = "cpu",
    shown: list[list[list[Shown]]] | None = None,
) -> Pack:
    """Lay out groups end to end: prefix once, then its completions.

    Args:
        prompts: N prompts. completions: per prompt its completions, (C_i,) int64 each, C_i >= 1.
        shown: per prompt and completion what it was shown; None: nothing.
    Notes: The completion tokens of the pack are ordered prompt by prompt, completion by completion.
        What was shown is read, but neither predictor nor target.
    """
    shown = shown or [[[] for _ in group] for group in completions]
    lengths = [
        [
            len(tokens) + sum(len(s.piece.ids) for s in seen)
            for tokens, seen in zip(*pair, strict=True)
        ]
        for pair in zip(completions, shown, strict=True)
    ]
    layout = PackLayout([len(prompt.ids) for prompt in prompts], lengths, device)
    ids, positions, predictors, targets, pieces, starts = [], [], [], [], [], []
    for n, (prefix, spans) in enumerate(layout.spans()):
        prompt = prompts[n]
        ids.append(prompt.ids)
        positions.append(prompt.positions)
        pieces.append(prompt)
        starts.append(prefix.start)
        for tokens, seen, span in zip(completions[n], shown[n], spans, strict=True):
            if len(tokens) == 0:
                raise ValueError(f"prompt {prompt.id}: a completion has no token")
            sequence, places, is_sampled = interleaved(tokens, seen, prompt.next_position)
            ids.append(sequence)
            positions.append(places)
            # The next-token shift. The last token of the prefix predicts the first of every
            # completion; after that each token predicts its follower.
            predictor = torch.arange(span.start - 1, span.stop - 1)  # (C_i + S,)
            predictor[0] = prefix.stop - 1
            predictors.append(predictor[is_sampled])  # (C_i,)
            targets.append(tokens)
            begin = span.start
            for s in seen:
                pieces.append(s.piece)
                starts.append(begin + s.at)
                begin += len(s.piece.ids)
    parts = (ids, positions, predictors, targets)
    tensors = (torch.hstack(part).to(device, non_blocking=True) for part in parts)
    return Pack(prompts, layout, pieces, starts, *tensors)


def completion_logps(
    model: VLM, pack: Pack, temperature: float = 1.0, suppressed: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Log-probability of every completion token of a pack, under the sampler's own distribution.

    Args:
        temperature: the sampler's. suppressed: (V,) bool, tokens the sampler never draws.
    Returns: logp (C,) fp32 with gradient, entropy (C,) fp32 without, both in nats.
    """
    hidden = model.completion_hidden(pack)  # (C, D)
    return linear_logprob(hidden, model.head_weight, pack.targets, temperature, suppressed)
