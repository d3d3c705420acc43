"""Attention on the patches against loops, and views that do not fit together."""

import pytest
import reference_rivals
import torch
from hypothesis import given
from strategies import quick
from views import shares, views, written_view

from coremat.errors import UnsupportedError
from coremat.methods.reduction import VisionView, attention_on_patches


@quick
@given(views())
def test_attention_is_the_class_tokens_row_or_the_mean_that_a_patch_receives(view):
    found = attention_on_patches(view.queries, view.keys, len(view.features))
    wanted = reference_rivals.attention_on_patches(view.queries.tolist(), view.keys.tolist(), len(view.features))
    torch.testing.assert_close(found, torch.tensor(wanted), rtol=1e-4, atol=1e-6)


def test_the_class_tokens_own_share_is_left_out():
    view = written_view([2.0, 5.0, 8.0])
    torch.testing.assert_close(attention_on_patches(view.queries, view.keys, 3)[0], shares([2.0, 5.0, 8.0]))


def test_what_patches_receive_adds_up_to_one():
    rows = torch.randn(2, 6, 2, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(attention_on_patches(rows[0], rows[1], 6).sum(1), torch.ones(2))


def test_a_class_token_in_one_place_only_is_refused():
    rows = torch.zeros(5, 1, 2)
    with pytest.raises(UnsupportedError, match="has 5 queries for 5 image tokens and 1 class tokens; accepted: 6"):
        VisionView(torch.zeros(5, 3), torch.zeros(3), rows, rows)
