"""Methods of tests: several stages in one prefill, with merging and with a choice at the decoder's input."""

from collections.abc import Sequence

import torch

from coremat.methods.base import Method, Reduction, Stage
from coremat.methods.corematching.core_neurons import CoreNeurons
from coremat.methods.joined import Joined
from coremat.methods.views import ImageView, LayerView


class Staged(Method):
    """Tokens with short keys stay; in every other stage those with long ones."""

    name = "staged"

    def __init__(self, *written: Stage) -> None:
        self.written = written

    def stages(self, layers: int) -> Sequence[Stage]:
        return self.written

    def score(self, stage: Stage, layer: LayerView) -> torch.Tensor:
        return (-1) ** stage.after * layer.keys.norm(dim=-1).mean(1)


class Merging(Staged):
    """The first dropped place of every sequence holds the mean of all that is dropped."""

    name = "merging"

    def recycle(self, stage: Stage, hidden: torch.Tensor, scores: torch.Tensor, keep: torch.Tensor) -> Reduction:
        dropped = (~keep).nonzero()[:, 0]
        if not len(dropped):
            return Reduction(keep)
        held, kept = hidden.clone(), keep.clone()
        held[dropped[0]] = hidden[dropped].mean(0)
        kept[dropped[0]] = True
        return Reduction(kept, held)


class FromTheInput(Staged):
    """A stage at the decoder's input too: the first places of an image stay, and hold twice what they held."""

    name = "from the input"

    def before_decoder(self, image: ImageView, keep: int | None) -> Reduction:
        assert keep is not None
        return Reduction(torch.arange(len(image.features)) < keep, 2 * image.features)


class MergingFromTheInput(FromTheInput, Merging):
    name = "merging from the input"


# Positions that start anew, for families whose positions are one number.
RESTARTING: dict[str, Method] = {
    "restart first": Staged(Stage(1, 0.7, "restart"), Stage(3, 3)),
    "restart last": Staged(Stage(1, 0.7), Stage(3, 3, "restart")),
    "restart twice": Staged(Stage(1, 0.7, "restart"), Stage(2, 0.5), Stage(4, 2, "restart", "full")),
    "restart at the input and later": FromTheInput(Stage(0, 0.7, "restart"), Stage(2, 0.5), Stage(4, 2, "restart")),
    "restart behind the input": FromTheInput(Stage(0, 0.7), Stage(2, 0.5, "restart", "full"), Stage(3, 3)),
    "merging, restart": Merging(Stage(1, 0.7, "restart", "full"), Stage(3, 3, "restart")),
}
ANYWHERE: dict[str, Method] = {
    "two": Staged(Stage(1, 0.6), Stage(3, 3)),
    "three": Staged(Stage(1, 0.8), Stage(2, 0.5), Stage(5, 2)),
    "two, full caches": Staged(Stage(1, 0.6, earlier_cache="full"), Stage(3, 3, earlier_cache="full")),
    "full, then cut": Staged(Stage(2, 0.6, earlier_cache="full"), Stage(4, 3)),
    "cut, then full": Staged(Stage(2, 0.6), Stage(4, 3, earlier_cache="full")),
    "cut, full, cut": Staged(Stage(1, 0.8), Stage(2, 0.5, earlier_cache="full"), Stage(4, 2)),
    "knee, then a count": Staged(Stage(1, "knee", knee="signed"), Stage(3, 3)),
    "none, then a count": Staged(Stage(1, "all"), Stage(3, 3)),
    "auto": Staged(Stage(1, 0.7, "auto"), Stage(3, 3, "auto", "full")),
    "the input and two layers": FromTheInput(Stage(0, 0.7, "auto"), Stage(2, 0.5), Stage(4, 2, earlier_cache="full")),
    "merging": Merging(Stage(2, 4)),
    "merging twice": Merging(Stage(1, 0.6, earlier_cache="full"), Stage(3, 3)),
    "merging from the input": MergingFromTheInput(Stage(0, 0.7, "auto"), Stage(2, 0.4, "auto"), Stage(4, 2)),
    "with core neurons": Joined(
        Merging(Stage(1, 0.6), Stage(3, 3, "auto", "full")), CoreNeurons(beta=0.3, prefill_from=2)
    ),
}
STAGED = ANYWHERE | RESTARTING
