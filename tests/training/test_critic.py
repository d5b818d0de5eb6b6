"""PPO's advantages by plain loops and by enumeration; the critic's values; what a run does."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from PIL import Image

import train_ppo
from model.load import load_model, load_processor
from model.pack import make_pack
from model.scored import ScoredVLM
from runtime.errors import InputError
from sample import Rollout
from tasks import TASKS
from tests.helpers import pay_odd_lengths, rows, step_rows
from tests.model.test_shared_prefix import some_groups, tiny  # noqa: F401  (a fixture)
from tests.training.test_objectives import (
    COMPLETIONS,
    HORIZON,
    REWARDS,
    STATES,
    gradient_of_expected_reward,
    token_logps,
)
from train_ppo import PPOConfig, ppo_metrics, with_advantages
from training.batches import scores_of_completions
from training.critic import (
    explained_variance,
    gae,
    returns_to_go,
    token_rewards,
    value_loss,
)

LENGTHS = [3, 1, 5, 2]


def ragged(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Rewards and values of completions of LENGTHS, float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, sum(LENGTHS), generator=generator, dtype=torch.float64).unbind()


# ---- the equations -------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma, lam", [*itertools.product((0.0, 0.9, 1.0), (0.0, 0.7, 1.0))])
def test_gae_is_the_sum_of_discounted_temporal_differences(gamma, lam):
    rewards, values = ragged()
    expected = []
    for r, v in zip(rewards.split(LENGTHS), values.split(LENGTHS), strict=True):
        v = torch.cat((v, torch.zeros(1)))  # nothing comes after the last token
        delta = [r[t] + gamma * v[t + 1] - v[t] for t in range(len(r))]
        for t in range(len(r)):
            expected.append(sum((gamma * lam) ** k * d for k, d in enumerate(delta[t:])))
    found = gae(rewards, values, LENGTHS, gamma, lam)
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=1e-12)


def test_without_discount_an_advantage_is_the_reward_minus_the_value():
    _, values = ragged()
    paid = torch.tensor([1.5, 0.0, 0.5, 1.0], dtype=torch.float64)
    rewards = token_rewards(paid, LENGTHS)
    of_tokens = paid.repeat_interleave(torch.tensor(LENGTHS))
    assert torch.allclose(gae(rewards, values, LENGTHS, 1.0, 1.0), of_tokens - values)
    assert torch.equal(returns_to_go(rewards, LENGTHS, 1.0), of_tokens)
    last = gae(rewards, values, LENGTHS, 0.5, 0.0)[torch.tensor(LENGTHS).cumsum(0) - 1]
    assert torch.allclose(last, paid - values[torch.tensor(LENGTHS).cumsum(0) - 1])


def test_the_kl_is_charged_token_by_token_and_the_reward_paid_at_the_end():
    ratios = [torch.tensor([0.1, -0.2]), torch.tensor([0.3])]
    paid = token_rewards(torch.tensor([1.0, 0.5]), [2, 1], ratios, beta=0.5)
    assert torch.allclose(paid, torch.tensor([-0.05, 1.1, 0.35]))


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(7, 2, generator=generator, dtype=torch.float64).requires_grad_()


def exact_values(logits) -> dict[tuple, float]:
    """The expected reward of every state of the toy policy."""
    table, values = logits.detach().softmax(-1), {}
    rewards = dict(zip(COMPLETIONS, REWARDS.tolist(), strict=True))
    for state in reversed(STATES):
        after = [rewards.get((*state, k), values.get((*state, k))) for k in (0, 1)]
        values[state] = float((table[STATES.index(state)] * torch.tensor(after)).sum())
    return values


def relative_error(logits, values: dict[tuple, float], lam: float) -> float:
    """Of PPO's expected gradient on policy, against that of the expected reward."""
    total = torch.zeros_like(logits)
    for completion, reward in zip(COMPLETIONS, REWARDS, strict=True):
        logp = token_logps(logits, completion)
        v = torch.tensor([values[completion[:t]] for t in range(HORIZON)], dtype=torch.float64)
        paid = torch.tensor([0.0, 0.0, reward], dtype=torch.float64)
        advantages = gae(paid, v, [HORIZON], 1.0, lam)
        weight = logp.detach().sum().exp()
        total += weight * torch.autograd.grad((advantages * logp).sum(), logits)[0]
    exact = gradient_of_expected_reward(logits)
    return float((total - exact).norm() / exact.norm())


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_an_exact_critic_makes_every_lambda_unbiased_and_another_only_one(logits, lam):
    values = exact_values(logits)
    assert relative_error(logits, values, lam) < 1e-6
    wrong = {state: value + 0.3 * sum(state) for state, value in values.items()}
    error = relative_error(logits, wrong, lam)
    assert error < 1e-6 if lam == 1.0 else error > 0.02


