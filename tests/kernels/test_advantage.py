"""Guarantees of `kernels/advantage.py`, for the torch and the Triton implementation alike.

The truth is the reference in float64; no implementation may err more than twice as much as the
reference does in float32. Zero-std groups give exact zeros, non-finite rewards are refused.

Run: python -m pytest tests/kernels/test_advantage.py (interpreted without a GPU, else compiled).
"""

import math
from typing import get_args, get_type_hints

import pytest
import torch

from kernels import group_advantages, group_advantages_ref, triton

# Every mode of the function: one that a kernel lacks must not be computed as another. What a run
# can choose beside them is plain torch (tests/training/test_objectives.py).
MODES = get_args(get_type_hints(group_advantages)["scale_rewards"])  # in torch and in Triton
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_triton = pytest.mark.skipif(triton is None, reason="triton is not installed")
each_impl = pytest.mark.parametrize("impl", ["torch", pytest.param("triton", marks=needs_triton)])


def max_error(result, truth):
    return (result.double() - truth).abs().max().item()


@pytest.mark.case("O15")
@each_impl
@pytest.mark.parametrize("scale_rewards", MODES)
@pytest.mark.parametrize("N, G", [(1, 2), (5, 3), (7, 8), (3, 33)])
def test_error_is_at_most_twice_that_of_the_float32_reference(N, G, scale_rewards, impl):
    generator = torch.Generator().manual_seed(G)
    rewards = torch.randn((N, G), generator=generator).mul(3).add(100).to(DEVICE)
    before = rewards.clone()
    truth = group_advantages_ref(rewards.double(), scale_rewards)
    baseline = group_advantages_ref(rewards, scale_rewards)

    advantages = group_advantages(rewards.requires_grad_(), scale_rewards, impl=impl)

    assert advantages.shape == (N, G) and advantages.dtype == torch.float32
    assert not advantages.requires_grad and torch.equal(rewards, before)
    assert max_error(advantages, truth) <= 2 * max_error(baseline, truth) + 1e-6
    assert advantages.abs().max() > 0.1


@each_impl
def test_a_hand_worked_group_uses_the_bessel_corrected_deviation(impl):
    rewards = torch.tensor([[0.0, 0.0, 1.0, 1.0]], device=DEVICE)
    std = math.sqrt(4 * 0.25 / 3)  # the population deviation would be 0.5
    expected = torch.tensor([[-0.5, -0.5, 0.5, 0.5]], device=DEVICE)
    scaled = group_advantages(rewards, "group", eps=1e-4, impl=impl)
    centred = group_advantages(rewards, "none", impl=impl)
    torch.testing.assert_close(scaled, expected / (std + 1e-4), rtol=1e-6, atol=0)
    assert torch.equal(centred, expected)


@pytest.mark.case("O3")
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # 0 / 0 in the interpreter
@each_impl
@pytest.mark.parametrize("eps", [1e-4, 0.0])
@pytest.mark.parametrize("scale_rewards", MODES)
def test_a_zero_std_group_gives_exact_zeros_and_disturbs_no_neighbour(scale_rewards, eps, impl):
    """The float32 mean of equal numbers is not always that number: 0.1 three times, for one."""
    values = torch.tensor([[0.1], [1 / 3], [1e6 + 0.3], [0.0], [-2.7]], device=DEVICE)
    for G in (2, 3, 7, 33):
        other = torch.arange(G, device=DEVICE)[None].float()
        rewards = torch.cat((values.repeat(1, G), other))
        advantages = group_advantages(rewards, scale_rewards, eps, impl)
        assert torch.equal(advantages[:5], torch.zeros_like(advantages[:5]))
        expected = group_advantages_ref(other, scale_rewards, eps)
        torch.testing.assert_close(advantages[5:], expected)


@each_impl
def test_strided_and_empty_rewards_equal_their_contiguous_copy(impl):
    storage = torch.randn(9, 20, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    for rewards in (storage.T, storage[::2, 1::3], storage[0].expand(4, 20), storage[:0]):
        expected = group_advantages(rewards.contiguous(), impl=impl)
        torch.testing.assert_close(group_advantages(rewards, impl=impl), expected)


@each_impl
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_not_finite_is_refused_with_its_place(bad, impl):
    rewards = torch.zeros(3, 4, device=DEVICE)
    rewards[1, 2] = bad
    with pytest.raises(ValueError, match=r"rewards must be finite, got .* at \[1, 2\]"):
        group_advantages(rewards, impl=impl)


@each_impl
@pytest.mark.parametrize(
    "rewards, options, message",
    [
        (torch.zeros(4), {}, r"shape \(N, G\), got \(4,\)"),
        (torch.zeros(4, 1), {}, "at least G=2 .* got G=1"),
        (torch.zeros(4, 2, dtype=torch.int64), {}, "float32"),
        (torch.zeros(4, 2, dtype=torch.bfloat16), {}, "float32"),
        (torch.zeros(4, 2), {"scale_rewards": "batch"}, "got 'batch'"),
        (torch.zeros(4, 2), {"eps": -1.0}, "eps must be"),
        (torch.zeros(4, 2), {"eps": math.nan}, "eps must be"),
    ],
)
def test_wrong_arguments_raise_value_errors(rewards, options, message, impl):
    with pytest.raises(ValueError, match=message):
        group_advantages(rewards.to(DEVICE), impl=impl, **options)


@needs_triton
def test_an_implementation_refuses_what_it_cannot_do(monkeypatch):
    with pytest.raises(ValueError, match="impl must be"):
        group_advantages(torch.zeros(1, 2), impl="cuda")
    assert group_advantages(torch.zeros(1, 5000), impl="torch").shape == (1, 5000)
    with pytest.raises(ValueError, match="at most 4096"):
        group_advantages(torch.zeros(1, 5000, device=DEVICE), impl="triton")
    with pytest.raises(ValueError, match="float32"):
        group_advantages(torch.zeros(1, 2, device=DEVICE).double(), impl="triton")
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    with pytest.raises(ValueError, match="'triton' needs CUDA tensors, got one on cpu"):
        group_advantages(torch.zeros(1, 2), impl="triton")
