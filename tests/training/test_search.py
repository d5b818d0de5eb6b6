"""Search at test time: what is chosen, what it costs, and that nothing is drawn anew."""

import pytest
import torch

from data.examples import Example
from data.garden.drawing import draw_flower
from data.garden.world import RL_SPECIES
from model.load import load_model, load_processor
from model.pack import continued, make_pack
from model.scored import ScoredVLM
from sample import generate_group
from tests.training.test_evaluation import fake_task
from training import search
from training.evaluation import evaluate
from training.search import Beam, Sampling, choose, completion_scores, heaviest

LENGTH = 12


@pytest.fixture(scope="module")
def model(tiny_dir):
    return load_model(tiny_dir)


@pytest.fixture(scope="module")
def processor(tiny_dir):
    return load_processor(tiny_dir)


@pytest.fixture(scope="module")
def verifier(tiny_dir):
    """A random one."""
    scored = ScoredVLM(load_model(tiny_dir))
    with torch.no_grad():
        scored.score.weight.normal_(generator=torch.Generator().manual_seed(3))
    return scored.requires_grad_(False)


@pytest.fixture(scope="module")
def examples():
    return [
        Example(f"e{k}", (draw_flower(species.flower, k),), "Which species?", species.name)
        for k, species in enumerate(RL_SPECIES[:3])
    ]


@pytest.fixture
def prompts(processor, examples):
    return [processor.prompt(e.id, e.images, e.question) for e in examples]


@pytest.fixture
def sampling(model, processor):
    return Sampling(model, processor, LENGTH, temperature=1.0, seed=0)


class Oracle(torch.nn.Module):
    """A verifier that knows a text's worth."""

    def __init__(self, processor, worth):
        super().__init__()
        self.processor, self.worth, self.device = processor, worth, torch.device("cpu")
        self.solver = None

    def forward(self, pack):
        lengths = [n for group in pack.layout.completion_lengths for n in group]
        texts = [self.processor.decode(ids[:-1]) for ids in pack.targets.split(lengths)]
        worths = torch.tensor([float(self.worth(text)) for text in texts])
        return worths.repeat_interleave(torch.tensor(lengths))


# ---- choosing ------------------------------------------------------------------------------------


def test_weights_add_up_per_answer_and_who_says_nothing_has_no_vote():
    answers = ["a", "b", None, "b", "a", "c"]
    assert heaviest(answers, [0.4, 0.3, 9.0, 0.3, 0.1, 0.55]) == 1  # b: 0.6
    assert heaviest(answers, [0.5, 0.3, 0.0, 0.3, 0.2, 0.1]) == 0
    assert heaviest([None, None], [0.1, 0.9]) == 0


def test_a_verifier_that_knows_chooses_the_best_and_one_that_knows_nothing_the_first(
    sampling, processor, prompts, examples
):
    task = fake_task()
    rollout = generate_group(sampling.model, processor, prompts, 6, LENGTH, 1.0, seed=0)
    best = choose(sampling, task, prompts, examples, 6, "best", Oracle(processor, len))
    none = choose(sampling, task, prompts, examples, 6, "best", Oracle(processor, lambda _: 0))
    for n, (longest, first) in enumerate(zip(best, none, strict=True)):
        texts = rollout.texts[6 * n : 6 * n + 6]
        ids = rollout.ids[6 * n : 6 * n + 6]
        lengths = [len(processor.decode(row[:-1])) for row in ids]
        assert longest.text == texts[lengths.index(max(lengths))] and longest.texts == texts
        assert first.text == texts[0]
        tokens = len(prompts[n].ids) + sum(map(len, ids))
        assert longest.computed == 2 * tokens


