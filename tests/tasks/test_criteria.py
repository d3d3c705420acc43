"""The program behind the runs on criteria: equal budgets, its counts by length against loops, and its commands."""

import pandas
import pytest
from fake_answers import FAKE

from coremat.methods.reads import Reads
from coremat.methods.registry import parse
from coremat.models.architecture import shipped_config
from coremat.models.known import SMOL_TEXT
from coremat.models.shape import DecoderShape
from coremat.tasks.reproduce import criteria, reference
from coremat.tasks.reproduce.criteria import SHARES, agreement_by_length, neuron_methods, run_of


def samples() -> pandas.DataFrame:
    rows = [
        {"method": "a", "prompt_tokens": 60, "kl": [9.0, 1.0, 2.0], "agreement": [0.0, 1.0, 0.0]},
        {"method": "a", "prompt_tokens": 100, "kl": [9.0, 3.0], "agreement": [0.0, 1.0]},
        {"method": "a", "prompt_tokens": 101, "kl": [9.0, 5.0], "agreement": [0.0, 0.0]},
        {"method": "a", "prompt_tokens": 400, "kl": [9.0], "agreement": [0.0]},
        {"method": "b", "prompt_tokens": 60, "kl": [9.0, 7.0], "agreement": [0.0, 1.0]},
    ]
    return pandas.DataFrame(rows)


def test_tokens_after_the_first_count_by_the_length_of_their_prompt() -> None:
    found = agreement_by_length(samples()).set_index(["method", "prompt"])
    assert found.loc[("a", "up to 100"), ["questions", "agreement", "kl"]].tolist() == pytest.approx([2, 200 / 3, 2])
    assert found.loc[("a", "up to 250"), ["questions", "agreement", "kl"]].tolist() == [1, 0, 5]
    assert found.loc[("a", "all"), ["questions", "agreement", "kl"]].tolist() == pytest.approx([3, 50, 2.75])
    assert found.loc[("b", "all"), "kl"] == 7
    assert ("a", "up to 1000") not in found.index, "an answer of one token has none after the first"


def test_methods_are_compared_at_equal_bytes() -> None:
    shape = DecoderShape.of(shipped_config(SMOL_TEXT))
    whole = Reads().ffn(shape)
    for spec in neuron_methods()[1:]:
        if spec.startswith(("predictor", "teal")):  # reads its predictor beside the neurons; the attention's, too
            continue
        method = parse(spec)
        read = sum(method.of_layer(n, 30).reads(n, shape).ffn(shape) for n in range(30)) / (30 * whole)
        assert min(abs(read - share) for share in SHARES) < 0.005, spec


def test_a_set_for_the_answer_is_told_from_a_choice_for_each_token() -> None:
    kinds = {spec: reference.when_chosen(spec.format(0.4)) for spec in (*criteria.PER_ANSWER, *criteria.PER_TOKEN)}
    assert {kinds[spec] for spec in criteria.PER_ANSWER} == {"once, for the answer"}
    assert {kinds[spec] for spec in criteria.PER_TOKEN} == {"token by token"}
    assert reference.when_chosen("two-level") == reference.when_chosen("cats") == "token by token"


def test_the_command_makes_each_calibration_once() -> None:
    *calibrations, last = run_of(criteria.TEXT, FAKE).command.splitlines()
    assert len(calibrations) == len(set(calibrations))
    made = {line.rpartition(" ")[2] for line in calibrations}
    used = {part.rpartition("calibration=")[2] for part in last.split()[5].split(",") if "calibration=" in part}
    assert made == used
    assert all(f"--prompts {criteria.VALIDATION.name}" in line for line in calibrations)
    assert f"--prompts {criteria.TEST.name}" in last
