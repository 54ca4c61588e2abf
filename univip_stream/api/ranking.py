"""`--rank-by RUN`: the stored candidates of shards in another order, by the features of a run's own backbone."""

from pathlib import Path

from univip_stream.evaluation.ranking import MADE_WITH, ranker_of, ranking_file
from univip_stream.mining.ranking import Ranking


def rank_by(run: str | Path) -> Ranking:
    """Make the ranking of `RefilterConfig(rank_by=...)` from a run.

    Args:
        run: run folder (its newest checkpoint), a checkpoint, a backbone.safetensors, or a reference such as
            `random:resnet18`, to see what its training gives beside none.

    Raises:
        InputError, UsageError: there is no such run, it has no weights yet or damaged ones, or features too coarse for boxes.

    """
    facts, data = ranking_file(run)
    return Ranking(facts=facts, data=data, load=f"{ranker_of.__module__}:{ranker_of.__name__}", made_with=MADE_WITH)
