"""The methods that every invariant is held for, by what is typed: a new one gets all of them by one line here."""

from coremat.methods import registry

CONFIGS = {
    "paper": "corematching",
    "knee-signed": "corematching:knee=signed",
    "attention-knee": "attention-tokens+core-neurons",
    "projection-knee": "projection-tokens+core-neurons",
    "projection-knee-signed": "projection-tokens:knee=signed+core-neurons",
    "random-knee": "random-tokens:seed=3+core-neurons",
    "fewest-knee": "fewest-core-tokens+core-neurons",
    "core-neurons-count": "corematching:tokens=5",
    "attention-count": "attention-tokens:tokens=5+core-neurons",
    "projection-ratio": "projection-tokens:tokens=0.3+core-neurons",
    "random-count": "random-tokens:tokens=5+core-neurons",
    "fewest-ratio": "fewest-core-tokens:tokens=0.25+core-neurons",
    "one-token": "corematching:tokens=1",
    "token-only": "core-tokens",
    "neuron-only": "core-neurons",
    "neither": "dense",
    "random-neurons": "core-tokens+random-neurons:seed=4",
    "predicted-neurons": "core-tokens+powerinfer:beta=0.4:seed=4",
    "fastv": "fastv:tokens=0.5",
    "fastv-cut": "fastv:tokens=0.5:earlier_cache=cut",
    "all-random": "random-tokens:tokens=5+random-neurons",
    "text-votes": "corematching:voters=text",
    "last-votes": "corematching:voters=last",
    "alpha-0.3-beta-0.2": "corematching:alpha=0.3:beta=0.2",
    "alpha-1-beta-1": "corematching:alpha=1.0:beta=1.0",
    "one-set-for-the-batch": "corematching:neuron_sets=batch",
    "neurons-in-prefill": "corematching:prefill_from=2",
    "neurons-in-prefill-only": "core-neurons:prefill_from=2",
    "random-neurons-in-prefill": "core-tokens+random-neurons:prefill_from=2",
    "keep-all": "corematching:tokens=1.0:beta=1.0",
    "after-1": "corematching:prune_layer=1",
    "after-4": "corematching:prune_layer=4:tokens=0.5",
    "before-last": "corematching:prune_layer=5",
    "restarted": "corematching:positions=restart",
    "full-caches": "corematching:earlier_cache=full",
}

# All but those in which a sequence's neurons depend on the rest of the batch.
SEQUENCE_BY_SEQUENCE = [name for name, spec in CONFIGS.items() if not registry.parse(spec).shares_neurons()]

# Image tokens chosen before the decoder, within a budget that the tiny images have room for.
BEFORE_DECODER = {
    "divprune": "divprune:tokens=5",
    "uniform": "uniform-tokens:tokens=5",
    "pooling": "average-pooling:tokens=5",
    "visionzip": "visionzip:tokens=5",
    "prumerge": "prumerge:tokens=5",
    "prumerge+": "prumerge+:tokens=5",
    "prumerge-knee": "prumerge",
    "visionzip-original": "visionzip:tokens=5:positions=original",
    "divprune-original": "divprune:tokens=5:positions=original+core-neurons",
}
