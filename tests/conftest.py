"""Settings that must be in place before any test module is imported."""

import os

import torch

# Without a GPU the Triton kernels are tested in Triton's interpreter. It has to be chosen before
# the kernels are decorated, and any test module may be the first to import them: hence this file.
# With a GPU the same tests run the compiled kernels.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
