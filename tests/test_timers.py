"""Marks are in order and from the first; stretches add up."""

import time

import pytest
import torch

from coremat.timers import Marks, Stopwatch

CPU = torch.device("cpu")


def test_marks_tell_the_time_since_the_first():
    marks = Marks(CPU)
    for name in ("start", "token", "token"):
        marks.mark(name)
        time.sleep(0.01)
    names, moments = zip(*marks.seconds(), strict=True)
    assert names == ("start", "token", "token")
    assert moments[0] == 0
    assert 0.01 <= moments[1] <= moments[2] - 0.01


def test_no_marks_no_times():
    assert Marks(CPU).seconds() == []


def test_a_stopwatch_adds_up_what_is_inside_only():
    watch = Stopwatch(CPU)
    for _ in range(2):
        with watch.running():
            time.sleep(0.01)
        time.sleep(0.05)
    assert 0.02 <= watch.seconds < 0.05
    assert watch.seconds == pytest.approx(watch.seconds)


def test_a_stopwatch_takes_over_what_an_earlier_one_counted():
    earlier, later = Stopwatch(CPU), Stopwatch(CPU)
    with earlier.running():
        time.sleep(0.01)
    time.sleep(0.02)
    with later.running():
        time.sleep(0.005)
    later.take_over(earlier)
    assert 0.015 <= later.seconds < 0.03
    assert earlier.seconds == 0


def test_it_goes_on_after_it_was_read():
    watch = Stopwatch(CPU)
    with watch.running():
        time.sleep(0.005)
    first = watch.seconds
    with watch.running():
        time.sleep(0.005)
    assert watch.seconds >= first + 0.005
