"""FasterVLM against a loop: the tokens with the most attention of the class token, mean over heads."""

import pytest
import torch

from coremat.methods.fastervlm import FasterVLM
from coremat.methods.views import ImageView, TowerView


def reference(queries, keys, count):
    heads, size = queries.shape[1:]
    patches = len(keys) - 1
    scores = [0.0] * patches
    for head in range(heads):
        logits = [float(queries[0, head] @ key[head]) / size**0.5 for key in keys]
        weights = torch.tensor(logits).softmax(0)[1:].tolist()
        scores = [total + weight / heads for total, weight in zip(scores, weights, strict=True)]
    order = sorted(range(patches), key=lambda place: (-scores[place], place))
    return [place in order[:count] for place in range(patches)]


@pytest.mark.parametrize("count", [1, 5, 16])
def test_the_tokens_that_the_class_token_attends_to(count):
    torch.manual_seed(count)
    queries, keys = torch.randn(17, 4, 8), torch.randn(17, 4, 8)
    view = ImageView(torch.randn(16, 32), ((4, 4),), torch.randn(32), {-2: TowerView(queries, keys, 16)})
    assert FasterVLM().before_projector(view, count).keep.tolist() == reference(queries, keys, count)
