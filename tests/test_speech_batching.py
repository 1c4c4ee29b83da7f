"""Minibatches of utterances: a pure function of seed and epoch, within their budget, the same however loaded."""

import random
import threading
import time
from types import SimpleNamespace

import pytest
import torch

from seqssgd.data.prefetching import prefetch
from seqssgd.errors import UserError
from seqssgd.optim import SymmetricNoise
from seqssgd.speech.batching import BucketBatches, SpeechBatch, by_length, collate, padded, select

_random = random.Random(0)
LENGTHS = [round(30 + 100 * _random.gammavariate(2.0, 1.0)) for _ in range(500)]
BUDGET = 10 * max(LENGTHS)


def toy(lengths=(50, 20, 70, 5)) -> SimpleNamespace:
    """What the functions here need of a set."""
    waves = [torch.arange(n) + 1.0 for n in lengths]
    return SimpleNamespace(
        name="toy",
        rate=10,
        samples=list(lengths),
        ids=[f"u{i}" for i in range(len(lengths))],
        waveform=waves.__getitem__,
    )


def epoch_of_all(world_size: int, epoch: int, budget: int = BUDGET, **settings) -> list[list[list[int]]]:
    """For every step, the minibatches of all processes."""
    plans = [BucketBatches(LENGTHS, budget, rank=r, world_size=world_size, **settings) for r in range(world_size)]
    assert len({len(plan) for plan in plans}) == 1
    return list(map(list, zip(*(plan.epoch(epoch) for plan in plans), strict=True)))


# ---- which together --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("settings", [{}, {"smallest": 2, "buckets": 4}, {"largest": 7, "smallest": 3}], ids=str)
def test_every_utterance_is_in_one_minibatch_of_one_process_within_the_budget(world_size, settings):
    steps = epoch_of_all(world_size, 3, **settings)
    batches = [batch for step in steps for batch in step]
    assert sorted(i for batch in batches for i in batch) == list(range(500))
    for batch in batches:
        assert len(batch) * max(LENGTHS[i] for i in batch) <= BUDGET
        assert settings.get("smallest", 1) <= len(batch) <= settings.get("largest", 500)
        assert world_size == 1 or settings.get("smallest") != 2 or len(batch) % 2 == 0  # halves of one share everywhere


def test_any_plan_is_whole_and_equal_or_refused_for_a_reason_that_holds():
    draw, made = random.Random(0), 0
    for _ in range(400):
        lengths = [draw.randint(1, draw.choice([3, 50, 1000])) for _ in range(draw.randint(1, 120))]
        smallest, world_size, fit = draw.choice([1, 1, 2, 3]), draw.randint(1, 4), draw.randint(1, 12)
        largest = draw.choice([None, 2 * smallest - 1, 20])
        settings = {"smallest": smallest, "largest": largest, "buckets": draw.randint(1, 40), "world_size": world_size}
        try:
            plans = [BucketBatches(lengths, fit * max(lengths), rank=r, **settings) for r in range(world_size)]
        except UserError as error:
            tight = len(lengths) < 4 * smallest * world_size or min(fit, largest or fit) <= 2 * smallest
            reasons = {"too small": fit < 2 * smallest - 1, "do not make a ": len(lengths) < smallest}
            assert any(text in str(error) and holds for text, holds in {**reasons, "equally many": tight}.items()), (
                error
            )
            continue
        made += 1
        epochs = [plan.epoch(1) for plan in plans]
        batches = [batch for epoch in epochs for batch in epoch]
        assert {len(epoch) for epoch in epochs} == {len(plans[0])}
        even = smallest == 2 and world_size > 1
        odd_one = even and len(lengths) % 2
        assert len({i for batch in batches for i in batch}) == sum(map(len, batches)) == len(lengths) - odd_one
        assert not even or all(len(batch) % 2 == 0 for batch in batches)
        assert all(smallest <= len(batch) <= (largest or 120) for batch in batches)
        assert all(len(batch) * max(lengths[i] for i in batch) <= fit * max(lengths) for batch in batches)
    assert made > 250


