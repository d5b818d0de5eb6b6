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
IMPLS = ["torch", pytest.param("triton", marks=needs_triton)]
each_impl = pytest.mark.parametrize("impl", IMPLS)


@pytest.fixture(params=["one chunk", "many chunks"])
def chunks(request, monkeypatch):
    """Run a test twice: with the whole vocabulary in one chunk, and in chunks of 128 columns."""
    if request.param == "many chunks":
        monkeypatch.setattr(logprob, "CHUNK_BYTES", 1)


def make_inputs(C, D, V, dtype=torch.float32, spread=1.0, seed=0, with_forbidden=True):
    """hidden, weight, targets, suppressed, and an upstream gradient with some exact zeros."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn((V, D), generator=generator)  # (V, D)
    targets = torch.randint(V, (C,), generator=generator)  # (C,)
    hidden = torch.randn((C, D), generator=generator)  # (C, D)
    hidden[::2] += 2.5 * weight[targets[::2]] / D**0.5  # likely targets in half of the rows
    hidden = hidden * spread
    suppressed = None
    if with_forbidden:
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


def assert_as_accurate_as_the_reference(inputs, temperature, impl, tiny=2e-6):
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
        assert error <= allowed, f"{name}: error {error:.2e}, allowed {allowed:.2e}"
    for tensor, copy in zip(inputs, copies, strict=True):
        assert tensor is None or torch.equal(tensor, copy), "an input was modified"
    assert (result[0] <= 0).all() and (result[1] >= 0).all()
    return result


@pytest.mark.case("O15")
@each_impl
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
@pytest.mark.parametrize("C, D, V", [(1, 8, 7), (5, 20, 128), (70, 33, 151), (3, 17, 1003)])
def test_error_is_at_most_twice_that_of_the_float32_reference(C, D, V, temperature, impl, chunks):
    inputs = make_inputs(C, D, V, seed=V)
    logp, entropy, grad_hidden, grad_weight = assert_as_accurate_as_the_reference(
        inputs, temperature, impl
    )
    assert logp.max() > -math.log(V) and entropy.min() < math.log(V)  # not a uniform softmax
    assert not grad_hidden[3::4].any()  # a zero upstream gradient contributes exactly nothing
    assert not grad_weight[inputs[3]].any()  # and neither does a suppressed column
    assert grad_hidden.any() and grad_weight.any()


@each_impl
def test_error_holds_without_forbidden_tokens(impl, chunks):
    inputs = make_inputs(9, 12, 300, with_forbidden=False)
    assert_as_accurate_as_the_reference(inputs, 1.0, impl)


@pytest.mark.case("O15")
@each_impl
def test_logits_of_ten_thousand_neither_overflow_nor_lose_accuracy(impl, chunks):
    inputs = make_inputs(12, 16, 151, spread=4000.0)
    largest = (inputs[0] @ inputs[1].T).abs().max()
    assert largest > 1e4
    result = assert_as_accurate_as_the_reference(inputs, 1.0, impl)
    assert all(tensor.isfinite().all() for tensor in result)


@pytest.mark.parametrize(
    "impl",
    ["torch", pytest.param("triton", marks=[pytest.mark.gpu, needs_triton])],
)
def test_bfloat16_inputs_are_summed_in_float32(impl, chunks):
    """The interpreter cannot multiply bfloat16, so the kernel's turn comes on a GPU."""
    if impl == "triton" and DEVICE == "cpu":
        pytest.skip("needs a CUDA device")
    inputs = make_inputs(40, 64, 300, dtype=torch.bfloat16)
    assert_as_accurate_as_the_reference(inputs, 0.7, impl)


@pytest.mark.case("O15")
@each_impl
def test_whole_forbidden_tiles_and_chunks_leave_no_trace(impl, chunks):
    hidden, weight, targets, _, grad_logp = make_inputs(6, 8, 400, with_forbidden=False)
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


