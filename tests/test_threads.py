"""How many threads there are; that work spread over them is done once, stops on errors and leaves nothing behind."""

import os
import threading
import time

import numpy as np
import pytest

import transmask as tm
from transmask.threads import ENVIRONMENT_VARIABLE, resolve_threads, run_parallel


@pytest.mark.parametrize("value", [1, 3, np.int64(2), np.uint8(7)])
def test_a_number_is_that_number(value, monkeypatch):
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "5")
    assert resolve_threads(value) == int(value)
    assert type(resolve_threads(value)) is int


@pytest.mark.parametrize(("text", "expected"), [("3", 3), (" 12 ", 12), ("1", 1)])
def test_the_environment_variable_is_the_default(text, expected, monkeypatch):
    monkeypatch.setenv("TRANSMASK_NUM_THREADS", text)
    assert resolve_threads(None) == expected


@pytest.mark.parametrize("text", ["", "  "])
def test_without_it_every_core_of_this_process_is(text, monkeypatch):
    monkeypatch.setenv("TRANSMASK_NUM_THREADS", text)
    assert resolve_threads(None) == len(os.sched_getaffinity(0))
    monkeypatch.delenv("TRANSMASK_NUM_THREADS")
    assert resolve_threads(None) == len(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity")
    assert resolve_threads(None) == (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0, ValueError, "`threads` must be at least 1, got 0. Leave it out to use every core."),
        (-2, ValueError, "`threads` must be at least 1, got -2."),
        (True, TypeError, "`threads` must be an integer or None, got True."),
        (1.5, TypeError, "`threads` must be an integer or None, got 1.5."),
        ("2", TypeError, "`threads` must be an integer or None, got '2'."),
    ],
)
def test_what_is_no_number_of_threads(value, error, text):
    for function in (tm.transposable_mask, tm.solve):
        with pytest.raises(error) as raised:
            function(np.ones((4, 4)), "2:4", threads=value)
        assert isinstance(raised.value, tm.TransmaskError)
        assert text in str(raised.value)
    with pytest.raises(error):
        tm.certify(np.ones((4, 4)), np.eye(4), "1:4", threads=value)


@pytest.mark.parametrize("text", ["0", "-1", "2.5", "two", "1e3", "\uff12", "9" * 5000])
def test_what_the_environment_variable_must_not_be(text, monkeypatch):
    monkeypatch.setenv("TRANSMASK_NUM_THREADS", text)
    with pytest.raises(tm.InvalidArgumentError) as raised:
        tm.transposable_mask(np.ones((4, 4)), "2:4")
    assert str(raised.value) == (
        f"the environment variable TRANSMASK_NUM_THREADS must be a whole number of at least 1, got {text[:40]!r}. "
        "Unset it to use every core."
    )


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("count", [0, 1, 2, 100])
def test_every_item_is_done_once(threads, count):
    done = []
    run_parallel(done.append, iter(range(count)), threads)
    assert sorted(done) == list(range(count))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_at_most_that_many_work_at_once_and_all_of_them_do(threads):
    working, most, lock = set(), [0], threading.Lock()
    gate = threading.Barrier(threads)

    def work(item):
        with lock:
            working.add(threading.get_ident())
            most[0] = max(most[0], len(working))
        if item < threads:
            gate.wait(timeout=30)  # passes only if `threads` items are under way at once
        time.sleep(0.001)
        with lock:
            working.discard(threading.get_ident())

    run_parallel(work, range(20), threads)
    assert most[0] == threads


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_is_raised_and_ends_the_work(threads, error):
    done = []

    def work(item):
        if item == 3:
            raise error("item 3")
        time.sleep(0.001)
        done.append(item)

    with pytest.raises(error, match="item 3"):
        run_parallel(work, range(10_000), threads)
    assert len(done) < 1_000


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_an_error_of_the_items_themselves_is_raised(threads):
    def items():
        yield from range(3)
        raise ValueError("no fourth item")

    with pytest.raises(ValueError, match="no fourth item"):
        run_parallel(lambda item: None, items(), threads)


def test_no_thread_outlives_the_call():
    before = threading.active_count()
    run_parallel(lambda item: time.sleep(0.001), range(50), 4)
    assert threading.active_count() == before
    with pytest.raises(ZeroDivisionError):
        run_parallel(lambda item: 1 // item, range(50), 4)
    assert threading.active_count() == before


def test_no_more_threads_than_items(monkeypatch):
    started, start = [], threading.Thread.start

    def counted(thread):
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", counted)
    run_parallel(lambda item: time.sleep(0.001), range(3), 1_000)
    assert 1 <= len(started) <= 3


def test_calls_nest_and_may_be_made_by_several_callers_at_once():
    total = []

    def outer(item):
        run_parallel(lambda inner: total.append(item * 10 + inner), range(10), 2)

    callers = [threading.Thread(target=run_parallel, args=(outer, range(5), 2)) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert sorted(total) == sorted([*range(50)] * 3)


def test_several_callers_get_their_own_masks():
    weights = np.random.default_rng(0).standard_normal((3, 64, 64))
    expected = [tm.transposable_mask(matrix, "2:4", threads=1) for matrix in weights]
    found = [None] * 3

    def call(index):
        found[index] = tm.transposable_mask(weights[index], "2:4", threads=2)

    callers = [threading.Thread(target=call, args=(index,)) for index in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert np.array_equal(found, expected)


def test_when_no_further_thread_can_be_started_the_started_ones_stop(monkeypatch):
    start, started, done = threading.Thread.start, [], []

    def fail_the_second(self):
        if started:
            raise RuntimeError("can't start new thread")
        started.append(self)
        start(self)

    def work(item):
        time.sleep(0.01)
        done.append(item)

    monkeypatch.setattr(threading.Thread, "start", fail_the_second)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        run_parallel(work, range(1000), 3)
    assert not started[0].is_alive()
    assert len(done) < 1000


def test_a_huge_number_of_threads_is_cut():
    assert resolve_threads(10**30) == 1024


@pytest.mark.parametrize("times", [1, 3])
def test_an_interrupt_while_the_others_are_waited_for_lets_no_thread_outlive_the_call(monkeypatch, times):
    join, left = threading.Thread.join, [times]

    def interrupted(thread):
        if left[0]:
            left[0] -= 1
            raise KeyboardInterrupt
        join(thread)

    monkeypatch.setattr(threading.Thread, "join", interrupted)
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        run_parallel(lambda item: time.sleep(0.05), range(3), 3)
    assert threading.active_count() == before
