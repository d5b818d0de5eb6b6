"""Estimators and objectives: their expected gradients by exact enumeration, and their closed forms.

The oracle is a toy policy of two tokens and three steps. Its eight completions, and all groups of
them, are enumerated with their probabilities in float64: so an expected gradient is exact, and can
be compared with that of the expected reward itself.
"""

import itertools
import math
from dataclasses import replace
from typing import get_args

import pytest
import torch

from runtime.errors import InputError
from sample import Rollout
from train_grpo import GRPOConfig, grpo_loss, token_weights
from training import objectives
from training.objectives import (
    cispo,
    clipped,
    sapo,
    sequence_log_ratio,
    step_advantages,
    subtract_kl,
)

HORIZON = 3
COMPLETIONS = list(itertools.product((0, 1), repeat=HORIZON))
STATES = [prefix for n in range(HORIZON) for prefix in itertools.product((0, 1), repeat=n)]
REWARDS = torch.tensor([0.3, 1.0, 0.0, 0.7, 0.2, 0.9, 0.1, 0.4], dtype=torch.float64)


@pytest.fixture
def logits():
    """(states, 2) float64, of every state's two tokens."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(7, 2, generator=generator, dtype=torch.float64).requires_grad_()


def token_logps(logits, completion):
    """(3,) log-probabilities of a completion's tokens."""
    table = logits.log_softmax(-1)
    return torch.stack([table[STATES.index(completion[:t]), completion[t]] for t in range(HORIZON)])


def gradient_of_expected_reward(logits):
    """d/dlogits of sum over completions of p(completion) reward."""
    expected = sum(
        token_logps(logits, completion).sum().exp() * reward
        for completion, reward in zip(COMPLETIONS, REWARDS, strict=True)
    )
    return torch.autograd.grad(expected, logits)[0]


def expected_gradient(logits, G, estimator, scale, cfg=None):
    """Minus the expected gradient of the loss over all groups of G completions, times C_max."""
    cfg, total = cfg or GRPOConfig(loss_type="dr_grpo"), torch.zeros_like(logits)
    logps = [token_logps(logits, completion) for completion in COMPLETIONS]
    for group in itertools.product(range(len(COMPLETIONS)), repeat=G):
        rewards = REWARDS[list(group)][None]  # (1, G)
        every = torch.ones_like(rewards, dtype=torch.bool)
        advantages = step_advantages(rewards, every, estimator, scale)[0]
        logp = torch.cat([logps[k] for k in group])  # (C,)
        weights = token_weights([HORIZON] * G, cfg.loss_type, HORIZON).double()
        completion_of = torch.arange(G).repeat_interleave(HORIZON)
        per_token = advantages.repeat_interleave(HORIZON)
        old = logp.detach()
        loss, _ = grpo_loss(logp, old, None, per_token, weights, cfg, completion_of)
        probability = old.sum().exp()
        total -= probability * torch.autograd.grad(loss, logits, retain_graph=True)[0]
    return total * HORIZON


def angle(a, b) -> float:
    return math.acos(min(1.0, float((a * b).sum() / (a.norm() * b.norm()))))


@pytest.mark.parametrize("G", [2, 3])
@pytest.mark.parametrize(
    ("estimator", "factor"),
    [("rloo", lambda G: 1.0), ("grpo", lambda G: 1 - 1 / G), ("reinforce", lambda G: 1 - 1 / G)],
)
def test_the_expected_gradient_is_that_of_the_expected_reward(logits, G, estimator, factor):
    """Exactly so for the mean of the others; a mean that includes oneself costs 1/G of it."""
    expected = factor(G) * gradient_of_expected_reward(logits)
    found = expected_gradient(logits, G, estimator, "none")
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)  # weights are fp32


