"""The one sampler: G completions for each of N prompts, and a command line to ask a checkpoint.

    python sample.py --image flower.png --prompt "Which species is this flower?" --num_generations 4

Method: the tower and the prefill run once per prompt. The G completions of a prompt share its keys
and values; what they add stands behind them in the same cache (kernels/decode.py), and one decoding
step advances all N * G rows together. Finished rows are computed along until every row of half of
the groups has finished; then the other half continues alone.

Randomness is counter-based: every completion has its own stream of numbers, a function of (seed,
step, prompt id, sample index) alone, however prompts are batched. kernels/sample.py chooses a
token by inverting the cumulative distribution at one uniform number, from float32 logits of the
*whole* distribution (no top-k, no top-p: what is sampled is what is trained).

Next: training/batches.py.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

import config
from answers import MAX_NAME_CHARS, normalise_name
from config import BASE_MODEL, flag, require, require_counts, require_temperature
from data.examples import full_question
from kernels import sample_tokens
from model.attention import Span
from model.load import check_files_fit, load_model, load_processor, local_directory
from model.pack import Shown
from model.processor import Processor
from model.vlm import VLM, DecodingRows, Prompt
from rewards import FORMATS, classification_reward
from runtime import console, distributed
from runtime.device import pick_device
from runtime.errors import InputError, visible
from runtime.keyed_random import keyed

CHECK_END_EVERY = 8  # decoding steps between two checks of which rows have ended
STEPS_BEFORE_GRAPH = 3  # decoding steps before one is recorded
MIN_REPLAYS = 4  # with fewer steps to come, a recording costs more than it saves


@dataclass
class Rollout:
    """N * G completions; row b answers prompt b // G. Scoring adds rewards and advantages."""

    ids: list[Tensor]  # (C_i,) int64 on the CPU, up to and including the first end token
    logps: list[Tensor]  # (C_i,) fp32 on the CPU, nats, under the distribution that was sampled
    finish: list[str]  # "stop": it ended itself; "length": it was cut; "pause": see pause_at
    texts: list[str]
    rewards: Tensor | None = None  # (N, G) fp32
    parts: list[dict[str, float] | None] | None = (
        None  # of each reward, unweighted; None: it has none
    )
    advantages: Tensor | None = None  # (N, G) fp32
    episodes: list | None = None  # where completions were shown something (acting/episodes.py)

    @property
    def shown(self) -> list[list[Shown]] | None:
        """What each completion was shown; None: nothing."""
        return None if self.episodes is None else [episode.shown for episode in self.episodes]

    @property
    def has_reward(self) -> Tensor:
        """Which completions of a scored rollout have a reward: (N, G) bool. A lost one has no
        parts, and a stand-in among the rewards."""
        return torch.tensor([parts is not None for parts in self.parts]).view_as(self.rewards)

    def add_part(self, name: str, values: Tensor, weight: float) -> None:
        """Add `weight` times a value (B,) to every reward, and note it as a part of the reward.

        Where a reward was lost, its stand-in stays the mean of the group.
        """
        for parts, value in zip(self.parts, values.tolist(), strict=True):
            if parts is not None:
                parts[name] = value
        values, counted = values.view_as(self.rewards), self.has_reward  # (N, G) each
        means = (values * counted).sum(1, keepdim=True) / counted.sum(1, keepdim=True).clamp_min(1)
        self.rewards = self.rewards + weight * torch.where(counted, values, means)


def completion_uniforms(
    seed: int, step: int, prompt_id: str, sample: int, length: int
) -> np.ndarray:
    """The random numbers of one completion: (length,) fp32 in [0, 1).

    The counter-based generator Philox (Salmon et al., SC 2011), keyed with a hash of the four
    arguments.
    """
    bits = keyed(f"{seed}|{step}|{sample}|{prompt_id}")
    return np.random.Generator(bits).random(length, dtype=np.float32)


