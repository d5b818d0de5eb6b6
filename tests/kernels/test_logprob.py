"""Guarantees of `kernels/logprob.py`, for the torch and the Triton implementation alike.

The truth is the reference on float64 copies; log-probabilities, entropies and gradients of no
implementation may err more than twice as much as the reference does on the real inputs. Half of the
targets are planted to be likely, since a nearly uniform softmax would make the comparison empty.

Run: python -m pytest tests/kernels/test_logprob.py (interpreted without a GPU, compiled with one).
"""

import math

import pytest
import torch

from benchmarks.speed.head import extra_bytes
from kernels import linear_logprob, linear_logprob_ref, logprob, triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_triton = pytest.mark.skipif(triton is None, reason="triton is not installed")
# numpy, inside the interpreter, warns of odds that leave fp32's range; they are computed again.
pytestmark = pytest.mark.filterwarnings("ignore:overflow")
SIZES = [(1, 8, 7, 1.0), (5, 20, 128, 0.7), (70, 33, 151, 1.3), (3, 17, 1003, 0.7)]
each_impl = pytest.mark.parametrize("impl", ["torch", pytest.param("triton", marks=needs_triton)])


@pytest.fixture(params=["one chunk", "many chunks"])
def chunks(request, monkeypatch):
    """Run a test twice: with the whole vocabulary in one chunk, and in chunks of 128 columns."""
    if request.param == "many chunks":
        monkeypatch.setattr(logprob, "chunk_bytes", lambda _memory: 1)


