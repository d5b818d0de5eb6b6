"""Episodes: what is sampled is what is trained, also behind what an environment has shown.

The log-probabilities that sampling keeps equal those of a packed forward. Its gradients are those
of the plain next-token loss over the whole sequence, with everything shown left out by hand. An
episode depends on nothing but its own seed, step, question and sample; without a call nothing
changes. Run: pytest tests/acting/test_episodes.py
"""

from collections import Counter
from dataclasses import dataclass, replace
from types import MappingProxyType

import pytest
import torch
from PIL import Image

from acting import episodes as module
from acting.environment import Observation, last_call
from acting.episodes import Episode, demonstrated_calls, keep_features_of, sample_episodes
from data.examples import Example, Reasoning
from data.garden.drawing import draw_flower
from data.garden.world import RL_SPECIES
from model.attention import PackLayout
from model.config import FAMILIES
from model.pack import Shown, completion_logps, continued, make_pack
from model.processor import Processor
from model.vlm import rope_positions
from model.weights import load_model
from sample import generate_group
from tests.model.test_shared_prefix import assert_close, gradients

LENGTH, G = 40, 4
VOWELS = tuple("aeiou")


@dataclass
class Album:
    """After every vowel it shows a picture, a text, or nothing more: by how often it was asked."""

    closings: tuple[str, ...] = VOWELS
    budget: int = 3
    weights = MappingProxyType({"asked": 0.1})

    def start(self, example):
        return 0

    def act(self, state, said):
        assert any(vowel in said for vowel in self.closings)
        sizes = [(32, 24), (24, 40), (16, 16)]
        picture = Image.new("RGB", sizes[state % 3], (80 * (state % 3), 90, 200 - 60 * (state % 3)))
        parts = [("<look>", picture, "</look>"), ("no <|image_pad|> here",), (picture, picture)]
        is_last = state >= self.budget
        outcome = "over" if is_last else "done"
        return state + 1, Observation(parts[state % 3], outcome, is_last)

    def reward(self, example, state, text):
        return {"asked": float(state)}


@pytest.fixture(scope="module", params=FAMILIES)
def tiny(request, tiny_dirs):
    return load_model(tiny_dirs[request.param]), Processor(tiny_dirs[request.param])


@pytest.fixture(scope="module")
def examples():
    return [
        Example(f"e{k}", (draw_flower(species.flower, k),), "Which species?", species.name)
        for k, species in enumerate(RL_SPECIES[:2])
    ]


@pytest.fixture
def prompts(tiny, examples):
    return [tiny[1].prompt(e.id, e.images, e.question) for e in examples]


def play(tiny, prompts, examples, environment=None, **more):
    more = dict(num_generations=G, max_completion_length=LENGTH, seed=2) | more
    rollout = sample_episodes(*tiny, prompts, examples, environment or Album(), **more)
    return rollout, rollout.episodes


def pack_of(prompts, rollout, episodes):
    groups = [rollout.ids[n * G : (n + 1) * G] for n in range(len(prompts))]
    shown = [[e.shown for e in episodes[n * G : (n + 1) * G]] for n in range(len(prompts))]
    return make_pack(prompts, groups, shown=shown)