@each_impl
def test_one_allowed_token_has_log_probability_and_entropy_zero(impl):
    hidden, weight, _, _, grad_logp = make_inputs(4, 8, 7)
    suppressed = torch.arange(7, device=DEVICE) != 5
    targets = torch.full((4,), 5, device=DEVICE)
    logp, entropy, grad_hidden, grad_weight = evaluate(
        linear_logprob, hidden, weight, targets, suppressed, grad_logp, 1.0, impl=impl
    )
    for tensor in (logp, entropy, grad_hidden, grad_weight):
        assert torch.equal(tensor, torch.zeros_like(tensor))


@pytest.mark.case("O15")
@each_impl
def test_strided_inputs_equal_their_contiguous_copies(impl, chunks):
    hidden, weight, targets, suppressed, grad_logp = make_inputs(10, 12, 151)
    strided = (
        hidden.T.contiguous().T,
        torch.stack((weight, weight), dim=2)[:, :, 1],
        torch.stack((targets, targets), dim=1)[:, 0],
        torch.stack((suppressed, ~suppressed), dim=1)[:, 0],
        grad_logp,
    )
    assert not any(tensor.is_contiguous() for tensor in strided[:4])
    got = evaluate(linear_logprob, *strided, 1.0, impl=impl)
    expected = evaluate(
        linear_logprob, hidden, weight, targets, suppressed, grad_logp, 1.0, impl=impl
    )
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
def test_no_tokens_keep_the_graph_and_give_zero_gradients(impl, chunks):
    hidden, weight, targets, suppressed, grad_logp = make_inputs(0, 8, 151)
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
        logp, _ = linear_logprob(hidden, trained, targets, 1.0, suppressed, impl=impl)
    assert not logp.requires_grad


@each_impl
def test_a_tied_embedding_receives_the_sum_of_both_gradients(impl):
    _, weight, targets, _, grad_logp = make_inputs(6, 8, 60)
    tokens = torch.arange(6, device=DEVICE)
    grads = []
    for function, options in ((linear_logprob, {"impl": impl}), (linear_logprob_ref, {})):
        embedding = weight.clone().requires_grad_()
        function(embedding[tokens], embedding, targets, **options)[0].backward(grad_logp)
        grads.append(embedding.grad)
    torch.testing.assert_close(grads[0], grads[1])


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
@pytest.mark.parametrize("below", [10, 20, 40, 60, 80, 86, 95, 500])
def test_targets_of_any_unlikeliness_keep_entropy_and_gradient(below, impl, chunks):
    C, V = 16, 200
    hidden, _, targets, _, grad_logp = make_inputs(C, V, V, with_forbidden=False)
    weight, rows = torch.eye(V, device=DEVICE), torch.arange(C)  # the logits are `hidden` itself
    hidden[rows, (targets + 1) % V] = hidden[rows, targets] + below
    given = targets, None, 1e-6 * grad_logp, 1.0
    found = evaluate(linear_logprob, hidden, weight, *given, impl=impl)
    truth = evaluate(linear_logprob_ref, hidden.double(), weight.double(), *given)
    assert (found[1] - truth[1]).abs().max() < 2e-5 and found[1].min() > -1e-6
    for k in (0, 2, 3):
        assert (found[k] - truth[k]).abs().max() < 1e-5 * truth[k].abs().max()


def test_memory_beyond_the_gradients_does_not_grow_with_the_vocabulary(monkeypatch):
    monkeypatch.setattr(logprob, "CHUNK_BYTES", 2**20)
    counted = {V: extra_bytes(linear_logprob, V, C=128, D=16) for V in (1024, 4096, 32768, 151936)}
    assert all(2**18 < count < 2**20 for count in counted.values())
    assert counted[151936] == counted[32768] < 4 * 128 * 4096  # less than 4096 columns of logits
    # The counting itself: what keeps logits holds several times all of them.
    assert extra_bytes(linear_logprob_ref, 32768, C=128, D=16) > 2 * 4 * 128 * 32768