def make_inputs(C, D, V, dtype=torch.float32, spread=1.0, seed=0, with_suppressed=True):
    """hidden, weight, targets, suppressed, and an upstream gradient with some exact zeros."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn((V, D), generator=generator)  # (V, D)
    targets = torch.randint(V, (C,), generator=generator)  # (C,)
    hidden = torch.randn((C, D), generator=generator)  # (C, D)
    hidden[::2] += 2.5 * weight[targets[::2]] / D**0.5  # likely targets in half of the rows
    hidden = hidden * spread
    suppressed = None
    if with_suppressed:
        suppressed = torch.rand(V, generator=generator) < 0.3  # (V,) bool
        suppressed[targets] = False
    grad_logp = torch.randn(C, generator=generator)  # (C,)
    grad_logp[3::4] = 0.0
    hidden, weight = (tensor.to(DEVICE, dtype) for tensor in (hidden, weight / D**0.5))
    suppressed = None if suppressed is None else suppressed.to(DEVICE)
    return hidden, weight, targets.to(DEVICE), suppressed, grad_logp.to(DEVICE)


def evaluate(function, hidden, weight, targets, suppressed, grad_logp, temperature, **options):
    """logp, entropy, gradient of hidden, gradient of weight."""
    hidden = hidden.detach().requires_grad_()
    weight = weight.detach().requires_grad_()
    logp, entropy = function(hidden, weight, targets, temperature, suppressed, **options)
    grads = torch.autograd.grad(logp, (hidden, weight), grad_logp.to(logp.dtype))
    return logp.detach(), entropy, *grads


def assert_as_accurate_as_the_reference(inputs, temperature, impl, tiny=2e-6, rounding=0.0):
    """`rounding`: of what gradients are made of, relative to their largest number."""
    hidden, weight, targets, suppressed, grad_logp = inputs
    copies = [None if tensor is None else tensor.clone() for tensor in inputs]
    exact = (hidden.double(), weight.double(), targets, suppressed, grad_logp)
    truth = evaluate(linear_logprob_ref, *exact, temperature)
    baseline = evaluate(linear_logprob_ref, *inputs, temperature)
    result = evaluate(linear_logprob, *inputs, temperature, impl=impl)
    for name, got, base, true in zip(
        ("logp", "entropy", "grad_hidden", "grad_weight"), result, baseline, truth, strict=True
    ):
        assert got.dtype == base.dtype and got.shape == base.shape, name
        error = (got.double() - true).abs().max().item()
        allowed = 2 * (base.double() - true).abs().max().item() + tiny
        if name.startswith("grad"):
            allowed += rounding * true.abs().max().item()
        assert error <= allowed, f"{name}: error {error:.2e}, allowed {allowed:.2e}"
    for tensor, copy in zip(inputs, copies, strict=True):
        assert tensor is None or torch.equal(tensor, copy), "an input was modified"
    assert (result[0] <= 0).all() and (result[1] >= 0).all()
    return result


@pytest.mark.case("O15")
@each_impl
@pytest.mark.parametrize("C, D, V, temperature", SIZES)
def test_error_is_at_most_twice_that_of_the_float32_reference(C, D, V, temperature, impl, chunks):
    inputs = make_inputs(C, D, V, seed=V)
    logp, entropy, grad_hidden, grad_weight = assert_as_accurate_as_the_reference(
        inputs, temperature, impl
    )
    assert logp.max() > -math.log(V) and entropy.min() < math.log(V)  # not a uniform softmax
    assert not grad_hidden[3::4].any()  # a zero upstream gradient contributes exactly nothing
    assert not grad_weight[inputs[3]].any()  # and neither does a suppressed column
    assert grad_hidden.any() and grad_weight.any()


@pytest.mark.case("O15")
@each_impl
def test_logits_of_ten_thousand_neither_overflow_nor_lose_accuracy(impl, chunks):
    inputs = make_inputs(12, 16, 151, spread=4000.0, with_suppressed=False)
    assert (inputs[0] @ inputs[1].T).abs().max() > 1e4
    result = assert_as_accurate_as_the_reference(inputs, 1.0, impl)
    assert all(tensor.isfinite().all() for tensor in result)


@each_impl
def test_bfloat16_inputs_are_summed_in_float32(impl, chunks):
    if impl == "triton" and DEVICE == "cpu":
        pytest.skip("the interpreter cannot multiply bfloat16")
    # The kernels round the odds and the scaled hidden states to bf16: each by at most 2^-9.
    rounding = 2**-8 if impl == "triton" else 0.0
    for seed in range(3):
        inputs = make_inputs(40, 64, 300, torch.bfloat16, seed=seed)
        assert_as_accurate_as_the_reference(inputs, 0.7, impl, rounding=rounding)


@pytest.mark.case("O15")
@each_impl
def test_suppressed_tiles_and_chunks_change_nothing(impl, chunks):
    hidden, weight, targets, _, grad_logp = make_inputs(6, 8, 400, with_suppressed=False)
    targets = targets % 100 + 300
    suppressed = torch.arange(400, device=DEVICE) < 300
    inputs = hidden, weight, targets, suppressed, grad_logp
    got = evaluate(linear_logprob, *inputs, 1.0, impl=impl)
    alone = hidden, weight[300:], targets - 300, None, grad_logp
    expected = evaluate(linear_logprob_ref, *alone, 1.0)
    for result, reference in zip(got[:3], expected[:3], strict=True):
        torch.testing.assert_close(result, reference)
    torch.testing.assert_close(got[3][300:], expected[3])
    assert not got[3][:300].any()
    # One allowed token: log-probability, entropy and gradients are zero.
    inputs = hidden, weight, targets * 0 + 350, torch.arange(400, device=DEVICE) != 350, grad_logp
    assert not any(result.any() for result in evaluate(linear_logprob, *inputs, 1.0, impl=impl))


@pytest.mark.case("O15")
@each_impl
def test_strided_inputs_equal_their_contiguous_copies(impl, chunks):
    inputs = make_inputs(10, 12, 151)
    strided = [inputs[0].T.contiguous().T]
    strided += [torch.stack((tensor, tensor), dim=-1)[..., 1] for tensor in inputs[1:]]
    assert not any(tensor.is_contiguous() for tensor in strided)
    got = evaluate(linear_logprob, *strided, 1.0, impl=impl)
    expected = evaluate(linear_logprob, *inputs, 1.0, impl=impl)
    for result, reference in zip(got, expected, strict=True):
        torch.testing.assert_close(result, reference)


@pytest.mark.case("O15")
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy, in the interpreter
@each_impl
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_hidden_state_that_is_not_finite_spoils_its_own_row_only(bad, impl, chunks):
    hidden, weight, targets, suppressed, _ = make_inputs(5, 8, 151)
    hidden[2, 3] = bad
    logp, entropy = linear_logprob(hidden, weight, targets, 1.0, suppressed, impl=impl)
    expected_logp, expected_entropy = linear_logprob_ref(hidden, weight, targets, 1.0, suppressed)
    torch.testing.assert_close(logp, expected_logp, equal_nan=True)
    torch.testing.assert_close(entropy, expected_entropy, equal_nan=True)
    assert logp.isnan().nonzero().tolist() == [[2]]


@each_impl
def test_no_tokens_give_zero_gradients(impl, chunks):
    hidden, weight, targets, suppressed, _ = make_inputs(0, 8, 151)
    hidden.requires_grad_(), weight.requires_grad_()
    logp, entropy = linear_logprob(hidden, weight, targets, 1.0, suppressed, impl=impl)
    assert logp.shape == entropy.shape == (0,)
    logp.sum().backward()
    assert hidden.grad.shape == (0, 8)
    assert torch.equal(weight.grad, torch.zeros_like(weight))


@each_impl
def test_entropy_has_no_gradient_and_each_input_may_be_frozen(impl, chunks):
    inputs = make_inputs(6, 8, 151)
    hidden, weight, targets, suppressed, grad_logp = inputs
    _, _, grad_hidden, grad_weight = evaluate(linear_logprob, *inputs, 1.0, impl=impl)
    trained = hidden.clone().requires_grad_()
    logp, entropy = linear_logprob(trained, weight, targets, 1.0, suppressed, impl=impl)
    assert logp.requires_grad and not entropy.requires_grad
    logp.backward(grad_logp)
    assert torch.equal(trained.grad, grad_hidden) and weight.grad is None
    trained = weight.clone().requires_grad_()
    linear_logprob(hidden, trained, targets, 1.0, suppressed, impl=impl)[0].backward(grad_logp)
    assert torch.equal(trained.grad, grad_weight) and hidden.grad is None
    with torch.no_grad():
        assert not linear_logprob(hidden, trained, targets, impl=impl)[0].requires_grad


@pytest.mark.case("O4")
def test_the_torch_path_passes_gradcheck_in_float64(chunks):
    hidden, weight, targets, suppressed, _ = make_inputs(3, 4, 140, dtype=torch.float64)
    hidden.requires_grad_(), weight.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda h, w: linear_logprob(h, w, targets, 0.7, suppressed, impl="torch")[0],
        (hidden, weight),
    )


@each_impl
def test_an_almost_certain_token_keeps_its_digits(impl, chunks):
    """1 - p_y by subtraction is a multiple of 6e-8 in float32; here it is 2e-7."""
    weight = torch.eye(3, device=DEVICE)
    hidden = torch.tensor([[16.0, 0.0, 0.0]], device=DEVICE).requires_grad_()
    targets = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    logp, entropy = linear_logprob(hidden, weight, targets, impl=impl)
    logp.sum().backward()
    others = 2 * math.exp(-16)
    expected = [others / (1 + others), -others / 2 / (1 + others), -others / 2 / (1 + others)]
    assert logp.item() == pytest.approx(-math.log1p(others), rel=1e-5)
    assert hidden.grad[0].tolist() == pytest.approx(expected, rel=1e-5)
    assert entropy.item() == pytest.approx(others * 17, rel=1e-5)


@each_impl
def test_targets_of_any_unlikeliness_keep_entropy_and_gradient(impl, chunks):
    C, V = 4, 140
    hidden, _, targets, _, grad_logp = make_inputs(C, V, V, with_suppressed=False)
    weight, rows = torch.eye(V, device=DEVICE), torch.arange(C)  # the logits are `hidden` itself
    options = targets, None, 1e-6 * grad_logp, 1.0
    for below in (10, 20, 40, 80, 86, 95, 500):  # nats; exp leaves float32 at 88
        hidden[rows, (targets + 1) % V] = hidden[rows, targets] + below
        result = evaluate(linear_logprob, hidden, weight, *options, impl=impl)
        truth = evaluate(linear_logprob_ref, hidden.double(), weight.double(), *options)
        assert (result[1] - truth[1]).abs().max() < 2e-5 and result[1].min() > -1e-6
        for k in (0, 2, 3):
            assert (result[k] - truth[k]).abs().max() < 1e-5 * truth[k].abs().max(), below


def test_memory_beyond_the_gradients_does_not_grow_with_the_vocabulary(monkeypatch):
    monkeypatch.setattr(logprob, "chunk_bytes", lambda _memory: 2**20)
    extra = {V: extra_bytes(linear_logprob, V, C=128, D=16) for V in (1024, 16384, 151936)}
    assert all(2**18 < count < 2**20 for count in extra.values())
    assert extra[151936] == extra[16384] < 4 * 128 * 4096  # less than 4096 columns of logits
    # The counting itself: the reference holds several times all logits.
    assert extra_bytes(linear_logprob_ref, 16384, C=128, D=16) > 2 * 4 * 128 * 16384


@each_impl
def test_odds_are_stored_where_they_fit_and_computed_again_where_not(impl, monkeypatch):
    compute, passes = getattr(logprob, f"_odds_{impl}"), []

    def watched(chunk, *options):
        passes.append(len(chunk[1]))  # columns
        return compute(chunk, *options)

    monkeypatch.setattr(logprob, f"_odds_{impl}", watched)
    inputs = make_inputs(16, 4, 300)
    evaluate(linear_logprob, *inputs, 1.0, impl=impl)
    assert passes == [300]  # backward is two products
    passes.clear()
    monkeypatch.setattr(logprob, "chunk_bytes", lambda _memory: 1)
    evaluate(linear_logprob, *inputs, 1.0, impl=impl)
    forward = [300] if impl == "triton" else [128, 128, 44]
    assert passes == [*forward, 128, 128, 44]


def test_the_budget_of_a_chunk_grows_with_the_card_and_not_with_what_is_free():
    assert logprob.chunk_bytes(None) == logprob.chunk_bytes(16 * 2**30) == 2**29
    assert logprob.chunk_bytes(24e9) > 2400 * 151936 * 2  # the main workload, stored in bf16
    assert logprob.chunk_bytes(80 * 2**30) == 2.5 * 2**30


@each_impl
def test_bad_targets_are_refused_on_a_cpu_and_give_nan_or_minus_infinity_on_a_gpu(
    impl, monkeypatch, chunks
):
    hidden, weight, _, _, _ = make_inputs(4, 8, 151)
    targets = torch.tensor([3, -1, 151, 7], device=DEVICE)
    suppressed = torch.arange(151, device=DEVICE) == 7
    if DEVICE == "cpu":  # on a GPU the check would synchronise
        for row, message in ((1, r"in \[0, 151\)"), (2, r"in \[0, 151\)"), (3, "7 is suppressed")):
            with pytest.raises(ValueError, match=message):
                linear_logprob(hidden[:1], weight, targets[[row]], 1.0, suppressed, impl=impl)
        monkeypatch.setattr(logprob, "_validate", lambda *arguments: None)
    logp, _ = linear_logprob(hidden, weight, targets, 1.0, suppressed, impl=impl)
    assert logp.isnan().tolist() == [False, True, True, False]
    assert logp[0].isfinite() and logp[3] == -math.inf


BAD_ARGUMENTS = {
    "hidden has three dimensions": ({"hidden": torch.zeros(2, 2, 8)}, r"\(C, D\) and \(V, D\)"),
    "widths differ": ({"weight": torch.zeros(20, 9)}, r"\(C, D\) and \(V, D\)"),
    "empty vocabulary": ({"weight": torch.zeros(0, 8)}, "V > 0"),
    "too few targets": ({"targets": torch.zeros(3, dtype=torch.int64)}, r"targets .* \(4,\)"),
    "targets are int32": ({"targets": torch.zeros(4, dtype=torch.int32)}, "int64, got"),
    "suppressed has the wrong length": ({"suppressed": torch.zeros(19) > 0}, r"\(20,\)"),
    "suppressed is a number": ({"suppressed": torch.zeros(20)}, "dtype bool, got"),
    "dtypes differ": ({"weight": torch.zeros(20, 8).bfloat16()}, "must both be"),
    "float16": ({"hidden": torch.zeros(4, 8).half()}, "must both be"),
    "devices differ": ({"weight": torch.zeros(20, 8, device="meta")}, "share a device"),
    "temperature is zero": ({"temperature": 0.0}, "temperature must be"),
    "temperature is NaN": ({"temperature": math.nan}, "temperature must be"),
}


@each_impl
@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_wrong_arguments_raise_value_errors(case, impl):
    changes, message = BAD_ARGUMENTS[case]
    arguments = {"hidden": torch.zeros(4, 8), "weight": torch.zeros(20, 8)}
    arguments |= {"targets": torch.zeros(4, dtype=torch.int64)} | changes
    for name, value in arguments.items():
        if isinstance(value, torch.Tensor) and value.device.type != "meta":
            arguments[name] = value.to(DEVICE)
    with pytest.raises(ValueError, match=message):
        linear_logprob(**arguments, impl=impl)


@needs_triton
def test_the_kernel_refuses_float64_and_the_interpreter_bfloat16():
    """The interpreter would multiply the raw bits of bfloat16 numbers without a word."""
    inputs = make_inputs(2, 4, 7, dtype=torch.float64)
    with pytest.raises(ValueError, match="float64"):
        linear_logprob(*inputs[:3], impl="triton")
    if DEVICE == "cpu":
        inputs = make_inputs(2, 4, 7, dtype=torch.bfloat16)
        with pytest.raises(ValueError, match="interpreter cannot multiply bfloat16"):
            linear_logprob(*inputs[:3], impl="triton")