def test_of_an_odd_number_to_halve_in_several_processes_each_of_the_longest_has_its_turn_to_be_left_out():
    some, left_out = set(range(99)), set()
    plans = [BucketBatches(LENGTHS, BUDGET // 5, some, smallest=2, buckets=3, rank=r, world_size=2) for r in (0, 1)]
    for epoch in range(200):
        (one,) = some - {i for plan in plans for batch in plan.epoch(epoch) for i in batch}
        left_out.add(one)
    assert left_out == set(plans[0].buckets[-1].indices) and len(plans[0].buckets) == 3


def test_minibatches_are_a_pure_function_of_seed_and_epoch():
    plan = BucketBatches(LENGTHS, BUDGET, seed=4)
    first = plan.epoch(7)
    torch.manual_seed(99)
    plan.epoch(8)
    assert BucketBatches(LENGTHS, BUDGET, seed=4).epoch(7) == plan.epoch(7) == first
    others = [plan.epoch(8), BucketBatches(LENGTHS, BUDGET, seed=5).epoch(7)]
    for other in others:
        assert {frozenset(batch) for batch in other}.isdisjoint({frozenset(batch) for batch in first})
        assert len(other) == len(first) == len(plan)


def test_an_epoch_can_be_entered_at_any_position_and_draws_nothing_from_the_global_generator():
    plan = BucketBatches(LENGTHS, BUDGET, rank=1, world_size=2)
    state = torch.get_rng_state()
    for start in (0, 1, len(plan) - 1, len(plan)):
        assert plan.epoch(2, start) == plan.epoch(2)[start:]
    assert torch.equal(state, torch.get_rng_state())


def test_lengths_go_together_in_a_minibatch_and_in_a_step_and_come_in_any_order():
    plan = BucketBatches(LENGTHS, BUDGET // 4)
    full = sum(len(batch) * max(LENGTHS[i] for i in batch) for batch in plan.epoch(0))
    assert plan.padding() == pytest.approx(1 - sum(LENGTHS) / full) and plan.padding() < 0.15
    for step in epoch_of_all(4, 0, BUDGET // 4):  # all are of one bucket or two neighbours
        lengths = [LENGTHS[i] for batch in step for i in batch]
        assert sum(min(lengths) <= length <= max(lengths) for length in LENGTHS) < 0.45 * len(LENGTHS)
    means = torch.tensor([sum(LENGTHS[i] for i in b) / len(b) for e in range(20) for b in plan.epoch(e)])
    positions = torch.arange(len(plan)).repeat(20).double()
    assert abs(torch.corrcoef(torch.stack([means.double(), positions]))[0, 1]) < 0.2  # not the short ones first


def test_every_bucket_is_mixed_anew():
    plan = BucketBatches(LENGTHS, BUDGET, buckets=3)
    together = [next(batch for batch in plan.epoch(epoch) if 0 in batch) for epoch in range(40)]
    assert len(set().union(*together)) > 4 * len(together[0])
    assert {together[0].index(0)} != {batch.index(0) for batch in together}  # nor is its place in the minibatch fixed


def test_buckets_are_as_many_as_asked_for_where_that_leaves_minibatches_to_shuffle():
    assert len(BucketBatches(LENGTHS, BUDGET // 5, buckets=6).buckets) == 6
    few = BucketBatches(LENGTHS, 20 * BUDGET, buckets=10).buckets
    assert len(few) == 1 or min(bucket.count for bucket in few) >= 2


def test_only_the_utterances_asked_for_are_used():
    chosen = list(range(0, 500, 7))
    batches = BucketBatches(LENGTHS, BUDGET, chosen).epoch(0)
    assert sorted(i for batch in batches for i in batch) == chosen


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"budget": max(LENGTHS) - 1}, "is too small for 1 utterances of .* the longest"),
        ({"budget": 3 * max(LENGTHS) - 1, "smallest": 2, "buckets": 500}, "is too small for 3 utterances"),
        ({"indices": [1, 2, 3], "world_size": 4}, "3 utterances do not make equally many .* for each of 4 processes"),
        (
            {"indices": [1, 2, 3], "smallest": 2, "world_size": 2},
            "3 utterances do not make equally many minibatches of 2 or more",
        ),
        ({"indices": []}, "0 utterances do not make a minibatch of 1"),
        ({"buckets": 0}, "at least one bucket"),
        ({"smallest": 3, "largest": 4}, "minibatches of 3 to 4 utterances"),
    ],
    ids=str,
)
def test_impossible_plans_say_why(settings, reason):
    settings = {"budget": BUDGET} | settings
    with pytest.raises(UserError, match=reason):
        BucketBatches(LENGTHS, **settings)


def test_a_handful_of_utterances_is_a_plan_too():
    assert sorted(BucketBatches([7, 5], 100, smallest=2).epoch(0)[0]) == [0, 1]
    plans = [BucketBatches([7, 5, 6], 100, rank=rank, world_size=3) for rank in range(3)]
    assert sorted(plan.epoch(0)[0] for plan in plans) == [[0], [1], [2]]


def test_evaluation_takes_all_of_them_the_longest_first():
    batches = by_length(LENGTHS, 3 * max(LENGTHS) - 1)
    flat = [i for batch in batches for i in batch]
    assert sorted(flat) == list(range(500)) and len(batches[0]) == 2
    assert [LENGTHS[i] for i in flat] == sorted(LENGTHS, reverse=True)
    for batch, after in zip(batches, [*batches[1:], None], strict=True):
        assert len(batch) * LENGTHS[batch[0]] <= 3 * max(LENGTHS) - 1
        assert after is None or (len(batch) + 1) * LENGTHS[batch[0]] > 3 * max(LENGTHS) - 1
    assert by_length([5, 9, 1], 4) == [[1], [0], [2]] and by_length([], 4) == []


# ---- which utterances ------------------------------------------------------------------------------------------------


def test_utterances_whose_labels_do_not_fit_are_counted_and_left_out_by_name():
    data = toy((50, 20, 70, 5, 40, 40, 40, 300))
    labels = [[1, 2, 3], [1, 2], [5] * 4, [1], [4, 4, 4], [1, 2, 3, 4], [], [1]]
    targets = [torch.tensor(label, dtype=torch.int64) for label in labels]
    selection = select(data, targets, lambda samples: samples // 10, max_seconds=7.0)
    assert selection.indices == [0, 1, 2, 5]  # 2 and 5 just fit: 4 + 3 = 70 // 10 and 4 = 40 // 10
    assert selection.left_out == {
        "too short for their labels": ["u3", "u4"],
        "without a word": ["u6"],
        "longer than 7 s": ["u7"],
    }
    assert str(selection) == (
        "training on 4 of 8 utterances; left out: 2 too short for their labels (u3, u4); 1 without a word (u6); "
        "1 longer than 7 s (u7)"
    )
    assert str(select(data, targets[:1] * 8, lambda samples: samples)) == "training on all 8 utterances"
    with pytest.raises(UserError, match=r"toy: .*8 too short for their labels \(u0, u1, u2, …\); check"):
        select(data, targets[:1] * 8, lambda samples: 2)


# ---- loading ---------------------------------------------------------------------------------------------------------


def test_a_minibatch_holds_waves_and_labels_with_zeros_after_them():
    targets = [torch.tensor(label, dtype=torch.int64) for label in ([1], [2, 3], [], [4])]
    batch = collate(toy(), targets, [1, 0, 2])
    assert batch.waves.shape == (3, 70) and batch.wave_lengths.tolist() == [20, 50, 70]
    for wave, length in zip(batch.waves, batch.wave_lengths, strict=True):
        assert torch.equal(wave[:length], torch.arange(length) + 1.0) and not wave[length:].any()
    assert batch.targets.tolist() == [[2, 3], [1, 0], [0, 0]] and batch.target_lengths.tolist() == [2, 1, 0]
    assert batch.targets.dtype == batch.target_lengths.dtype == batch.wave_lengths.dtype == torch.int64
    assert isinstance(batch.to("meta"), SpeechBatch) and batch.to("meta").waves.is_meta
    assert padded([torch.tensor([], dtype=torch.int64)] * 2)[0].shape == (2, 0)


def test_a_minibatch_can_be_halved_for_two_passes():
    batch = collate(toy(), [torch.tensor([i]) for i in range(4)], [3, 0, 1])
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = SymmetricNoise(torch.optim.SGD([{"params": [weight], "noise": 0.1}], lr=0.1), signs="halves")
    halves = []
    for part in optimizer.passes():
        halves.append(part.take(batch))
        (weight * halves[-1].waves).sum().backward()
    assert [len(half.waves) for half in halves] == [1, 2]
    for name in batch._fields:
        assert torch.equal(torch.cat([getattr(half, name) for half in halves]), getattr(batch, name))


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_loading_ahead_keeps_the_order_and_stays_within_its_depth(depth):
    running, most, consumed = threading.Lock(), [0], [0]
    started = [0]

    def load(item):
        assert running.acquire(blocking=False)  # one at a time
        started[0] += 1
        most[0] = max(most[0], started[0] - consumed[0])
        time.sleep(0.001 * (item % 3))
        running.release()
        return item * item

    results = []
    for result in prefetch(range(20), load, depth):
        results.append(result)
        time.sleep(0.002)
        consumed[0] += 1
    assert results == [i * i for i in range(20)]
    assert most[0] <= depth + 1
    assert list(prefetch([], load, depth)) == []


def test_what_goes_wrong_in_loading_is_raised_in_its_turn():
    def load(item):
        if item == 3:
            raise UserError("u3 cannot be decoded")
        return item

    results = []
    with pytest.raises(UserError, match="u3 cannot be decoded"):
        for result in prefetch(range(10), load):
            results.append(result)
    assert results == [0, 1, 2]


def test_loading_stops_when_nobody_listens_any_more():
    loaded, begun, go_on, before = [], threading.Event(), threading.Event(), threading.active_count()

    def load(item):
        loaded.append(item)
        if item == 1:
            begun.set()
            assert go_on.wait(30)
        return item

    batches = prefetch(range(100), load)
    assert next(batches) == 0 and begun.wait(30)
    timer = threading.Timer(0.2, go_on.set)
    timer.start()
    batches.close()  # waits for what is being loaded, and takes back what is waiting
    timer.join()
    assert loaded == [0, 1] and threading.active_count() == before


def test_random_numbers_are_the_same_with_and_without_loading_ahead():
    def run(depth, start=0, state=None):
        if state is not None:
            torch.set_rng_state(state)
        plan = BucketBatches(LENGTHS, BUDGET)
        for batch in prefetch(plan.epoch(0, start), lambda indices: torch.tensor(indices), depth):
            yield batch, torch.rand(3), torch.get_rng_state()

    torch.manual_seed(0)
    whole = list(run(2))
    torch.manual_seed(0)
    plain = list(run(0))
    resumed = list(run(2, 4, whole[3][2]))
    for rows in (plain, whole[:4] + resumed):
        assert all(torch.equal(a, b) for x, y in zip(whole, rows, strict=True) for a, b in zip(x, y, strict=True))
