from collections import Counter
from types import SimpleNamespace

import pytest

from nnunetv2_anomaly.segmenters.published.loading import EveryCaseOnceLoader, case_at

LABELS = SimpleNamespace(all_labels=[1], has_ignore_label=False)


def loader(num_cases: int, batch_size: int = 1, **keywords) -> EveryCaseOnceLoader:
    cases = SimpleNamespace(identifiers=[f"case_{k}" for k in range(num_cases)])
    return EveryCaseOnceLoader(cases, batch_size, (8, 8, 8), (8, 8, 8), LABELS, **keywords)


@pytest.mark.parametrize("num_cases", [1, 2, 7])
def test_every_case_once_in_every_turn_and_in_another_order(num_cases):
    turns = [[case_at(turn * num_cases + k, num_cases) for k in range(num_cases)] for turn in range(20)]
    assert all(sorted(turn) == list(range(num_cases)) for turn in turns)
    if num_cases == 7:
        assert len({tuple(turn) for turn in turns}) > 10


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_workers_asked_in_turn_deliver_what_one_would(num_workers):
    alone = loader(5)
    expected = [alone.get_indices() for _ in range(15)]
    workers = [loader(5, num_workers=num_workers) for _ in range(num_workers)]
    for number, worker in enumerate(workers):
        worker.set_thread_id(number)
    assert [workers[k % num_workers].get_indices() for k in range(15)] == expected
    assert set(Counter(case for batch in expected for case in batch).values()) == {3}


def test_continued_sequence_is_the_rest_of_the_whole():
    whole, rest = loader(5), loader(5, first_batch=7)
    sequence = [whole.get_indices() for _ in range(12)]
    assert [rest.get_indices() for _ in range(5)] == sequence[7:]


def test_batches_of_several_go_through_the_same_sequence():
    singles, pairs = loader(5), loader(5, batch_size=2)
    expected = [singles.get_indices()[0] for _ in range(10)]
    assert [case for _ in range(5) for case in pairs.get_indices()] == expected


def test_ranks_share_out_the_sequence():
    alone = loader(6)
    expected = [alone.get_indices()[0] for _ in range(12)]
    ranks = [loader(6, rank=rank, world_size=2) for rank in range(2)]
    assert [ranks[k % 2].get_indices()[0] for k in range(12)] == expected