def test_dividing_by_the_groups_deviation_turns_the_gradient():
    """GRPO's expected gradient is no multiple of the reward's: nobody should mend that."""
    logits = torch.randn(7, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits.requires_grad_()
    true = gradient_of_expected_reward(logits)
    turned = angle(expected_gradient(logits, 2, "grpo", "group"), true)
    assert 0.02 < turned < 0.5
    assert angle(expected_gradient(logits, 2, "grpo", "none"), true) < 1e-5


ON_POLICY = [
    {"loss_type": "dr_grpo"},
    {"loss_type": "cispo", "epsilon_high": 5.0},
    {"loss_type": "sapo"},
    {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.05},
    {"loss_type": "grpo", "delta": 3.0},
]


def test_in_the_first_pass_all_objectives_have_one_gradient(logits):
    """Where all completions are equally long, the weights are equal, too."""
    flags = [flags | {"num_iterations": 2} for flags in ON_POLICY]
    first, *others = (expected_gradient(logits, 2, "grpo", "group", GRPOConfig(**f)) for f in flags)
    assert first.norm() > 0.01
    for other in others:
        torch.testing.assert_close(other, first, rtol=1e-6, atol=1e-9)  # weights are fp32


# ---- closed forms --------------------------------------------------------------------------------

RATIOS = torch.tensor([0.5, 0.9, 1.0, 1.1, 1.6, 4.0], dtype=torch.float64)


def gradients(objective, advantage):
    """d objective / d logp at RATIOS, each a token of its own; `objective` of (logp, ratio, A)."""
    old = torch.full((6,), -1.0, dtype=torch.float64)
    logp = (old + RATIOS.log()).requires_grad_()
    A = torch.full((6,), advantage, dtype=torch.float64)
    value = objective(logp, (logp - old).exp(), A)
    (gradient,) = torch.autograd.grad(value.sum(), logp)
    return value.detach(), gradient


@pytest.mark.parametrize(
    ("advantage", "delta", "expected"),
    [
        (1.0, None, [0.5, 0.9, 1.0, 1.1, 0, 0]),
        (-1.0, None, [0, -0.9, -1.0, -1.1, -1.6, -4.0]),
        (-1.0, 3.0, [0, -0.9, -1.0, -1.1, -1.6, 0]),
        (1.0, 3.0, [0.5, 0.9, 1.0, 1.1, 0, 0]),
    ],
)
def test_the_clip_stops_tokens_that_went_far_enough(advantage, delta, expected):
    _, found = gradients(lambda _, r, A: clipped(r, A, 0.8, 1.2, delta), advantage)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("advantage", [2.0, -2.0])
def test_cispo_weighs_every_token_by_its_ratio_up_to_the_cap(advantage):
    _, found = gradients(lambda logp, r, A: cispo(logp, r, A, 1.5), advantage)
    expected = advantage * torch.tensor([0.5, 0.9, 1.0, 1.1, 1.5, 1.5], dtype=torch.float64)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("advantage", "t"), [(1.0, 1.0), (-1.0, 1.05)])
def test_sapo_fades_on_both_sides_of_ratio_one(advantage, t):
    value, found = gradients(lambda _, r, A: sapo(r, A), advantage)
    gate = [1 / (1 + math.exp(-t * (r - 1))) for r in RATIOS.tolist()]
    torch.testing.assert_close(value, advantage * 4 / t * torch.tensor(gate, dtype=torch.float64))
    slopes = [4 * g * (1 - g) * r for g, r in zip(gate, RATIOS.tolist(), strict=True)]
    torch.testing.assert_close(found, advantage * torch.tensor(slopes, dtype=torch.float64))
    assert float(found[2]) == pytest.approx(advantage) and abs(found[5]) < 0.9


def test_a_sequence_has_the_mean_of_its_tokens_ratios():
    log_ratio = torch.tensor([0.1, 0.3, -0.4, 0.0, 0.2], dtype=torch.float64, requires_grad=True)
    completion_of = torch.tensor([0, 0, 0, 1, 1])
    found = sequence_log_ratio(log_ratio, completion_of)
    torch.testing.assert_close(found, torch.tensor([0.0, 0.0, 0.0, 0.1, 0.1]).double())
    (gradient,) = torch.autograd.grad(found[0], log_ratio)
    torch.testing.assert_close(gradient, torch.tensor([1 / 3] * 3 + [0.0] * 2).double())
    assert torch.autograd.gradcheck(lambda x: sequence_log_ratio(x, completion_of).exp(), log_ratio)


# ---- advantages ----------------------------------------------------------------------------------


def advantages_of(rewards, estimator, scale, has_reward=None):
    rewards = torch.tensor(rewards)
    every = torch.ones_like(rewards, dtype=torch.bool)
    return step_advantages(rewards, every if has_reward is None else has_reward, estimator, scale)


def test_advantages_by_hand():
    rewards = [[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 0.0]]
    close = torch.testing.assert_close
    close(
        advantages_of(rewards, "rloo", "none"),
        torch.tensor([[2, -2, -2, 2], [1, 1, 1, -3]]) / 3,
    )
    close(
        advantages_of(rewards, "reinforce", "none"),
        torch.tensor(rewards) - 5 / 8,
    )
    centred = torch.tensor([[2, -2, -2, 2], [1, 1, 1, -3]]) / 4
    close(advantages_of(rewards, "grpo", "batch"), centred / (centred.std() + 1e-4))
    close(advantages_of(rewards, "grpo", "none"), centred)
    spread = torch.tensor(rewards).std(dim=1, keepdim=True)
    close(advantages_of(rewards, "rloo", "group"), centred * 4 / 3 / (spread + 1e-4))


def test_every_choice_of_a_flag_computes_something_of_its_own():
    """A choice that is added to the configuration alone must not be computed as another."""
    found = {}
    for estimator in get_args(objectives.Estimator):
        for scale in get_args(objectives.Scale):
            advantages = advantages_of([[1.0, 0.2, 0.0], [1.0, 1.0, 0.5]], estimator, scale)
            found[estimator, scale] = tuple(round(a, 5) for a in advantages.flatten().tolist())
    same = {("reinforce", "group")}  # is refused; as without a scale
    assert len(set(found.values())) == len(found) - len(same)


