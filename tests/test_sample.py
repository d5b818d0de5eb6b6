"""The sampler draws from the distribution that is trained, and from nothing else.

Tokens follow softmax(logits / T) exactly (chi-square); every completion has its own random numbers,
whatever the batch; the log-probabilities that sampling keeps equal those of the training forward;
suppressed tokens never occur; completions end at their first end token; greedy is greedy.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import sample
from kernels.sample import choose_tokens
from model import attention
from model.attention import Span
from model.config import FAMILIES
from model.language import DecodingStep
from model.pack import completion_logps, make_pack
from model.processor import Processor
from model.weights import load_model
from runtime import console
from runtime.errors import InputError
from sample import Decoder, Rollout, completion_uniforms, generate_group
from tests.model.test_shared_prefix import some_groups


@pytest.fixture(scope="module", params=FAMILIES)
def tiny(request, tiny_dirs):
    return load_model(tiny_dirs[request.param]), Processor(tiny_dirs[request.param])


@pytest.fixture
def prompts(tiny):
    return some_groups(tiny[1])[0]


def draw(tiny, prompts, G=4, length=12, **options) -> Rollout:
    return generate_group(*tiny, prompts, G, length, **options)


def same(a: Rollout, b: Rollout) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.ids, b.ids, strict=True))


@pytest.mark.case("O16")
def test_tokens_follow_the_distribution_by_a_chi_square_test():
    torch.manual_seed(0)
    logp = (3 * torch.randn(1, 37)).log_softmax(-1)  # (1, V)
    logp[0, 5] = float("-inf")
    n = 100_000
    uniforms = torch.from_numpy(completion_uniforms(0, 0, "chi", 0, n))
    counts = torch.bincount(
        choose_tokens(logp.expand(n, -1), uniforms[:, None]).flatten(), minlength=37
    ).double()
    expected = n * logp[0].double().exp() / logp[0].double().exp().sum()
    assert counts[5] == 0
    big = expected > 5  # the usual condition of the test
    statistic = ((counts - expected)[big] ** 2 / expected[big]).sum()
    freedom = int(big.sum()) - 1
    # mean + 4 standard deviations of chi-square: a false alarm once in about 10,000 seeds
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5


def test_extreme_uniforms_choose_tokens_that_can_be_chosen():
    logp = torch.tensor([[-np.inf, 0.5, 0.5, -np.inf]]).log_softmax(-1).float()
    ends = torch.tensor([0.0, float(np.nextafter(np.float32(1), np.float32(0)))])
    assert choose_tokens(logp.expand(2, -1), ends[:, None]).flatten().tolist() == [1, 2]


@pytest.mark.case("O16")
def test_the_random_numbers_differ_in_each_of_their_four_arguments():
    base = completion_uniforms(0, 1, "a", 2, 50)
    assert np.array_equal(base, completion_uniforms(0, 1, "a", 2, 50))
    for other in [(1, 1, "a", 2), (0, 2, "a", 2), (0, 1, "b", 2), (0, 1, "a", 3)]:
        assert not np.array_equal(base, completion_uniforms(*other, 50))
    assert base.min() >= 0 and base.max() < 1


@pytest.mark.case("O8", "O9")
@pytest.mark.parametrize(
    "dtype, temperature, largest, mean",
    [(torch.float32, temperature, 1e-4, 1e-5) for temperature in (0.7, 1.0, 1.3)]
    + [(torch.bfloat16, 1.0, np.inf, 2e-2)],
)
def test_sampling_logps_equal_the_training_forward(
    tiny_dir, prompts, dtype, temperature, largest, mean
):
    model, processor = load_model(tiny_dir, dtype), Processor(tiny_dir)
    rollout = generate_group(model, processor, prompts, 4, 12, temperature)
    pack = make_pack(prompts, [rollout.ids[4 * n : 4 * n + 4] for n in range(3)])
    with torch.no_grad():
        logp, _ = completion_logps(model, pack, temperature, processor.suppressed_tokens)
    difference = (torch.cat(rollout.logps) - logp).abs()
    assert difference.max() < largest and difference.mean() < mean


@pytest.mark.case("O16")
def test_what_is_drawn_does_not_depend_on_the_batch_it_is_drawn_in(tiny, prompts):
    together = draw(tiny, prompts)
    alone = [draw(tiny, [prompt]) for prompt in prompts]
    assert torch.equal(
        torch.cat(together.ids), torch.cat([ids for rollout in alone for ids in rollout.ids])
    )
    turned = draw(tiny, prompts[::-1])
    assert torch.equal(torch.cat(turned.ids[8:]), torch.cat(together.ids[:4]))


def test_the_same_seed_repeats_and_another_seed_or_step_does_not(tiny, prompts):
    first = draw(tiny, prompts, seed=1, step=2)
    assert same(first, draw(tiny, prompts, seed=1, step=2))
    assert not torch.equal(torch.cat(first.ids)[:30], torch.cat(draw(tiny, prompts).ids)[:30])
    other = draw(tiny, prompts, seed=1, step=3)
    assert not torch.equal(torch.cat(first.ids)[:30], torch.cat(other.ids)[:30])


@pytest.mark.case("O16")
def test_the_completions_of_a_group_differ_from_their_first_token_on(tiny, prompts):
    # A sampler that forks the cache after the first token would give every row the same one. With
    # 32 draws from hundreds of tokens, all equal by chance is out of the question.
    first = {int(ids[0]) for ids in draw(tiny, prompts[:1], G=32).ids}
    assert len(first) > 4


@pytest.mark.case("O9")
def test_temperature_zero_is_greedy_as_a_full_forward_says(tiny, prompts):
    model, processor = tiny
    rollout = draw(tiny, prompts, G=1, temperature=0.0)
    for prompt, ids in zip(prompts, rollout.ids, strict=True):
        for t, token in enumerate(ids.tolist()):
            tail = [torch.cat((ids[:t], torch.tensor([j]))) for j in (token, 30)]
            pack = make_pack([prompt], [tail])
            with torch.no_grad():
                hidden = model(pack.ids, pack.positions, pack.layout, [prompt])
            logits = model.logits(hidden[pack.predictors[t]])
            assert (
                int(logits.masked_fill(processor.suppressed_tokens, -torch.inf).argmax()) == token
            )
    assert same(rollout, draw(tiny, prompts, G=1, temperature=0.0, seed=9))


@pytest.mark.case("I59")
def test_suppressed_tokens_never_occur_and_their_probability_is_exactly_zero(tiny, prompts):
    model, processor = tiny
    rollout = draw(tiny, prompts, G=32, length=24, temperature=5.0)
    tokens = torch.cat(rollout.ids)
    assert not processor.suppressed_tokens[tokens].any()
    assert processor.suppressed_tokens[model.cfg.image_token_id]
    # nearly uniform at this temperature: 60 of about 2,300 draws would be suppressed ones else
    assert len(tokens) > 1500 and processor.suppressed_tokens.float().mean() > 0.02


@pytest.mark.case("I40", "O12")
def test_completions_end_at_their_first_end_token_and_say_why(tiny, prompts):
    _, processor = tiny
    rollout = draw(tiny, prompts, G=32, length=24, temperature=5.0)
    ends = set(processor.end_ids)
    assert {"stop", "length"} == set(rollout.finish)
    for ids, logps, finish in zip(rollout.ids, rollout.logps, rollout.finish, strict=True):
        at = [t for t, token in enumerate(ids.tolist()) if token in ends]
        assert len(ids) == len(logps) and 1 <= len(ids) <= 24
        assert at == ([len(ids) - 1] if finish == "stop" else [])
        assert finish == "stop" or len(ids) == 24


@pytest.mark.case("O9")
def test_finished_groups_leave_and_the_others_continue_as_if_alone(tiny, prompts, monkeypatch):
    model, processor = tiny
    many = [replace(prompt, id=f"{prompt.id}{k}") for k in range(3) for prompt in prompts]
    left, keep = [], Decoder.keep

    def watched(self, groups):
        self.graph = "a recording of more rows"
        keep(self, groups)
        assert self.graph is None and self.steps == 0
        left.append(groups.tolist())

    monkeypatch.setattr(Decoder, "keep", watched)
    monkeypatch.setattr(sample, "CHECK_END_EVERY", 2)
    monkeypatch.setattr(processor, "end_ids", list(range(20, 60)))
    together = generate_group(model, processor, many, 2, 40)
    assert len(left) > 1 and left[0] != list(range(len(left[0])))  # later groups stay on as well
    for n, prompt in enumerate(many):
        alone = generate_group(model, processor, [prompt], 2, 40)
        for b in range(2):
            assert torch.equal(alone.ids[b], together.ids[2 * n + b])
            torch.testing.assert_close(alone.logps[b], together.logps[2 * n + b], rtol=0, atol=1e-5)


def test_places_kept_on_the_device_give_the_same_tokens(tiny, prompts, monkeypatch):
    model, processor = tiny
    expected = generate_group(model, processor, prompts, 3, 12, seed=5)

    class OnDevice(Span):  # as on a GPU
        def __init__(self, start, size, device):
            self.size, self.index = size, torch.arange(start, start + size)

    monkeypatch.setattr(sample, "Span", OnDevice)
    monkeypatch.setattr(attention, "Span", OnDevice)
    rollout = generate_group(model, processor, prompts, 3, 12, seed=5)
    assert all(torch.equal(a, b) for a, b in zip(rollout.ids, expected.ids, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(rollout.logps, expected.logps, strict=True))


@pytest.mark.case("O12")
def test_a_completion_never_contains_its_prompt(tiny, prompts):
    _, processor = tiny
    rollout = draw(tiny, prompts, G=2)
    for text in rollout.texts:
        assert "user" not in text and "assistant" not in text and "<|" not in text
    assert rollout.texts[0] == processor.decode(rollout.ids[0])


@pytest.mark.case("O9")
def test_generation_does_not_move_the_model_and_the_cache_is_fresh_each_time(tiny, prompts):
    model, _ = tiny
    before = [p.clone() for p in model.parameters()]
    first = draw(tiny, prompts)
    draw(tiny, prompts[:1], G=2, length=30)  # another shape in between
    assert same(first, draw(tiny, prompts))
    assert all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))


def test_a_group_runs_the_tower_and_the_prefill_once_for_each_prompt(tiny, prompts, monkeypatch):
    model, _ = tiny
    towers, tokens = [], []

    def count(owner, name, note):
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *xs, **more: note(*xs) or original(*xs, **more))

    count(model.visual, "forward", lambda pixels, grids: towers.append(len(grids)))
    count(model.model, "forward", lambda x, *rest: tokens.append(len(x)))
    count(DecodingStep, "__call__", lambda self, x, rotary: tokens.append(len(x)))
    draw(tiny, prompts, G=5, length=4)
    assert towers == [3]  # the three images of three prompts, in one call, not five times
    # the prefill sees every prompt once, then each step all 15 rows
    assert tokens == [sum(len(p.ids) for p in prompts), 15, 15, 15]


def test_logits_of_a_bfloat16_model_are_not_rounded(tiny_dir):
    model = load_model(tiny_dir, torch.bfloat16)
    hidden = torch.randn(5, model.head_weight.shape[1], dtype=torch.bfloat16)
    expected = hidden.float() @ model.head_weight.float().T
    torch.testing.assert_close(model.logits(hidden), expected, rtol=1e-6, atol=1e-6)


def test_a_model_that_is_not_finite_cannot_be_sampled(tiny_dir, prompts):
    model = load_model(tiny_dir)
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(InputError, match="probabilities are not finite"):
        generate_group(model, Processor(tiny_dir), prompts, 2, 4)


# ---- the command line ----------------------------------------------------------------------------


def test_the_command_line_prints_answers_rewards_and_tokens_per_second(tiny_dir, tmp_path, capsys):
    Image.new("RGB", (32, 40), (200, 30, 30)).save(tmp_path / "x.png")
    words = f"--model {tiny_dir} --image {tmp_path / 'x.png'} --prompt What? --target rose"
    sample.main([*words.split(), "--num_generations", "3", "--max-completion-length", "6"])
    out = capsys.readouterr().out
    assert out.count("log-probability") == 3
    assert out.count("reward 0: {'correct': 0.0, 'format': 0.0}") == 3
    assert "tokens/s" in out.splitlines()[-1]
    words = f"--model {tiny_dir} --prompt_mode plain --num_generations 1"  # and without an image
    sample.main(words.split())
    assert capsys.readouterr().out.count("log-probability") == 1


@pytest.mark.parametrize(
    "words, complaint",
    [
        (["--image", "missing.png"], "missing.png"),
        (["--model", "/nowhere"], "--model /nowhere: no such directory"),
        (["--temperature", "-1"], "--temperature -1.0"),
        (["--temperature", "1e-40"], "--temperature 1e-40"),
        (["--max_completion_length", "1000000000"], "--max_completion_length"),
        (["--prompt", "why " * 9000], "--max_prompt_length is 2048"),
        (["--num_generations", "0"], "--num_generations 0"),
        (["--target", " . "], "--target"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(tiny_dir, capsys, words, complaint):
    words = words if "--model" in words else ["--model", str(tiny_dir), *words]
    with pytest.raises(SystemExit) as stop:
        console.run(lambda: sample.main(words))
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith("error: ") and error.count("\n") == 1 and complaint in error
