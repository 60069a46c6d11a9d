"""Frames that several threads answer leave in order, and no thread waits for another's turn."""

from __future__ import annotations

import random
import threading

import pytest

from edge_sdk.pipeline.order import InOrder


def test_items_of_many_threads_come_out_in_order_each_once():
    out: list[int] = []
    order = InOrder(out.append)
    numbers = list(range(2000))
    random.Random(3).shuffle(numbers)
    threads = [threading.Thread(target=lambda part=numbers[i::8]: [order.put(n, n) for n in part]) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert out == list(range(2000))
    assert order.delivered == 2000


def test_who_brings_an_item_while_another_is_handed_on_does_not_wait():
    inside, go = threading.Event(), threading.Event()
    out: list[int] = []

    def slow(item: int) -> None:
        if item == 0:
            inside.set()
            assert go.wait(60)
        out.append(item)

    order = InOrder(slow)
    first = threading.Thread(target=order.put, args=(0, 0))
    first.start()
    assert inside.wait(60)
    order.put(1, 1)
    assert out == []
    go.set()
    first.join()
    assert out == [0, 1]


def test_after_an_item_that_failed_the_next_ones_go_on():
    out: list[int] = []

    def picky(item: int) -> None:
        if item == 0:
            raise ValueError("no")
        out.append(item)

    order = InOrder(picky)
    with pytest.raises(ValueError, match="no"):
        order.put(0, 0)
    order.put(2, 2)
    order.put(1, 1)
    assert out == [1, 2]
