"""The device that `--device` names; those that cannot be are in test_inputs_cli.py."""

import pytest
import torch

from runtime.device import pick_device


@pytest.mark.parametrize("name, index", [("auto", 0), ("cuda", 0), ("cuda:1", 1)])
def test_a_gpu_is_picked_with_its_index(monkeypatch, name, index):
    """`torch.cuda.set_device` refuses a bare "cuda"; once, no run on a single GPU could begin.

    Only what would touch a driver is replaced: the argument check is torch's own.
    """
    indices = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "empty", lambda *size, device: device)
    monkeypatch.setattr(torch._C, "_cuda_setDevice", indices.append, raising=False)
    with pytest.raises(ValueError):
        torch.cuda.set_device(torch.device("cuda"))
    assert pick_device(name) == torch.device("cuda", index)
    assert indices == [index]
