"""Guarantees of `kernels/sample.py`: the Triton kernels choose the token of the torch path.

Distributions that are hard for a sampler, each with many uniform numbers and with both ends of
their range; the truth is the cumulative distribution in float64. "The same" is defined in the
module's docstring: with these seeds no row is an exception. tests/test_sample.py has the
chi-square test.

Run: python -m pytest tests/kernels/test_sample.py (interpreted without a GPU, else compiled).
"""

import math

import numpy as np
import pytest
import torch

from kernels import sample, sample_tokens, triton
from kernels.sample import BOUNDARY

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_triton = pytest.mark.skipif(triton is None, reason="triton is not installed")
each_impl = pytest.mark.parametrize("impl", ["torch", pytest.param("triton", marks=needs_triton)])
JUST_BELOW_ONE = float(np.nextafter(np.float32(1), np.float32(0)))
V = 5000  # three tiles, the last one cut


def huge(logits, _):
    logits[:, 2500] += 90.0  # all others: e^-90, 0 in fp32


def nearly_uniform(logits, _):
    logits *= 1e-3


def suppressed_ends(_, suppressed):
    suppressed[:7], suppressed[-300:] = True, True


def suppressed_tiles(logits, suppressed):
    suppressed[:2048], suppressed[4096:] = True, True
    logits[:, 4000] = 1e4  # and nothing else can be chosen


def a_single_token(_, suppressed):
    suppressed[:], suppressed[3333] = True, False


def falling(logits, _):
    logits += torch.linspace(40, -40, logits.shape[1])


def two_far_apart(logits, _):
    logits -= 60.0
    logits[:, 10], logits[:, -10] = 3.0, 3.5


HOSTILE = (
    huge, nearly_uniform, suppressed_ends, suppressed_tiles, a_single_token, falling, two_far_apart,
)  # fmt: skip


def make_inputs(change=lambda *_: None, B=16, V=V):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(B, V, generator=generator) * 3
    suppressed = torch.zeros(V, dtype=torch.bool)
    change(logits, suppressed)
    uniforms = torch.rand(B, generator=generator)
    uniforms[0], uniforms[-1] = 0.0, JUST_BELOW_ONE
    return [x.to(DEVICE) for x in (logits, uniforms, suppressed)]


def draw(logits, uniforms, temperature, suppressed, impl):
    return sample_tokens(logits.clone(), uniforms, temperature, suppressed, impl)


def float64_distribution(logits, temperature, suppressed):
    """Cumulative distribution and log-probabilities, (B, V) fp64 each."""
    z = logits.masked_fill(suppressed, -math.inf) / temperature  # fp32, as in both paths
    logp = z.double().log_softmax(1)
    return logp.exp().cumsum(1), logp


def check_same(logits, uniforms, temperature, suppressed):
    """Both paths draw the token that the float64 distribution has at u, and one another's."""
    cumulative, logp = float64_distribution(logits, temperature, suppressed)
    drawn = {
        impl: draw(logits, uniforms, temperature, suppressed, impl) for impl in ("torch", "triton")
    }
    # Torch adds the exponentials of a row in fp32, in an order that depends on the processor: over
    # 150,000 tokens up to 1.5e-5 were seen. The kernels add in fp64.
    is_long = logits.shape[1] > 100_000
    for impl, (ids, logps) in drawn.items():
        column = ids[:, None]
        assert not suppressed[ids].any()
        upper = cumulative.gather(1, column).squeeze(1)
        lower = cumulative.gather(1, (column - 1).clamp(min=0)).squeeze(1) * (ids > 0)
        assert bool((lower - BOUNDARY <= uniforms).all() and (uniforms <= upper + BOUNDARY).all())
        expected = logp.gather(1, column).squeeze(1)
        atol = 5e-5 if impl == "torch" and is_long else 3e-6
        torch.testing.assert_close(logps.double(), expected, rtol=3e-7, atol=atol)
    differ = drawn["torch"][0] != drawn["triton"][0]
    assert int(differ.sum()) == 0  # allowed within BOUNDARY of a boundary; with these seeds: none


@pytest.mark.case("O15", "O16")
@needs_triton
@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("change", HOSTILE, ids=lambda change: change.__name__)
def test_the_kernels_choose_the_token_of_the_torch_path(change, temperature):
    logits, uniforms, suppressed = make_inputs(change)
    check_same(logits, uniforms, temperature, suppressed)


@needs_triton
@pytest.mark.parametrize("change", [nearly_uniform, suppressed_ends], ids=lambda c: c.__name__)
def test_a_vocabulary_of_152064(change):
    logits, uniforms, suppressed = make_inputs(change, B=3, V=152064)
    uniforms[1] = 0.61803
    for part in (slice(0, 2), slice(1, 3)):  # two rows: one of them at an end
        check_same(logits[part], uniforms[part], 1.0, suppressed)


@needs_triton
@pytest.mark.parametrize("size", [1, 2, 2047, 2048, 2049])
def test_vocabularies_around_a_tile_and_every_uniform_number(size):
    logits, uniforms, suppressed = make_inputs(B=24, V=size)
    check_same(logits, uniforms, 1.0, suppressed)


