"""The eight operations that have a Triton kernel, each beside its torch reference.

* `linear_logprob`: log-probability and entropy of given tokens straight from hidden states.
* `group_advantages`: rewards compared inside each group.
* `shared_prefix_attention`: one new token per row against [shared prefix | own suffix].
* `sample_tokens`: one token of each row of logits, and its log-probability.
* `gated_product`, `gated_linear`: the decoder's MLP with less kept for backward.
* `add_norm`, `rotate_and_store`: what lies between the products of a decoding step.

All take `impl`: "auto" runs the Triton kernel on CUDA tensors and its torch twin everywhere else.
Triton is optional: without it (or without a GPU) every function here still works.

Next: `advantage.py` (the smallest complete kernel), `swiglu.py`, `sample.py`, `norm.py`,
`rotary.py`, `decode.py`, and `logprob.py`.
"""

from functools import partial
from typing import Literal

from torch import Tensor

try:
    import triton
    import triton.language as tl
except ModuleNotFoundError as error:
    if error.name != "triton":  # a broken installation of triton is not an absent one
        raise
    triton = tl = None
constexpr = object if triton is None else tl.constexpr  # annotations are evaluated either way

Impl = Literal["auto", "torch", "triton"]


def jit(kernel=None, **options):
    """`triton.jit` where triton is installed, otherwise the plain function (never launched)."""
    if kernel is None:
        return partial(jit, **options)
    return kernel if triton is None else triton.jit(kernel, **options)


def choose_impl(impl: Impl, tensor: Tensor) -> Literal["torch", "triton"]:
    """The one dispatch rule: "auto" is Triton on CUDA tensors and torch elsewhere.

    Raises:
        ValueError: unknown `impl`, or "triton" where it cannot run. On CPU tensors the kernels run
            only in Triton's interpreter (TRITON_INTERPRET=1 before the first import).
    """
    if impl not in ("auto", "torch", "triton"):
        raise ValueError(f"impl must be 'auto', 'torch' or 'triton', got {impl!r}")
    if impl == "auto":
        return "triton" if tensor.is_cuda and triton is not None else "torch"
    if impl == "triton" and triton is None:
        raise ValueError("impl='triton' needs the package triton, which is not installed")
    if impl == "triton" and not tensor.is_cuda and not triton.knobs.runtime.interpret:
        raise ValueError(f"impl='triton' needs CUDA tensors, got one on {tensor.device}")
    return impl


# The public functions. Last, because their modules import the definitions above.
from kernels.advantage import group_advantages, group_advantages_ref  # noqa: E402, F401
from kernels.decode import shared_prefix_attention, shared_prefix_attention_ref  # noqa: E402, F401
from kernels.logprob import linear_logprob, linear_logprob_ref  # noqa: E402, F401
from kernels.norm import add_norm, add_norm_ref  # noqa: E402, F401
from kernels.rotary import apply_rotary, rotate_and_store, rotate_and_store_ref  # noqa: E402, F401
from kernels.sample import sample_tokens, sample_tokens_ref  # noqa: E402, F401
from kernels.swiglu import gated_linear, gated_product, gated_product_ref  # noqa: E402, F401
