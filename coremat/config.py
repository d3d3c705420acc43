"""What to prune and how: one frozen, validated value. Token-only, neuron-only and every ablation are values of it."""

from dataclasses import asdict, dataclass
from fractions import Fraction

from coremat.errors import ConfigError

SCORES_IN_DECODER = ("core-neurons", "attention", "projection", "random", "fewest-core-neurons")
SCORES_BEFORE_DECODER = ("prumerge", "prumerge+", "visionzip", "divprune", "uniform", "pooling")
TOKEN_SCORES = (*SCORES_IN_DECODER, *SCORES_BEFORE_DECODER)
ADAPTIVE = (*SCORES_IN_DECODER, "prumerge", "prumerge+")  # find by themselves how many tokens to keep
NEURON_CHOICES = ("core", "random", "oracle", "predicted", "all")
VOTERS = ("all", "text", "last")
KNEES = ("unsigned", "signed")
NEURON_SETS = ("sequence", "batch")
POSITIONS = ("auto", "original", "reindexed")


def _one_of(name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{name} is {value!r}; accepted: {', '.join(known)}.")


def _share(name: str, value: object, least: float = 0.0) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not least < value <= 1:
        raise ConfigError(f"{name} is {value!r}; accepted: a number above {least:g} and up to 1.")


def _whole(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name} is {value!r}; accepted: a whole number, at least {least}.")


@dataclass(frozen=True)
class SparsityConfig:
    """One method of pruning, with the paper's defaults.

    tokens: "knee" (the paper: as many as lie above the knee of the scores), "all" (no token is dropped),
        an int (that many image tokens per sequence) or a float in (0, 1] (that share of them).
    token_score: what ranks image tokens. "core-neurons" (eq. 5), "attention" (of the last prompt token, mean over
        heads), "projection" (eq. 8), "random", "fewest-core-neurons" (the paper's turned round). The last two take
        their count, where a knee is asked for, from the knee of the core-neuron counts. Rivals that choose before the
        decoder (`coremat.methods`): "prumerge", "prumerge+", whose knee is their own rule; "visionzip", "divprune",
        "uniform" and "pooling", which need a count or a share.
    neurons: "core" (eq. 2 to 4), "random" (as many, drawn per sample and layer), "oracle" (each token's largest, the
        upper bound of any predictor; no speed), "predicted" (the time of a predictor and of as many neurons; the
        answers mean nothing) or "all" (dense decoding).
    alpha: share of a token's positive neurons that it votes for (eq. 2). beta: share of neurons kept (eq. 3).
    prune_layer: number of decoder layers that see every token; 0 for what is chosen before the decoder, and only then.
    positions: of the tokens that stay: "original", "reindexed" (as if the others had never been there), or "auto":
        re-indexed for what is chosen before the decoder, where positions have one axis.
    voters: the tokens that vote for core neurons: "all" (the paper), "text" or "last" (the last prompt token).
    knee: "unsigned" (the paper and its release: farthest from the chord on either side) or "signed" (below it only).
    neurons_in_prefill: from `prune_layer` on, let the prefill too go through the core neurons only.
    neuron_sets: while decoding a batch, a set of core neurons for each "sequence" (the paper) or one for the "batch",
        by the votes of all its sequences: as fast as one sequence's, though what is answered depends on the company.
    released: what the authors' released code does in place of all of this (`coremat.released`); every token and every
        neuron stays.
    seed: of random scores and random neurons.
    """

    tokens: str | int | float = "knee"
    token_score: str = "core-neurons"
    neurons: str = "core"
    alpha: float = 0.2
    beta: float = 0.4
    prune_layer: int = 2
    voters: str = "all"
    knee: str = "unsigned"
    neurons_in_prefill: bool = False
    neuron_sets: str = "sequence"
    positions: str = "auto"
    released: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        self._check_tokens()
        _one_of("token_score", self.token_score, TOKEN_SCORES)
        _one_of("neurons", self.neurons, NEURON_CHOICES)
        _one_of("voters", self.voters, VOTERS)
        _one_of("knee", self.knee, KNEES)
        _one_of("neuron_sets", self.neuron_sets, NEURON_SETS)
        if self.neuron_sets == "batch" and self.neurons != "core":
            raise ConfigError(f"neuron_sets is 'batch' with neurons {self.neurons!r}; accepted with it: core.")
        _share("alpha", self.alpha)
        _share("beta", self.beta)
        self._check_slot()
        _whole("seed", self.seed, least=0)
        for name in ("neurons_in_prefill", "released"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} is {getattr(self, name)!r}; accepted: true, false.")
        if self.released and (self.prunes_tokens or self.prunes_neurons):
            raise ConfigError(
                f"released is true with tokens {self.tokens!r} and neurons {self.neurons!r}; accepted: all and all."
            )

    def _check_slot(self) -> None:
        _one_of("positions", self.positions, POSITIONS)
        if not self.before_decoder:
            _whole("prune_layer", self.prune_layer, least=1)
            if self.positions == "reindexed":
                raise ConfigError(f"positions is 'reindexed' with {self.token_score}; accepted: original, auto.")
            return
        if self.prune_layer != 0:
            raise ConfigError(f"prune_layer is {self.prune_layer!r}; accepted for {self.token_score}: 0.")
        if isinstance(self.tokens, str) and self.token_score not in ADAPTIVE:
            raise ConfigError(f"tokens is {self.tokens!r}; accepted for {self.token_score}: a count or a share.")

    def _check_tokens(self) -> None:
        tokens = self.tokens
        if isinstance(tokens, str):
            _one_of("tokens", tokens, ("knee", "all", "a count such as 64", "a share such as 0.25"))
        elif isinstance(tokens, float):
            _share("tokens", tokens)
        elif not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1:
            raise ConfigError(f"tokens is {tokens!r}; accepted: knee, all, a count of at least 1, a share in (0, 1].")

    @property
    def before_decoder(self) -> bool:
        """Whether tokens are chosen before the decoder runs."""
        return self.token_score in SCORES_BEFORE_DECODER

    @property
    def slot(self) -> str:
        """Where a method cuts: before the decoder, in a decoder layer, at the neurons, or nowhere."""
        tokens = ("before decoder" if self.before_decoder else "decoder layer") if self.prunes_tokens else ""
        cuts = [cut for cut in (tokens, "neurons" if self.prunes_neurons else "") if cut]
        return " and ".join(cuts) or ("cache" if self.released else "none")

    @property
    def prunes_tokens(self) -> bool:
        return self.tokens != "all"

    @property
    def prunes_neurons(self) -> bool:
        return self.neurons != "all"

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def as_fraction(share: float) -> Fraction:
    """The decimal that was written (0.3, not the nearest double), so that ceilings and floors of it are exact."""
    return Fraction(repr(float(share)))