class Recorder:
    """Records steps as CUDA graphs, one after the other, in one stream and one pool of memory.

    `torch.cuda.graph` would empty the allocator's cache each time, and with it the memory that the
    next update asks for again.
    """

    def __init__(self):
        self.stream = torch.cuda.Stream()
        self.newest: torch.cuda.CUDAGraph | None = None  # its pool lives as long as it does

    def record(self, step: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """The operations of `step`, which are not computed now."""
        graph = torch.cuda.CUDAGraph()
        pool = None if self.newest is None else self.newest.pool()
        torch.cuda.synchronize()
        with torch.cuda.stream(self.stream):
            graph.capture_begin(pool=pool)
            try:
                step()
            finally:
                graph.capture_end()
        self.newest = graph
        return graph


@cache
def recorder() -> Recorder:
    """The one of this process."""
    return Recorder()


class Decoder:
    """Rows in the middle of their completions.

    One step is a fixed sequence of operations that never asks the host anything. On a GPU, where
    starting a few hundred small kernels takes longer than running them, it is recorded once as a
    CUDA graph and then replayed.

    Args:
        model_rows: the model after its prefill (`VLM.prefill`). uniforms: (B, C_max), one random
            number per row and token.
        suppressed: (V,) bool, never sampled. temperature: 0 is greedy.
    """

    def __init__(
        self,
        model_rows: DecodingRows,
        uniforms: Tensor,
        suppressed: Tensor,
        temperature: float,
    ):
        self.model_rows, self.uniforms = model_rows, uniforms
        self.suppressed, self.temperature = suppressed, temperature
        self.rows = torch.arange(len(uniforms), device=uniforms.device)  # (B,) of the rollout
        self.tokens = torch.full_like(uniforms, -1, dtype=torch.int64)  # (B, C_max)
        self.logps = torch.zeros_like(uniforms)  # (B, C_max) fp32
        self.newest = Span(0, 1, uniforms.device)  # the column chosen last
        self.graph: torch.cuda.CUDAGraph | None = None
        self.steps = 0  # since the rows changed
        self.left = uniforms.shape[1] - 1  # steps to come

    def choose(self, logits: Tensor) -> None:
        """Draw the newest token of every row from its logits (B, V) fp32, which it may change."""
        newest = self.newest.index
        uniforms = self.uniforms[:, newest].squeeze(1)  # (B,)
        ids, logps = sample_tokens(logits, uniforms, self.temperature, self.suppressed)  # (B,) each
        self.tokens[:, newest], self.logps[:, newest] = ids[:, None], logps[:, None]

    def step(self) -> None:
        """One token more for all rows: as a replay, once there is a recording."""
        self.left -= 1
        if self.graph is not None:
            self.graph.replay()
            return
        self.advance()
        self.steps += 1
        # The first steps compile kernels and make workspaces, which a recording may not contain.
        is_recordable = self.rows.is_cuda and self.model_rows.is_recordable
        if is_recordable and self.steps == STEPS_BEFORE_GRAPH and self.left >= MIN_REPLAYS:
            self.graph = recorder().record(self.advance)

    def advance(self) -> None:
        """One token more for all rows, operation by operation."""
        ids = self.tokens[:, self.newest.index].squeeze(1)  # (B,)
        logits = self.model_rows(ids)  # (B, V)
        self.newest.advance()
        self.choose(logits)

    def unfinished_groups(self, end_ids: Tensor, has_paused: Tensor | None = None) -> Tensor:
        """Groups with a row that has neither ended nor paused (B,): (N',) int64. Asks the host."""
        has_ended = torch.isin(self.tokens, end_ids).any(1)  # (B,)
        if has_paused is not None:
            has_ended = has_ended | has_paused.to(has_ended.device)
        return (~has_ended).view(-1, self.model_rows.group_size).any(1).nonzero().squeeze(1)

    def keep(self, groups: Tensor) -> None:
        """Drop all groups but these."""
        rows = self.model_rows.keep(groups)  # (B',)
        for name in ("rows", "uniforms", "tokens", "logps"):
            setattr(self, name, getattr(self, name)[rows])
        self.graph, self.steps = None, 0


@torch.inference_mode()
def generate_group(
    model: VLM,
    processor: Processor,
    prompts: list[Prompt],
    num_generations: int,
    max_completion_length: int,
    temperature: float = 1.0,
    seed: int = 0,
    step: int = 0,
    pause_at: Sequence[str] = (),
) -> Rollout:
    """Draw `num_generations` completions for every prompt.

    Args:
        temperature: 0 is greedy (log-probabilities are then those at temperature 1).
        seed, step: with the prompt's id and the sample's index, the key of the random numbers.
        pause_at: texts behind which a completion pauses; its finish is then "pause".
    Returns: a Rollout of N * G rows, the G rows of a prompt next to each other.
    Raises: InputError if a log-probability is not finite, before anything can learn from it.
    """
    N, G, device = len(prompts), num_generations, model.device
    B = N * G
    ends = torch.tensor(processor.end_ids)
    ends_on_device = ends.to(device, non_blocking=True)
    uniforms = torch.zeros(B, max_completion_length)  # (B, C_max)
    if temperature > 0:
        for b in range(B):
            prompt = prompts[b // G]
            key = (seed, step, prompt.id, prompt.first_sample + b % G)
            stream = completion_uniforms(*key, prompt.said + max_completion_length)
            uniforms[b] = torch.from_numpy(stream[prompt.said :])

    # Prefill: every prompt once.
    logits, model_rows = model.prefill(prompts, G, max_completion_length)  # (B, V)
    # Decode: one token for all rows at a time.
    suppressed = processor.suppressed_tokens.to(device, non_blocking=True)  # (V,)
    uniforms = uniforms.to(device, non_blocking=True)
    decoder = Decoder(model_rows, uniforms, suppressed, temperature)
    decoder.choose(logits)
    tokens, logps = decoder.tokens.clone(), decoder.logps.clone()  # (B, C_max)
    paused: set[int] = set()  # rows
    longest = max(map(len, pause_at), default=0)  # a text has no more tokens than characters
    for t in range(1, max_completion_length):
        if t % CHECK_END_EVERY == 0:
            distributed.stop_point()
            has_paused = None
            if pause_at:
                start = max(0, t - CHECK_END_EVERY - longest)
                newest, rows = decoder.tokens[:, start:t].cpu(), decoder.rows.tolist()  # (B', n)
                paused |= {
                    b
                    for b, ids in zip(rows, newest, strict=True)
                    if b not in paused and processor.says(ids, pause_at)
                }
                has_paused = torch.tensor([b in paused for b in rows])
            groups = decoder.unfinished_groups(ends_on_device, has_paused)
            if len(groups) == 0:
                break
            if 2 * len(groups) <= len(decoder.rows) // G:
                tokens[decoder.rows], logps[decoder.rows] = decoder.tokens, decoder.logps
                decoder.keep(groups)
        decoder.step()
    tokens[decoder.rows], logps[decoder.rows] = decoder.tokens, decoder.logps

    tokens, logps = tokens.cpu(), logps.cpu()
    if not bool(torch.isfinite(logps).all()):
        raise InputError(
            "the model's probabilities are not finite numbers: its weights are damaged, or "
            "--learning_rate was too high"
        )
    is_end = torch.isin(tokens, ends)  # (B, C_max)
    cut = (tokens >= 0).sum(1)  # (B,) all that was chosen
    lengths = torch.where(is_end.any(1), is_end.int().argmax(1) + 1, cut).tolist()
    finish = ["stop" if ended else "length" for ended in is_end.any(1).tolist()]
    for b in range(B if pause_at else 0):
        if (pause := processor.length_until(tokens[b, : lengths[b]], pause_at)) is not None:
            lengths[b], finish[b] = pause, "pause"
    return Rollout(
        ids=[row[:n].clone() for row, n in zip(tokens, lengths, strict=True)],
        logps=[row[:n].clone() for row, n in zip(logps, lengths, strict=True)],
        finish=finish,
        texts=[
            processor.opening + processor.decode(row[:n])
            for row, n in zip(tokens, lengths, strict=True)
        ],
    )


@dataclass(frozen=True)
class SampleConfig:
    prompt: str = flag("Which species is this flower?", "the question")
    image: Path | None = flag(None, "picture to ask about; leave out for a question without one")
    target: str | None = flag(None, "the right name: prints the reward of each answer")
    prompt_mode: Literal["think", "steps", "direct", "plain"] = flag(
        "think", "how to answer; plain adds nothing"
    )
    model: Path = flag(BASE_MODEL, "checkpoint directory")
    adapter: Path | None = flag(None, "directory of a LoRA adapter, PEFT's files")
    num_generations: int = flag(4, "answers to draw")
    max_completion_length: int = flag(64, "tokens")
    max_prompt_length: int = flag(2048, "tokens; a longer prompt is an error")
    max_pixels: int | None = flag(None, "larger images are downscaled; default: the checkpoint's")
    temperature: float = flag(1.0, "0 is greedy")
    seed: int = flag(0, "another seed draws other answers")
    device: str = flag("auto", "cpu, cuda, ...; auto takes a GPU if there is one")
    dtype: Literal["float32", "bfloat16"] = flag("float32", "of the weights")

    def __post_init__(self) -> None:
        require_counts(self, "num_generations max_completion_length max_prompt_length")
        require_temperature(self)
        if self.target is not None:
            is_name = len(self.target) <= MAX_NAME_CHARS and bool(normalise_name(self.target))
            require(is_name, "target", "a name", self)


def main(argv: list[str] | None = None) -> None:
    cfg = config.parse(SampleConfig, argv, __doc__)
    cfg = replace(cfg, model=local_directory(cfg.model))
    processor = load_processor(cfg.model, cfg.max_pixels)
    processor.check_prompt_mode(cfg.prompt_mode)
    processor.check_lengths(cfg.max_prompt_length, cfg.max_completion_length)
    device = pick_device(cfg.device, cfg.dtype)
    model = load_model(cfg.model, getattr(torch, cfg.dtype), device, cfg.adapter)
    question = (
        cfg.prompt if cfg.prompt_mode == "plain" else full_question(cfg.prompt, cfg.prompt_mode)
    )
    images = [cfg.image] if cfg.image else []
    prompt = processor.prompt("cli", images, question, cfg.max_prompt_length)
    check_files_fit(model, prompt)
    print(visible(question))
    start = time.perf_counter()
    rollout = generate_group(
        model,
        processor,
        [prompt],
        cfg.num_generations,
        cfg.max_completion_length,
        cfg.temperature,
        cfg.seed,
    )
    seconds = time.perf_counter() - start
    for text, logp, finish in zip(rollout.texts, rollout.logps, rollout.finish, strict=True):
        print(f"{visible(text)}  [{len(logp)} tokens, log-probability {logp.sum():.2f}, {finish}]")
        if cfg.target is not None:
            mode = cfg.prompt_mode if cfg.prompt_mode in FORMATS else "direct"
            reward = classification_reward(text, cfg.target, mode)
            print(f"    reward {reward.total:g}: {reward.parts}")
    tokens = sum(len(ids) for ids in rollout.ids)
    print(f"{tokens} tokens in {seconds:.2f} s, {tokens / seconds:.0f} tokens/s")


if __name__ == "__main__":
    console.run(main, memory_flags="--num_generations, --max_completion_length, --max_pixels")
