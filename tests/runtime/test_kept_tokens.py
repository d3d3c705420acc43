"""What is left of a batch of prompts, stage by stage, against plain lists of columns."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import quick

from coremat.runtime.kept_tokens import KeptTokens
from coremat.tensors import take

Rows = list[list[int]]  # of each row the prompt's columns that are left, ascending


@st.composite
def stages(draw: st.DrawFn) -> tuple[int, list[Rows]]:
    """The width of the prompts, and what is left of each row before the first stage and after each; never nothing."""
    size, rows = draw(st.integers(1, 8)), draw(st.integers(1, 3))
    left = [[list(range(draw(st.integers(0, size - 1)), size)) for _ in range(rows)]]  # padded on the left
    for _ in range(draw(st.integers(1, 4))):
        left.append([draw(st.lists(st.sampled_from(own), min_size=1, unique=True).map(sorted)) for own in left[-1]])
    return size, left


def composed(size: int, left: list[Rows]) -> tuple[list[KeptTokens], list[torch.Tensor]]:
    """Each stage told to `then` by the columns that are there, and the steps that it gave back."""
    kept = [KeptTokens.whole(mask(left[0], size))]
    steps = []
    for own in left[1:]:
        before = kept[-1]
        there = torch.arange(size).expand(len(own), -1) if before.index is None else before.index
        keep = before.live & torch.tensor(
            [[column in columns for column in row.tolist()] for row, columns in zip(there, own, strict=True)]
        )
        narrowing = before.then(keep)
        kept.append(narrowing.kept)
        steps.append(narrowing.step)
    return kept, steps


def mask(rows: Rows, size: int) -> torch.Tensor:
    return torch.tensor([[column in own for column in range(size)] for own in rows])


def real(values: torch.Tensor, kept: KeptTokens) -> list[list[int]]:
    """[B, K] without what is padding."""
    return [row[live].tolist() for row, live in zip(values, kept.live, strict=True)]


@quick
@given(stages())
def test_every_stage_holds_the_columns_that_are_left_in_their_order(drawn):
    size, left = drawn
    columns = torch.arange(size).expand(len(left[0]), -1)
    for kept, own in zip(composed(size, left)[0], left, strict=True):
        assert real(kept.of_prompt(columns), kept) == own
        assert torch.equal(kept.in_prompt(size), mask(own, size))
        assert kept.counts[:, 0].tolist() == [len(row) for row in own]
        assert kept.all_live == all(len(row) == kept.width for row in own)


@quick
@given(stages())
def test_no_stage_is_wider_than_its_fullest_row_and_tokens_stand_at_its_end(drawn):
    size, left = drawn
    for kept, own in list(zip(composed(size, left)[0], left, strict=True))[1:]:
        assert kept.width == max(map(len, own))
        assert kept.live.tolist() == [[place >= kept.width - len(row) for place in range(kept.width)] for row in own]


@quick
@given(stages())
def test_a_step_says_where_the_tokens_were_just_before(drawn):
    size, left = drawn
    kept, steps = composed(size, left)
    columns = torch.arange(size).expand(len(left[0]), -1)
    for before, step, after in zip(kept, steps, kept[1:], strict=False):
        assert torch.equal(take(before.of_prompt(columns), step, 1), after.of_prompt(columns))


@quick
@given(stages(), st.data())
def test_a_later_stage_is_found_among_the_columns_of_any_earlier_one(drawn, data):
    size, left = drawn
    kept, _ = composed(size, left)
    later = data.draw(st.integers(0, len(kept) - 1))
    earlier = data.draw(st.integers(0, later))
    step = kept[earlier].step_to(kept[later], size)
    columns = torch.arange(size).expand(len(left[0]), -1)
    if earlier == later:
        assert step is None
    else:
        assert real(take(kept[earlier].of_prompt(columns), step, 1), kept[later]) == left[later]


def test_values_with_more_dimensions_and_rows_that_share_them():
    kept = KeptTokens.whole(torch.ones(2, 3, dtype=torch.bool))
    kept = kept.then(torch.tensor([[True, False, True], [False, True, True]])).kept
    tables = torch.arange(6.0).view(1, 3, 2)  # rotary tables may be one for all rows
    assert kept.of_prompt(tables).tolist() == [[[0, 1], [4, 5]], [[2, 3], [4, 5]]]
