"""The goals of `make bench`, read off a made-up record."""

import pytest
from made_bench import bench

from coremat.methods.registry import modules
from coremat.tasks.reproduce.benchmark import ALL, RUNS, goals_table, method_goals


def test_every_method_has_a_goal_for_its_decode_step_and_for_choosing_tokens():
    goals = {goal.what: goal for goal in method_goals(bench(decoders=("in-place cache",)))}
    choosing = goals["choosing / dense decoder prefill, corematching"]
    assert (choosing.found, choosing.reach, choosing.reached) == (pytest.approx(8 / 400), 0.05, True)
    step = goals["decode step, core-neurons, speed-up"]
    assert (step.limit, step.reach, step.found) == (1.62, pytest.approx(0.95 * 1.62), pytest.approx(1 / 0.65))
    assert not step.reached
    assert not any("dense, speed-up" in what for what in goals)
    assert "choosing / dense decoder prefill, core-neurons" not in goals  # it chooses no image tokens
    assert [row[-1] for row in goals_table([choosing, step]).rows] == ["yes", "NO"]


def test_the_run_of_all_methods_is_typed_as_all():
    run = next(run for run in RUNS if run.name == "speed-methods")
    assert run.methods == ALL == tuple(modules())
    assert "--methods all --device cpu --layers 4" in run.command