@each_impl
def test_odds_are_stored_where_they_fit_and_computed_again_where_not(impl, monkeypatch):
    name, passes = f"_odds_{impl}", []
    compute = getattr(logprob, name)
    monkeypatch.setattr(
        logprob, name, lambda *args: passes.append(args[0][1].shape[0]) or compute(*args)
    )
    inputs = make_inputs(16, 4, 300)
    evaluate(linear_logprob, *inputs, 1.0, impl=impl)
    assert passes == [300]  # backward is two products
    passes.clear()
    monkeypatch.setattr(logprob, "CHUNK_BYTES", 1)
    evaluate(linear_logprob, *inputs, 1.0, impl=impl)
    forward = [300] if impl == "triton" else [128, 128, 44]
    assert passes == [*forward, 128, 128, 44]


@pytest.mark.skipif(DEVICE == "cuda", reason="on a GPU the check would stop the stream")
@each_impl
def test_targets_outside_the_vocabulary_or_forbidden_are_refused_on_cpu(impl):
    hidden, weight, targets, _, _ = make_inputs(4, 8, 20)
    for bad in (-1, 20):
        wrong = targets.clone()
        wrong[1] = bad
        with pytest.raises(ValueError, match=r"targets must be in \[0, 20\)"):
            linear_logprob(hidden, weight, wrong, impl=impl)
    suppressed = torch.arange(20) == targets[2]
    with pytest.raises(ValueError, match=f"target {targets[2]} is suppressed"):
        linear_logprob(hidden, weight, targets, 1.0, suppressed, impl=impl)


@each_impl
def test_unchecked_bad_targets_are_loud(impl, monkeypatch, chunks):
    """What happens on a GPU, where `_validate` cannot look: NaN outside, -inf where suppressed."""
    monkeypatch.setattr(logprob, "_validate", lambda *arguments: None)
    hidden, weight, _, _, _ = make_inputs(4, 8, 151)
    targets = torch.tensor([3, -1, 151, 7], device=DEVICE)
    suppressed = torch.arange(151, device=DEVICE) == 7
    logp, _ = linear_logprob(hidden, weight, targets, 1.0, suppressed, impl=impl)
    assert logp.isnan().tolist() == [False, True, True, False]
    assert logp[0].isfinite() and logp[3] == -math.inf


BAD_ARGUMENTS = {
    "hidden has three dimensions": ({"hidden": torch.zeros(2, 2, 8)}, r"\(C, D\) and \(V, D\)"),
    "widths differ": ({"weight": torch.zeros(20, 9)}, r"\(C, D\) and \(V, D\)"),
    "empty vocabulary": ({"weight": torch.zeros(0, 8)}, "V=0"),
    "too few targets": ({"targets": torch.zeros(3, dtype=torch.int64)}, r"targets .* \(4,\)"),
    "targets are int32": ({"targets": torch.zeros(4, dtype=torch.int32)}, "int64, got"),
    "suppressed has the wrong length": ({"suppressed": torch.zeros(19) > 0}, r"\(20,\)"),
    "suppressed is a number": ({"suppressed": torch.zeros(20)}, "dtype bool, got"),
    "dtypes differ": ({"weight": torch.zeros(20, 8).bfloat16()}, "must both be"),
    "float16": ({"hidden": torch.zeros(4, 8).half()}, "must both be"),
    "devices differ": ({"weight": torch.zeros(20, 8, device="meta")}, "share a device"),
    "temperature is zero": ({"temperature": 0.0}, "temperature must be"),
    "temperature is negative": ({"temperature": -1.0}, "temperature must be"),
    "temperature is NaN": ({"temperature": math.nan}, "temperature must be"),
}


@each_impl
@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_wrong_arguments_raise_value_errors(case, impl):
    arguments = {
        "hidden": torch.zeros(4, 8),
        "weight": torch.zeros(20, 8),
        "targets": torch.zeros(4, dtype=torch.int64),
    }
    changes, message = BAD_ARGUMENTS[case]
    arguments.update(changes)
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
