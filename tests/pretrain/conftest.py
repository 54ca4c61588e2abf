"""What the tests of training share."""

import pytest
from small_runs import tiny

from univip_stream.pretrain import pretrain


@pytest.fixture(scope="module")
def undisturbed(drawn_shards, tmp_path_factory):
    """A tiny run of eight steps that nothing stopped."""
    run = tmp_path_factory.mktemp("runs") / "undisturbed"
    pretrain(tiny(), str(drawn_shards), run)
    return run
