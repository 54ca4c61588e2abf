"""The device of `pytest -m gpu`: a CUDA card, or the CPU where UNIVIP_GPU_TESTS=cpu rehearses these tests."""

import os

import pytest
import torch

KIND = os.environ.get("UNIVIP_GPU_TESTS", "cuda")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before fixtures make what nobody would look at."""
    if KIND == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and torch finds none; UNIVIP_GPU_TESTS=cpu runs the same on the CPU")


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda", 0) if KIND == "cuda" else torch.device("cpu")


@pytest.fixture(autouse=True)
def _whole_float32():
    """No TF32: what is compared with a CPU's float32 is float32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
