"""What a pruning method is: a frozen dataclass whose fields are its options and whose overridden methods are its slots.

    @dataclass(frozen=True, kw_only=True)
    class ShortKeys(Method):
        tokens: Budget = 0.25
        prune_layer: Layer = 2

        def stages(self, layers):
            return (Stage(self.prune_layer, self.tokens),)

        def score(self, stage, layer):
            return -layer.keys.norm(dim=-1).mean(1)

A method sees views of one batch (`coremat.methods.views`) and returns scores, indices or merged vectors. Modules,
hooks, masks, caches, padding, beams, devices and positions are the session's (`coremat.runtime.session`). A slot that
is not overridden is not hooked, not computed and not timed.

Three option names have a meaning for all methods, for the command line fills them in: `tokens` (the budget of image
tokens), `prune_layer` (decoder layers that see every token) and `seed` (of what is drawn at random).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, ClassVar

import torch
from torch import nn

from coremat.errors import ConfigError
from coremat.ffn import SparseFFN
from coremat.methods.budget import share_out
from coremat.methods.options import Budget, EarlierCache, Knee, Positions, at_least, check_options, options_of
from coremat.methods.reads import Reads
from coremat.methods.registry import source_of
from coremat.methods.views import ImageView, LayerView
from coremat.models.shape import DecoderShape

Forward = Callable[[torch.Tensor], torch.Tensor]
ANY_DEPTH = 1024  # decoder layers: for what a method is, whatever model it is applied to


@dataclass(frozen=True)
class Stage:
    """Image tokens are pruned once.

    after: how many decoder layers have seen every token that is present; 0: at the decoder's input. keep: a count or a
    share of the prompt's image tokens, "knee" (the method's own rule; for scores, those above the knee of the scores)
    or "all". It is spent per sequence. positions: of the kept tokens from here on: "original", "restart" (counted anew
    from 0), or "auto": restart where a position is one number. earlier_cache: "cut" drops the keys and values of pruned
    tokens in the layers before too, "full" leaves them there. knee: "unsigned" (the paper: farthest from the chord on
    either side) or "signed" (below the chord only).
    """

    after: Annotated[int, at_least(0)]
    keep: Budget
    positions: Positions = "original"
    earlier_cache: EarlierCache = "cut"
    knee: Knee = "unsigned"

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True)
class Reduction:
    """Which places of an image stay, bool [N], and the features [N, C] that they hold from then on (dropped places hold
    anything); features None: those that were there."""

    keep: torch.Tensor
    features: torch.Tensor | None = None


class Method:
    """Base of all methods. A slot that raises NotImplementedError here is called only where a method overrides it.

    name: what is typed; summary, paper, departures: what `coremat list methods` prints; needs: what a model has to have
    and not every family has, of `Adapter.provides` ("class token", "resizable tower"); timing_only: its answers mean
    nothing; accuracy_only: its decode steps compute more than `reads` says, so that their times mean nothing;
    input_major: the weights of the Linears that `linear` takes over lie input by input meanwhile (`weight.T` is
    contiguous).
    """

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    departures: ClassVar[str] = ""
    needs: ClassVar[frozenset[str]] = frozenset()
    timing_only: ClassVar[bool] = False
    accuracy_only: ClassVar[bool] = False
    input_major: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_options(self)

    def setup(self, model: Any) -> Any:
        """Once per `apply`, before anything is hooked: what the method needs besides the model (a text tower,
        thresholds). What it returns is the `state` of every view, of `decode_ffn` and of `linear`. UnsupportedError for
        a model that it cannot prune."""

    def calibrate(self, layers: Iterable[Any]) -> Mapping[str, torch.Tensor]:
        """Fit the method to a model: `coremat.methods.calibrated.Calibrated` has this slot, its file and its option.
        layers: a `LayerSample` of each decoder layer, in order."""
        raise NotImplementedError

    # --- image tokens -----------------------------------------------------------------------------------------------

    def stages(self, layers: int) -> Sequence[Stage]:
        """When image tokens are pruned in a decoder of that many layers, in order of their layers; (): never."""
        return ()

    def tower_layers(self) -> Sequence[int]:
        """Layers of the vision tower whose queries and keys `before_projector` reads, as indices from either end."""
        return ()

    def before_projector(self, image: ImageView, keep: int | None) -> Reduction:
        """For a stage at 0: choose and merge the features of one image, or of one tile of it. keep: its share of the
        sequence's budget; None where the budget is the method's own rule."""
        raise NotImplementedError

    def share_tiles(self, tiles: Sequence[ImageView], keep: int) -> Sequence[int]:
        """How many places each of an image's tiles keeps, `keep` in all: before the projector, where the tower sees an
        image as several tiles. In proportion to their places if this is not overridden; 0: the whole tile goes."""
        return share_out(keep, [len(tile.features) for tile in tiles])

    def before_decoder(self, image: ImageView, keep: int | None) -> Reduction:
        """The same on the embeddings of one image, behind the projector."""
        raise NotImplementedError

    def smaller_grids(self, grid: tuple[int, int]) -> Sequence[tuple[int, int]]:
        """For a stage at 0, in place of the two slots above: the sizes (rows, columns of tokens) that a picture with
        `grid` may have, the largest first. The largest that the budget allows is what the vision tower sees."""
        raise NotImplementedError

    def score(self, stage: Stage, layer: LayerView) -> torch.Tensor:
        """[B, T]: a score for each token present; of the image tokens those with larger scores stay."""
        raise NotImplementedError

    def counted_by(self, stage: Stage, layer: LayerView) -> torch.Tensor | None:
        """[B, T]: other scores whose knee says how many tokens stay; None: that of the scores themselves."""
        return None

    def recycle(self, stage: Stage, hidden: torch.Tensor, scores: torch.Tensor, keep: torch.Tensor) -> Reduction:
        """Merge what one sequence drops. hidden [n, H], scores [n], keep bool [n]: of its n image tokens present.
        Returns which places stay now, and what they hold: merged vectors take places that were dropped."""
        raise NotImplementedError

    # --- neurons ------------------------------------------------------------------------------------------------------

    def neurons(self, layer: LayerView) -> torch.Tensor:
        """int64 [B, m] ascending, or [1, m] for the whole batch: the neurons of this layer for the whole answer."""
        raise NotImplementedError

    def neuron_count(self, size: int) -> int:
        """m of `neurons`, or the neurons that `decode_ffn` uses for a token, of an FFN of `size`."""
        return size

    def of_layer(self, number: int, layers: int) -> "Method":
        """The method as layer `number` of that many has it: it is this one that is asked for a layer's `neurons`,
        `neuron_count`, `decode_ffn`, `linear` and `reads`. `coremat.methods.layer_shares.LayerShares` has this slot and
        its option, for budgets that differ from layer to layer; its image tokens, and all else, are the whole
        method's."""
        return self

    def by_layer(self, layers: int) -> list["Method"]:
        return [self.of_layer(number, layers) for number in range(layers)]

    def prefill_neurons_from(self) -> int | None:
        """The first layer whose prefill, too, goes through the chosen neurons only; None: no layer."""
        return None

    def shares_neurons(self) -> bool:
        """Whether `neurons` gives one set for the whole batch: a row's answer then depends on the other rows."""
        return False

    def decode_ffn(self, number: int, mlp: Any, state: Any) -> SparseFFN:
        """The FFN of layer `number` over `mlp` (`gate_proj`, `up_proj`, `down_proj`, `act_fn`) while decoding, where
        neurons are chosen token by token. state: what `setup` returned."""
        raise NotImplementedError

    def linear(self, layer: int, name: str, linear: nn.Linear, state: Any) -> "Forward | None":
        """The forward of one Linear of decoder layer `layer` while decoding, [..., inputs] to [..., outputs]; None: its
        own. The prefill stays dense. name: one of `coremat.models.shape.LINEARS`; state: what `setup` returned."""
        raise NotImplementedError

    def reads(self, layer: int, shape: DecoderShape) -> Reads:
        """What one token reads of the weights of this layer while decoding: the neurons of `neuron_count` in each of
        the FFN's matrices alike, and all of the attention, if nothing else is said."""
        return Reads.of_neurons(self.neuron_count(shape.ffn), shape.ffn)

    # --- the cache ----------------------------------------------------------------------------------------------------

    def edit_cache(self, layer: LayerView) -> None:
        """After each layer of the prefill: change `layer.keys` and `layer.values` in place."""
        raise NotImplementedError

    # --- what it is ---------------------------------------------------------------------------------------------------

    def takes(self, slot: str) -> bool:
        """Whether the method overrides a slot of this class."""
        return getattr(type(self), slot) is not getattr(Method, slot)

    @property
    def label(self) -> str:
        """The name, or, for a class that has none, its own."""
        return self.name or type(self).__name__

    def pruning_stages(self, layers: int) -> list[Stage]:
        """The stages that prune, in a decoder of that many layers. ConfigError for stages that cannot be."""
        stages = [stage for stage in self._declared(layers) if stage.keep != "all"]
        places = [stage.after for stage in stages]
        if any(place >= layers for place in places):
            raise ConfigError(
                f"{self.label} prunes after {max(places)} decoder layers; accepted for this model of {layers} layers: "
                f"1 to {layers - 1}."
            )
        if any(later <= before for before, later in pairwise(places)):
            raise ConfigError(
                f"{self.label} has stages after layers {places}; accepted: in ascending order, one for each layer."
            )
        return stages

    def _declared(self, layers: int) -> Sequence[Stage]:
        stages: Any = self.stages(layers)
        if not isinstance(stages, Sequence) or not all(isinstance(stage, Stage) for stage in stages):
            raise ConfigError(f"the stages of {self.label} are {stages!r}; accepted: a tuple of Stage.")
        return stages

    @property
    def prunes_tokens(self) -> bool:
        return any(stage.keep != "all" for stage in self._declared(ANY_DEPTH))

    @property
    def replaces_ffns(self) -> bool:
        """Whether decode steps go through FFNs other than the model's."""
        return self.takes("neurons") or self.takes("decode_ffn")

    @property
    def prunes_neurons(self) -> bool:
        return self.replaces_ffns or self.takes("linear")

    @property
    def before_the_decoder(self) -> bool:
        """Whether tokens are chosen before the first decoder layer."""
        return any(stage.after == 0 for stage in self._declared(ANY_DEPTH))

    @property
    def slot(self) -> str:
        """Where it cuts, in words."""
        tokens = ("before decoder" if self.before_the_decoder else "decoder layer") if self.prunes_tokens else ""
        cuts = [cut for cut in (tokens, "neurons" if self.prunes_neurons else "") if cut]
        return " and ".join(cuts) or ("cache" if self.takes("edit_cache") else "none")

    def identity(self) -> dict[str, Any]:
        """Name and options, as a record and the keys of answers hold them."""
        own = {"name": self.label, "options": options_of(self)}
        source = source_of(type(self))
        return own if source is None else {**own, "source": source}