def test_regression_on_returns_finds_the_values_of_a_known_chain():
    """States 0, 1, 2 of a Markov chain that ends after 2; V = (I - gamma P)^-1 R."""
    P = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.4, 0.6], [0.2, 0.0, 0.0]], dtype=torch.float64)
    R, gamma = torch.tensor([0.1, -0.2, 1.0], dtype=torch.float64), 0.9
    solved = torch.linalg.solve(torch.eye(3, dtype=torch.float64) - gamma * P, R)
    generator = torch.Generator().manual_seed(0)
    states, lengths = [], []
    for _ in range(4000):
        state, episode = 0, []
        while state < 3:
            episode.append(state)
            after = torch.cat((P[state], 1 - P[state].sum().view(1)))
            state = int(torch.multinomial(after, 1, generator=generator))
        states += episode
        lengths.append(len(episode))
    states = torch.tensor(states)
    returns = returns_to_go(R[states], lengths, gamma)
    table = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    weights = torch.full_like(returns, 1 / len(returns))
    for _ in range(300):
        loss = value_loss(table[states], returns, weights)
        (gradient,) = torch.autograd.grad(loss, table)
        with torch.no_grad():
            table -= gradient
    assert torch.allclose(table, solved, atol=0.03)


def test_explained_variance_is_one_for_the_truth_and_zero_for_a_constant():
    returns = torch.tensor([0.0, 1.0, 2.0])
    assert explained_variance(returns, returns) == 1.0
    assert explained_variance(torch.ones(3), returns) == 0.0
    assert math.isnan(explained_variance(torch.ones(3), torch.ones(3)))


# ---- the critic ----------------------------------------------------------------------------------


def with_head(trunk) -> ScoredVLM:
    critic = ScoredVLM(trunk)
    with torch.no_grad():
        critic.score.weight.normal_(generator=torch.Generator().manual_seed(0))
        critic.score.bias.fill_(0.5)
    return critic


def test_values_in_a_shared_prefix_are_those_of_separate_sequences(tiny):  # noqa: F811
    model, processor = tiny
    critic, (prompts, completions) = with_head(model), some_groups(processor)
    lengths = [len(tokens) for group in completions for tokens in group]
    values = iter(critic(make_pack(prompts, completions)).split(lengths))
    for prompt, group in zip(prompts, completions, strict=True):
        first = []
        for tokens in group:
            together, alone = next(values), critic(make_pack([prompt], [[tokens]]))
            assert torch.allclose(together, alone, atol=2e-5)
            first.append(together[0].item())
        assert max(first) - min(first) < 1e-5  # the value of the prompt


def test_a_new_critic_says_0_and_does_not_train_what_it_does_not_use(tiny):  # noqa: F811
    model, processor = tiny
    model.prepare_training(freeze_vision=True, gradient_checkpointing=False)
    critic, (prompts, completions) = ScoredVLM(model), some_groups(processor)
    values = scores_of_completions(critic, prompts, [c for g in completions for c in g])
    assert not values.any() and len(values) == sum(len(c) for g in completions for c in g)
    is_tied = model.cfg.tie_word_embeddings
    assert model.head_weight.requires_grad == is_tied
    critic(make_pack(prompts, completions)).sum().backward()
    assert critic.score.bias.grad is not None


def test_a_critic_of_a_model_that_runs_through_transformers(other_dirs):
    directory = other_dirs["instructblip"]
    critic, processor = with_head(load_model(directory)), load_processor(directory)
    picture = Image.new("RGB", (30, 30), (200, 30, 30))
    prompt = processor.prompt("p", (picture,), "Which colour?")
    completions = [torch.tensor([5, 6, 7]), torch.tensor([8])]
    values = critic(make_pack([prompt], [completions]))
    alone = critic(make_pack([prompt], [completions[:1]]))
    assert values.shape == (4,) and torch.allclose(values[:3], alone, atol=1e-5)
    assert values[0].item() == pytest.approx(values[3].item(), abs=1e-5) != 0.5


