"""Attention on the patches against loops, and views that do not fit together."""

import pytest
import reference_rivals
import torch
from hypothesis import given
from image_views import LAYER, shares, views, written_view
from strategies import quick

from coremat.errors import UnsupportedError
from coremat.methods.common.attention import class_attention
from coremat.methods.views import TowerView


@quick
@given(views())
def test_attention_is_the_class_tokens_row_or_the_mean_that_a_patch_receives(view):
    tower = view.tower[LAYER]
    found = tower.attention()
    wanted = reference_rivals.attention_on_patches(tower.queries.tolist(), tower.keys.tolist(), len(view.features))
    torch.testing.assert_close(found, torch.tensor(wanted), rtol=1e-4, atol=1e-6)


def test_the_class_tokens_own_share_is_left_out():
    view = written_view([2.0, 5.0, 8.0])
    torch.testing.assert_close(view.tower[LAYER].attention()[0], shares([2.0, 5.0, 8.0]))


def test_what_patches_receive_adds_up_to_one():
    rows = torch.randn(2, 6, 2, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(class_attention(rows[0], rows[1], 6).sum(1), torch.ones(2))


def test_rows_that_are_not_those_of_the_patches_are_refused():
    rows = torch.zeros(7, 1, 2)
    with pytest.raises(UnsupportedError, match="has 7 queries for 5 image tokens; accepted: 5, or 6 with a class"):
        TowerView(rows, rows, 5)
