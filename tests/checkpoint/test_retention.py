"""What is kept, and that it is always enough."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.checkpoint.retention import KeptCheckpoint, Ranking, Retention, best_first
from harness.errors import ConfigError
from harness.stopping.budget import Every

LOSS = Ranking("loss", "min")
metrics = st.one_of(st.just({}), st.fixed_dictionaries({"loss": st.floats()}))
checkpoints = st.lists(st.integers(0, 200), min_size=1, max_size=15, unique=True).flatmap(
    lambda steps: st.tuples(
        *(
            st.builds(KeptCheckpoint, st.just(step), st.just(step // 10), metrics)
            for step in sorted(steps)
        )
    )
)
retentions = st.builds(
    Retention,
    st.integers(1, 4),
    st.integers(0, 3),
    st.none() | st.builds(lambda n: Every(steps=n), st.integers(1, 50)) | st.just(Every(epochs=2)),
)
ranks = st.sampled_from([None, LOSS, Ranking("loss", "max")])


@given(checkpoints, retentions, ranks, st.data())
def test_the_newest_the_best_and_the_committed_always_stay(
    kept: tuple[KeptCheckpoint, ...],
    retention: Retention,
    best: Ranking | None,
    data: st.DataObject,
) -> None:
    committed = data.draw(st.sampled_from([one.step for one in kept]))
    left = {one.step for one in kept} - set(retention.to_delete(kept, best, committed))
    assert committed in left
    assert max(one.step for one in kept) in left
    assert set(best_first(kept, best)[: max(1, retention.keep_best)]) <= left
    assert len(left) >= min(retention.keep_last, len(kept))


@given(checkpoints, retentions, ranks)
def test_applied_again_it_deletes_nothing(
    kept: tuple[KeptCheckpoint, ...], retention: Retention, best: Ranking | None
) -> None:
    newest = kept[-1].step
    gone = retention.to_delete(kept, best, newest)
    assert retention.to_delete([one for one in kept if one.step not in gone], best, newest) == []


@given(checkpoints, retentions, ranks)
def test_a_larger_retention_keeps_no_less(
    kept: tuple[KeptCheckpoint, ...], retention: Retention, best: Ranking | None
) -> None:
    larger = Retention(retention.keep_last + 1, retention.keep_best + 1, retention.keep_every)
    assert set(larger.to_delete(kept, best, kept[-1].step)) <= set(
        retention.to_delete(kept, best, kept[-1].step)
    )


def test_a_long_run_keeps_the_first_of_each_stretch() -> None:
    retention = Retention(keep_last=2, keep_best=0, keep_every=Every(steps=100))
    kept: list[KeptCheckpoint] = []
    for step in range(30, 500, 30):
        kept.append(KeptCheckpoint(step, 0))
        gone = retention.to_delete(kept, None, step)
        kept = [one for one in kept if one.step not in gone]
    assert [one.step for one in kept] == [120, 210, 300, 420, 450, 480]


def test_an_earlier_checkpoint_wins_a_tie_and_nan_is_never_best() -> None:
    kept = [
        KeptCheckpoint(step, 0, {"loss": loss})
        for step, loss in ((1, math.nan), (2, 0.5), (3, 0.5), (4, 0.7))
    ]
    assert best_first(kept, LOSS) == [2, 3, 4]
    assert best_first(kept, Ranking("loss", "max")) == [4, 2, 3]
    assert best_first(kept, Ranking("accuracy", "max")) == []


@pytest.mark.parametrize(("last", "best"), [(0, 1), (1, -1)])
def test_a_retention_that_keeps_nothing_is_refused(last: int, best: int) -> None:
    with pytest.raises(ConfigError, match="keep_last must be at least 1"):
        Retention(last, best)
