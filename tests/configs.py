"""The configurations that every invariant is held for: a new one gets all of them by one line here."""

from coremat import SparsityConfig

CONFIGS = {
    "paper": SparsityConfig(),
    "knee-signed": SparsityConfig(knee="signed"),
    "attention-knee": SparsityConfig(token_score="attention"),
    "projection-knee": SparsityConfig(token_score="projection"),
    "projection-knee-signed": SparsityConfig(token_score="projection", knee="signed"),
    "random-knee": SparsityConfig(token_score="random", seed=3),
    "fewest-knee": SparsityConfig(token_score="fewest-core-neurons"),
    "core-neurons-count": SparsityConfig(tokens=5),
    "attention-count": SparsityConfig(tokens=5, token_score="attention"),
    "projection-ratio": SparsityConfig(tokens=0.3, token_score="projection"),
    "random-count": SparsityConfig(tokens=5, token_score="random"),
    "fewest-ratio": SparsityConfig(tokens=0.25, token_score="fewest-core-neurons"),
    "one-token": SparsityConfig(tokens=1),
    "token-only": SparsityConfig(neurons="all"),
    "neuron-only": SparsityConfig(tokens="all"),
    "neither": SparsityConfig(tokens="all", neurons="all"),
    "random-neurons": SparsityConfig(neurons="random", seed=4),
    "predicted-neurons": SparsityConfig(neurons="predicted", seed=4),
    "fastv": SparsityConfig(tokens=0.5, token_score="attention", neurons="all"),
    "all-random": SparsityConfig(tokens=5, token_score="random", neurons="random"),
    "text-votes": SparsityConfig(voters="text"),
    "last-votes": SparsityConfig(voters="last"),
    "alpha-0.3-beta-0.2": SparsityConfig(alpha=0.3, beta=0.2),
    "alpha-1-beta-1": SparsityConfig(alpha=1.0, beta=1.0),
    "one-set-for-the-batch": SparsityConfig(neuron_sets="batch"),
    "neurons-in-prefill": SparsityConfig(neurons_in_prefill=True),
    "neurons-in-prefill-only": SparsityConfig(tokens="all", neurons_in_prefill=True),
    "random-neurons-in-prefill": SparsityConfig(neurons="random", neurons_in_prefill=True),
    "keep-all": SparsityConfig(tokens=1.0, beta=1.0),
    "after-1": SparsityConfig(prune_layer=1),
    "after-4": SparsityConfig(prune_layer=4, tokens=0.5),
    "before-last": SparsityConfig(prune_layer=5),
}

# All but those in which a sequence's neurons depend on its company.
SEQUENCE_BY_SEQUENCE = [name for name, config in CONFIGS.items() if config.neuron_sets == "sequence"]