# ---- a step --------------------------------------------------------------------------------------


def scored_rollout() -> Rollout:
    """Two questions, two completions each; the reward of one is lost."""
    lengths = (2, 1, 3, 1)
    return Rollout(
        ids=[torch.zeros(n, dtype=torch.int64) for n in lengths],
        logps=[torch.zeros(n) for n in lengths],
        finish=["stop"] * 4,
        texts=[""] * 4,
        rewards=torch.tensor([[1.0, 0.0], [0.5, 0.5]]),
        parts=[{}, {}, {}, None],
    )


def test_a_lost_reward_teaches_neither_policy_nor_critic():
    rollout = scored_rollout()
    values = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    advantages, returns, counted = with_advantages(rollout, values, None, PPOConfig())
    assert counted.tolist() == [1, 1, 1, 1, 1, 1, 0]
    assert torch.allclose(torch.cat(advantages), torch.tensor([0.9, 0.8, -0.3, 0.1, 0, -0.1, 0]))
    assert torch.cat(returns).tolist() == [1, 1, 0, 0.5, 0.5, 0.5, 0.5]
    assert rollout.advantages.shape == (2, 2)
    assert float(rollout.advantages[0, 0]) == pytest.approx(0.85)


def test_the_critics_metrics_stand_apart():
    critic = {"loss": 0.5, "grad_norm": 1.0, "learning_rate": 1e-4, "steps_skipped_nonfinite": 1.0}
    row = ppo_metrics([], [critic], torch.tensor([0.0, 1.0]), torch.tensor([0.0, 2.0]))
    assert row["steps_skipped_nonfinite"] == 1.0 and "loss" not in row
    assert (row["critic/loss"], row["critic/value"]) == (0.5, 0.5)


@pytest.fixture(scope="module")
def flags(tiny_dir):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TASKS["count"], "load", pay_odd_lengths(TASKS["count"].load))
        line = f"--task count --model {tiny_dir} --max_steps 4 --eval_steps 4 --train_size 8"
        line += " --held_out_size 2 --prompts_per_step 2 --num_generations 3 --save_steps 2"
        line += " --max_completion_length 12 --report_prompts 1 --learning_rate 1e-3 --device cpu"
        line += " --critic_warmup 1 --critic_learning_rate 1e-2 --save_total_limit none"
        yield line.split()


def model_bytes(run, step: int) -> bytes:
    return (run / f"step_{step}" / "hf" / "model.safetensors").read_bytes()


def test_while_the_critic_warms_up_the_policy_stays_as_it_was(flags, tmp_path):
    train_ppo.main([*flags, "--critic_warmup", "2", "--output_dir", str(tmp_path / "run")])
    first = load_model(tmp_path / "run" / "step_2" / "hf")
    start = load_model(flags[flags.index("--model") + 1])
    pairs = zip(first.parameters(), start.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert model_bytes(tmp_path / "run", 2) != model_bytes(tmp_path / "run", 4)
    log = [row for row in rows(tmp_path / "run" / "metrics.jsonl") if "critic/loss" in row]
    assert ["loss" in row for row in log] == [False, False, True, True]
    assert log[0]["critic/value"] == 0.0 != log[1]["critic/value"]


def test_one_completion_a_question_is_enough(flags, tmp_path):
    words = [*flags, "--num_generations", "1", "--gamma", "0.99", "--lam", "0.95"]
    train_ppo.main([*words, "--output_dir", str(tmp_path / "run")])
    assert model_bytes(tmp_path / "run", 2) != model_bytes(tmp_path / "run", 4)
    assert len(step_rows(tmp_path / "run")) == 3
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "PPO · run run" in page and "GRPO" not in page


@pytest.mark.parametrize(
    "given, flag",
    [
        ({"gamma": 1.5}, "--gamma"),
        ({"lam": -0.1}, "--lam"),
        ({"critic_learning_rate": 0.0}, "--critic_learning_rate"),
        ({"critic_warmup": 150}, "--critic_warmup"),
        ({"epsilon": 1.0}, "--epsilon"),
        ({"fsdp": True}, "--fsdp"),
    ],
)
def test_impossible_settings_are_refused_by_name(given, flag):
    with pytest.raises(InputError, match=flag):
        replace(PPOConfig(), **given)