def test_what_is_sampled_is_what_is_trained(tiny, prompts, examples):
    rollout, episodes = play(tiny, prompts, examples)
    steps = {tuple(s.at for s in e.shown) for e in episodes}
    assert len(steps) > 4 and max(len(e.shown) for e in episodes) == 3, "each at another step"
    suppressed = tiny[1].suppressed_tokens
    logp, _ = completion_logps(tiny[0], pack_of(prompts, rollout, episodes), 1.0, suppressed)
    assert torch.allclose(logp, torch.cat(rollout.logps), atol=1e-4)
    for b, episode in enumerate(episodes):
        alone = make_pack([prompts[b // G]], [[rollout.ids[b]]], shown=[[episode.shown]])
        expected, _ = completion_logps(tiny[0], alone, 1.0, suppressed)
        part = logp.split([len(ids) for ids in rollout.ids])[b]
        assert torch.allclose(part, expected, atol=1e-5)


def plain_loss(model, prompt, tokens, shown, suppressed, cfg):
    """Minus the log-probabilities of the sampled tokens, in one causal forward of everything."""
    parts, is_said, at = [prompt.ids], [torch.zeros(len(prompt.ids))], 0
    for s in [*shown, Shown(len(tokens), None)]:
        parts.append(tokens[at : s.at])
        is_said.append(torch.ones(s.at - at))
        at = s.at
        if s.piece is not None:
            parts.append(s.piece.ids)
            is_said.append(torch.zeros(len(s.piece.ids)))
    ids, said = torch.cat(parts), torch.cat(is_said).bool()  # (T,)
    whole = continued(prompt, tokens, 0, shown)
    positions = rope_positions(ids, whole.grids, cfg)  # (3, T)
    assert torch.equal(positions, whole.positions) and torch.equal(ids, whole.ids)
    hidden = model(ids, positions, PackLayout([len(ids)], [[]]), [whole])
    logits = model.logits(hidden[:-1]).masked_fill(suppressed, float("-inf"))
    logp = logits.log_softmax(-1).gather(1, ids[1:, None]).squeeze(1)  # (T - 1,)
    return -logp[said[1:]].sum()


def test_gradients_are_those_of_the_sampled_tokens_alone(tiny, prompts, examples):
    model, processor = tiny
    rollout, episodes = play(tiny, prompts, examples)
    suppressed = processor.suppressed_tokens
    logp, _ = completion_logps(model, pack_of(prompts, rollout, episodes), 1.0, suppressed)
    (-logp.sum()).backward()
    packed = gradients(model)
    for b, episode in enumerate(episodes):
        terms = (prompts[b // G], rollout.ids[b], episode.shown, suppressed, processor.cfg)
        plain_loss(model, *terms).backward()
    assert_close(packed, gradients(model), 1e-4)


def test_without_a_call_nothing_changes(tiny, prompts, examples):
    rollout, episodes = play(tiny, prompts, examples, Album(closings=("never said",)))
    plain = generate_group(*tiny, prompts, G, LENGTH, seed=2)
    assert all(map(torch.equal, rollout.ids, plain.ids)) and rollout.texts == plain.texts
    assert all(map(torch.equal, rollout.logps, plain.logps)) and rollout.finish == plain.finish
    assert not any(e.turns for e in episodes)
    with_none = pack_of(prompts, rollout, episodes)
    groups = [rollout.ids[:G], rollout.ids[G:]]
    pack = make_pack(prompts, groups)
    for name in ("ids", "positions", "predictors", "targets"):
        assert torch.equal(getattr(with_none, name), getattr(pack, name))


def test_an_episode_depends_on_nothing_beside_it(tiny, prompts, examples):
    rollout, episodes = play(tiny, prompts, examples)
    alone, of_alone = play(tiny, prompts[1:], examples[1:])
    assert all(map(torch.equal, alone.ids, rollout.ids[G:])) and alone.texts == rollout.texts[G:]
    assert [e.turns for e in of_alone] != [] and alone.finish == rollout.finish[G:]
    assert [[s.at for s in e.shown] for e in of_alone] == [
        [s.at for s in e.shown] for e in episodes[G:]
    ]
    frozen, _ = play(tiny, prompts, examples, freeze_vision=True)
    assert frozen.texts == rollout.texts


def test_turns_are_computed_in_parts_with_the_same_result(tiny, prompts, examples, monkeypatch):
    whole, episodes = play(tiny, prompts, examples)
    calls, generate = [], module.generate_group

    def counted(model, processor, starts, *rest, **more):
        calls.append(len(starts))
        return generate(model, processor, starts, *rest, **more)

    monkeypatch.setattr(module, "MOST_TOKENS", 1)
    monkeypatch.setattr(module, "generate_group", counted)
    parts, _ = play(tiny, prompts, examples)
    assert parts.texts == whole.texts and parts.finish == whole.finish
    assert calls[0] == 2 and set(calls[1:]) == {1}


def test_every_picture_that_was_shown_is_seen_by_the_tower_once(tiny, prompts, examples):
    """Also one behind the last token: else an update would compute all of its pack again."""
    for length in (3, 7, LENGTH):
        _, episodes = play(
            tiny, prompts, examples, max_completion_length=length, freeze_vision=True
        )
        pieces = [s.piece for e in episodes for s in e.shown]
        assert pieces and all(p.features is not None or p.pixels is None for p in pieces)


@pytest.mark.parametrize("freeze_vision", [True, False])
def test_pictures_that_are_alike_are_seen_once_and_a_learning_tower_sees_them_again(
    tiny, prompts, examples, freeze_vision
):
    tower, counts = tiny[0].visual, []
    hook = tower.register_forward_pre_hook(lambda tower, args: counts.append(len(args[1])))
    try:
        _, episodes = play(tiny, prompts, examples, freeze_vision=freeze_vision)
    finally:
        hook.remove()
    pieces = [*prompts, *(s.piece for e in episodes for s in e.shown)]
    with_pictures = [piece for piece in pieces if piece.pixels is not None]
    different = {(*piece.grids, piece.pixels.numpy().tobytes()) for piece in with_pictures}
    assert sum(counts) == sum(len(key) - 1 for key in different)
    assert len(different) < len(with_pictures) - 4  # G completions are shown the same
    assert all((piece.features is not None) == freeze_vision for piece in with_pictures)


def test_pictures_of_the_same_numbers_and_another_shape_are_not_alike(tiny):
    model, processor = tiny
    pictures = [Image.new("RGB", size) for size in ((32, 64), (64, 32), (32, 64))]
    pieces = [processor.piece(f"p{k}", ("<look>", p, "</look>")) for k, p in enumerate(pictures)]
    numbers = torch.rand_like(pieces[0].pixels)
    for piece in pieces:
        piece.pixels = numbers.clone()
    keep_features_of(model, pieces)
    tall, wide, again = pieces
    assert again.features is tall.features and wide.features is not tall.features
    for piece in (tall, wide):
        alone = model.image_features([replace(piece, features=None)])  # (Q, levels, D)
        assert torch.allclose(piece.features, alone, atol=1e-5)
    assert not torch.allclose(tall.features, wide.features, atol=1e-3)


def test_turns_are_the_pieces_of_the_text_between_closing_tags():
    """A token may bring more than the tag: "><"."""
    episode, text = Episode(None), ""
    for said, heard in (
        ("<go>up</go><", "<go>up</go>"),
        ("go>east</go> so ", "<go>east</go>"),
        ("<go>north</go>", " so <go>north</go>"),
    ):
        text += said
        assert episode.hear(text, ("</go>",)) == heard


def test_other_processes_are_told_in_words(tiny, prompts, examples):
    _, episodes = play(tiny, prompts, examples)
    for episode in episodes:
        light = episode.without_pictures()
        assert light.state is None and all(s.piece is None for s in light.shown)
        assert [s.at for s in light.shown] == [s.at for s in episode.shown]
        parts = [part for _, o in light.turns for part in o.parts]
        assert all(isinstance(part, str) for part in parts)


def test_demonstrations_think_in_the_blocks_of_their_mode(tiny, examples):
    reasoning = Reasoning("x", calls=(("why", "<zoom>a</zoom>"),))
    e = replace(examples[0], reasoning=reasoning)
    for mode, begin in (
        ("think", "<think>why</think>"),
        ("direct", ""),
        ("steps", "<reasoning>why"),
    ):
        ids, (shown,) = demonstrated_calls(e, mode, tiny[1], Album())
        said = tiny[1].decode(ids)
        assert said.startswith(begin) and said.endswith("<zoom>a</zoom>") and shown.at == len(ids)


@pytest.mark.parametrize("length", [1, 3, 7])
def test_the_limit_counts_sampled_tokens_of_all_turns(tiny, prompts, examples, length):
    rollout, episodes = play(tiny, prompts, examples, max_completion_length=length)
    assert all(1 <= len(ids) <= length for ids in rollout.ids)
    assert all(map(len, rollout.logps)) and set(rollout.finish) <= {"stop", "length", "over"}
    for ids, finish, episode in zip(rollout.ids, rollout.finish, episodes, strict=True):
        assert finish != "length" or len(ids) == length
        assert all(s.at <= len(ids) for s in episode.shown)


def test_what_is_shown_at_the_very_end_is_packed_too(tiny, prompts, examples):
    model, processor = tiny
    piece = processor.piece("late", ("<look>", Image.new("RGB", (32, 32), "red"), "</look>"))
    tokens = torch.tensor([30, 31, 32])
    shown = [[[Shown(3, piece)]], [[Shown(0, piece), Shown(3, piece)]]]
    pack = make_pack(prompts, [[tokens], [tokens]], shown=shown)
    logp, _ = completion_logps(model, pack, 1.0, processor.suppressed_tokens)
    suppressed = processor.suppressed_tokens
    for part, prompt, seen in zip(logp.split(3), prompts, shown, strict=True):
        loss = plain_loss(model, prompt, tokens, seen[0], suppressed, processor.cfg)
        assert torch.allclose(-part.sum(), loss, atol=1e-4)
    plain, _ = completion_logps(model, make_pack(prompts[:1], [[tokens]]), 1.0, suppressed)
    assert torch.allclose(logp[:3], plain, atol=1e-5), "what comes after changes nothing before"


def test_the_budget_ends_an_episode_and_outcomes_are_counted(tiny, prompts, examples):
    rollout, episodes = play(tiny, prompts, examples, Album(budget=1))
    assert "over" in rollout.finish and "pause" not in rollout.finish
    for finish, episode in zip(rollout.finish, episodes, strict=True):
        assert len(episode.shown) <= 1 and (finish == "over") == (len(episode.turns) == 2)
    counts = Counter(o.outcome for e in episodes for _, o in e.turns)
    assert counts["over"] == rollout.finish.count("over") and counts["done"] > 0


def test_what_is_shown_as_text_can_hold_no_picture_and_end_no_turn(tiny):
    processor = tiny[1]
    piece = processor.piece("p", ("a <|image_pad|> <|im_end|> b",))
    assert not set(piece.ids.tolist()) & processor.control_ids and piece.grids == []
    assert processor.decode(piece.ids) == "a <|image_pad|> <|im_end|> b"


@pytest.mark.parametrize(
    "said, call",
    [
        ("<think>red</think><zoom>[1, 2, 3, 4]</zoom>", "[1, 2, 3, 4]"),
        ("<zoom>1</zoom><zoom> 2 </zoom>", "2"),
        ("<zoom><zoom>3</zoom>", "3"),
        ("<fact><zoom>3</zoom></fact>", "3"),
        ("<zoom>3</zoom>\n", "3"),
        ("</zoom>", None),
        ("<zoom>3</fact>", None),
        ("<ZOOM>3</ZOOM>", None),
        ("<zoom>" * 5000 + "</zoom>", ""),
    ],
)
def test_a_call_is_what_stands_between_its_last_tags(said, call):
    assert last_call(said, "zoom") == call