def test_a_group_that_is_all_right_teaches_reinforce_alone():
    rewards = [[1.0, 1.0], [0.0, 1.0]]
    for estimator in ("grpo", "rloo"):
        assert advantages_of(rewards, estimator, "batch")[0].tolist() == [0.0, 0.0]
    assert (advantages_of(rewards, "reinforce", "none")[0] > 0).all()


@pytest.mark.parametrize("estimator", ["grpo", "rloo", "reinforce"])
@pytest.mark.parametrize("scale", ["none", "batch"])
def test_a_lost_reward_has_no_advantage_and_is_in_no_mean(estimator, scale):
    has_reward = torch.tensor([[True, True, False], [True, True, True]])
    found = advantages_of([[1.0, 0.0, 0.5], [1.0, 1.0, 0.0]], estimator, scale, has_reward)
    assert found[0, 2] == 0 and bool(found[has_reward].any())
    without = advantages_of([[1.0, 0.0, 99.0], [1.0, 1.0, 0.0]], estimator, scale, has_reward)
    if estimator == "reinforce":
        torch.testing.assert_close(found, without)


def test_the_kl_is_subtracted_from_rewards_and_noted():
    logps = [torch.tensor([-1.0, -2.0]), torch.tensor([-1.0]), torch.tensor([-3.0])]
    reference = [torch.tensor([-1.5, -2.5]), torch.tensor([-0.5]), torch.tensor([-3.0])]
    rewards = torch.tensor([[1.0, 0.0, 0.5]])
    rollout = Rollout([], logps, [], [], rewards, [{"a": 1.0}, {"a": 0.0}, None])
    subtract_kl(rollout, reference, beta=0.1)
    assert rollout.parts[:2] == [{"a": 1.0, "kl": 1.0}, {"a": 0.0, "kl": -0.5}]
    expected = torch.tensor([[0.9, 0.05, 0.5 - 0.1 * 0.25]])  # lost: still the mean of the others
    torch.testing.assert_close(rollout.rewards, expected)
    assert rollout.rewards[0, :2].mean() == pytest.approx(rollout.rewards[0, 2].item())


def test_cut_completions_weigh_nothing_and_leave_the_divisors():
    for loss_type in ("grpo", "dapo", "dr_grpo", "cispo", "sapo"):
        weights = token_weights([3, 1, 4], loss_type, 8, [True, True, False])
        alone = token_weights([3, 1], loss_type, 8)
        assert weights.tolist() == [*alone.tolist(), 0, 0, 0, 0]
    assert token_weights([2], "dapo", 8, [False]).tolist() == [0, 0]  # nothing is left: no NaN


# ---- refusals ------------------------------------------------------------------------------------

TWICE = {"num_iterations": 2}
REFUSED = [
    ({"loss_type": "sapo"}, "--loss_type sapo: .*every ratio is 1"),
    ({"loss_type": "cispo", "epsilon_high": 5.0}, "--loss_type cispo: .*every ratio is 1"),
    ({"delta": 3.0}, "--delta 3.0: .*every ratio is 1"),
    ({"importance_sampling_level": "sequence"}, "sequence: .*every ratio is 1"),
    ({"loss_type": "cispo"} | TWICE, "--epsilon_high None: .*its cap"),
    ({"loss_type": "sapo", "delta": 3.0} | TWICE, "--delta 3.0: .*has no clip"),
    ({"loss_type": "sapo", "importance_sampling_level": "sequence"} | TWICE, "has no clip"),
    ({"delta": 1.1} | TWICE, "--delta 1.1: must be above 1.2"),
    ({"importance_sampling_level": "sequence"} | TWICE, "--epsilon 0.2: .*below 0.1"),
    ({"kl_in_reward": True}, "--beta 0.0: must be above 0 with --kl_in_reward"),
    ({"advantage_estimator": "reinforce"}, "--scale_rewards group: must be batch or none"),
    ({"num_generations": 1}, "--num_generations 1: must be at least 2"),
]


@pytest.mark.parametrize(("flags", "words"), REFUSED)
def test_flags_that_change_nothing_or_contradict_each_other_are_refused(flags, words):
    with pytest.raises(InputError, match=words):
        GRPOConfig(**flags)


def test_one_completion_a_question_is_enough_for_reinforce():
    cfg = GRPOConfig(num_generations=1, advantage_estimator="reinforce", scale_rewards="none")
    assert replace(cfg, seed=1).num_generations == 1
    found = advantages_of([[1.0], [0.0]], "reinforce", "none")
    assert found.tolist() == [[0.5], [-0.5]]
