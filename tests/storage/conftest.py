"""What all tests of stores share: short waits between tries, and the web's options as they are by default."""

from collections.abc import Iterator

import pytest

from univip_stream import storage
from univip_stream.storage import WebOptions, retry


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(retry, "FIRST_WAIT", 0.01)
    yield
    storage.use_web(WebOptions())