def test_scores_are_read_after_each_completion(verifier, sampling, prompts):
    rollout = sampling(prompts, 4)
    scores = completion_scores(verifier, prompts, rollout.ids)
    for b, ids in enumerate(rollout.ids):
        alone = verifier(make_pack([prompts[b // 4]], [[ids]]))
        assert float(scores[b // 4, b % 4]) == pytest.approx(float(alone[-1]), abs=2e-5)


def test_one_completion_is_the_plain_answer_and_a_vote_tells_the_ceiling(
    model, processor, examples
):
    task = fake_task()
    plain, records = evaluate(model, processor, task, examples, LENGTH, 1.0)
    assert "pass_at_n" not in plain
    texts = generate_group(
        model,
        processor,
        [processor.prompt(e.id, e.images, e.question) for e in examples],
        1,
        LENGTH,
        1.0,
    ).texts
    assert [record["text"] for record in records] == texts
    voted, _ = evaluate(model, processor, task, examples, LENGTH, 1.0, votes=4)
    assert voted["pass_at_n"] >= voted["strict"] and voted["tokens_computed"] > 0


# ---- continuing a completion ---------------------------------------------------------------------


def test_a_completion_that_pauses_goes_on_as_if_it_had_not(model, processor, prompts):
    whole = generate_group(model, processor, prompts, 3, LENGTH, 1.0, seed=5)
    for b, ids in enumerate(whole.ids):
        for at in range(1, len(ids)):
            start = continued(prompts[b // 3], ids[:at], sample=b % 3)
            rest = generate_group(model, processor, [start], 1, LENGTH - at, 1.0, seed=5)
            assert torch.equal(torch.cat((ids[:at], rest.ids[0])), ids)
            assert rest.finish[0] == whole.finish[b]
            assert torch.allclose(rest.logps[0], whole.logps[b][at:], atol=1e-5)


def test_a_completion_pauses_behind_a_text_however_it_is_cut_into_tokens(model, processor, prompts):
    """A text may be the end of a token, several tokens, or begin within one."""
    whole = generate_group(model, processor, prompts, 4, LENGTH, 1.0, seed=1)
    said = processor.decode(whole.ids[0])
    for pause_at in ([said[5:9]], [said[3]], [said[7:12], said[4:6]], ["never said"]):
        paused = generate_group(
            model, processor, prompts, 4, LENGTH, 1.0, seed=1, pause_at=pause_at
        )
        assert ("pause" in paused.finish) == (pause_at != ["never said"])
        rows = zip(whole.ids, paused.ids, paused.finish, whole.finish, strict=True)
        for ids, part, finish, plain in rows:
            texts = [processor.decode(ids[:n]) for n in range(1, len(ids) + 1)]
            places = [n for n, t in enumerate(texts, 1) if any(text in t for text in pause_at)]
            assert torch.equal(part, ids[: places[0]] if places else ids)
            assert finish == ("pause" if places else plain)


# ---- step beam -----------------------------------------------------------------------------------


def test_a_beam_of_one_is_plain_sampling(sampling, verifier, prompts):
    plain = sampling(prompts, 1)
    chosen = Beam(sampling, verifier, width=1, count=1)(prompts)
    assert [answer.text for answer in chosen] == plain.texts


def test_a_beam_keeps_what_its_verifier_likes_and_counts_its_tokens(
    sampling, processor, prompts, monkeypatch
):
    favourite = next(
        c for c in "eatonsir" if any(c in text for text in sampling(prompts, 16).texts)
    )
    # Every token ends a statement here, so that a random model makes some.
    monkeypatch.setattr(search, "SEPARATORS", [""])
    likes = Oracle(processor, lambda text: 10.0 * (favourite in text) - 5.0)
    calls = []
    original = Sampling.__call__

    def counted(self, starts, count, *rest, **more):
        rollout = original(self, starts, count, *rest, **more)
        calls.append(2 * sum(len(p.ids) for p in starts) + 2 * sum(map(len, rollout.ids)))
        return rollout

    monkeypatch.setattr(Sampling, "__call__", counted)
    liked = Beam(sampling, likes, width=2, count=4)(prompts)
    assert sum(answer.computed for answer in liked) == sum(calls)
    plain = [text.count(favourite) for text in original(sampling, prompts, 1).texts]
    assert sum(answer.text.count(favourite) for answer in liked) > sum(plain)
    assert all(len(answer.ids) <= LENGTH for answer in liked)
    assert all(len(answer.texts) <= 2 for answer in liked)