@each_impl
def test_the_first_and_the_last_uniform_number_choose_tokens_that_can_be_chosen(impl):
    logits = torch.full((2, V), -math.inf, device=DEVICE)
    logits[:, 2100], logits[:, 2101] = 0.5, 0.5
    ends = torch.tensor([0.0, JUST_BELOW_ONE], device=DEVICE)
    nothing = torch.zeros(V, dtype=torch.bool, device=DEVICE)
    ids, logps = draw(logits, ends, 1.0, nothing, impl)
    assert ids.tolist() == [2100, 2101]
    torch.testing.assert_close(logps.cpu(), torch.full((2,), -math.log(2)))


@pytest.mark.case("O16")
@each_impl
def test_a_grid_of_uniform_numbers_draws_every_token_in_proportion(impl):
    # As many numbers as fall into each interval, whatever lies between tiles.
    logits, _, suppressed = make_inputs(lambda x, _: x.mul_(0.5), B=1, V=40)
    suppressed[[0, 17, 39]] = True
    uniforms = ((torch.arange(200) + 0.5) / 200).to(DEVICE)
    ids, _ = draw(logits.expand(200, -1).contiguous(), uniforms, 1.0, suppressed, impl)
    cumulative, logp = float64_distribution(logits, 1.0, suppressed)
    counts = torch.bincount(ids, minlength=40) / 200
    assert ((counts - logp.exp()[0]).abs() < 1 / 200 + 1e-6).all()
    assert ids.diff().min() >= 0


@each_impl
@pytest.mark.parametrize("change", HOSTILE, ids=lambda change: change.__name__)
def test_greedy_is_the_first_largest_logit_at_temperature_one(change, impl):
    logits, uniforms, suppressed = make_inputs(change)
    logits[3, [2222, 3333, 4050]] = 200.0  # a tie
    allowed = logits.masked_fill(suppressed, -math.inf)
    ids, logps = draw(logits, uniforms, 0.0, suppressed, impl)
    assert torch.equal(ids, allowed.argmax(1))
    expected = allowed.double().log_softmax(1).amax(1)
    torch.testing.assert_close(logps.double(), expected, rtol=3e-7, atol=3e-6)


@each_impl
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_rows_that_are_not_finite_say_so_and_leave_the_others_alone(bad, temperature, impl):
    logits, uniforms, suppressed = make_inputs(B=4)
    expected = draw(logits, uniforms, temperature, suppressed, impl)
    logits[1, 100] = bad
    logits[2] = -math.inf
    ids, logps = draw(logits, uniforms, temperature, suppressed, impl)
    assert logps.isnan().tolist() == [False, True, True, False]
    assert ids.min() >= 0 and ids.max() < V
    for new, old in zip((ids, logps), expected, strict=True):
        assert torch.equal(new[[0, 3]], old[[0, 3]])


@needs_triton
def test_strided_rows_and_numbers_and_an_unchanged_input():
    logits, uniforms, suppressed = make_inputs(suppressed_ends, B=6)
    expected = draw(logits, uniforms, 0.7, suppressed, "triton")
    wide = torch.cat((logits, torch.full_like(logits, 99.0)), dim=1)
    columns = uniforms[:, None].repeat(1, 3)
    before = wide.clone()
    drawn = sample_tokens(wide[:, :V], columns[:, 1], 0.7, suppressed, "triton")
    assert all(torch.equal(a, b) for a, b in zip(drawn, expected, strict=True))
    assert torch.equal(wide, before)
    with pytest.raises(ValueError, match="contiguous rows"):
        sample_tokens(logits.T.contiguous().T, uniforms, 0.7, suppressed, "triton")


@needs_triton
def test_how_the_vocabulary_is_cut_into_tiles_changes_nothing(monkeypatch):
    logits, uniforms, suppressed = make_inputs(falling, B=5)
    expected = draw(logits, uniforms, 1.0, suppressed, "triton")
    for block in (256, 8192):
        monkeypatch.setattr(sample, "TILE", dict(BLOCK=block, num_warps=4))
        ids, logps = draw(logits, uniforms, 1.0, suppressed, "triton")
        assert torch.equal(ids, expected[0])
        torch.testing.assert_close(logps, expected[1])


@pytest.mark.parametrize(
    "position, value, message",
    [
        (0, torch.zeros(4, 9, dtype=torch.bfloat16), r"logits must be \(B, V\) float32, got"),
        (0, torch.zeros(4, 0), r"logits must be \(B, V\) float32, got \(4, 0\)"),
        (1, torch.zeros(4, 1), r"uniforms must be \(4,\) float32, got \(4, 1\)"),
        (2, -1.0, "temperature must be finite and >= 0, got -1.0"),
        (3, torch.zeros(9), r"suppressed must be \(9,\) bool, got \(9,\) float32"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(position, value, message):
    inputs = [torch.zeros(4, 9), torch.zeros(4), 1.0, torch.zeros(9, dtype=torch.bool)]
    inputs[position] = value
    with pytest.raises(ValueError, match=message):
        sample_tokens(*inputs)
