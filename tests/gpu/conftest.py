"""The device of `pytest -m gpu`: a CUDA card, or the CPU where UNIVIP_GPU_TESTS=cpu rehearses these tests."""

import os
from pathlib import Path

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Steps before runs, and last what is compiled: it takes a minute, and the time may be cut off."""
    places = [place for place, item in enumerate(items) if item.path.parent == Path(__file__).parent]
    mine = sorted(
        (items[place] for place in places), key=lambda item: ("compiled" in item.name, item.path.name != "test_steps.py")
    )
    for place, item in zip(places, mine, strict=True):
        items[place] = item


@pytest.fixture(autouse=True, scope="session")
def _whole_float32():
    """No TF32: what is compared with a CPU's float32 is float32. Of the session, as runs that several tests share are."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
