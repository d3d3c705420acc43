"""The tokens and neurons that methods chose before methods became plug-ins: a record of that, held for every family.

`fixtures/picks.json` has, by "family | batch | method", which image tokens of each sequence stayed, a hash of the
chosen neurons, and greedy answers. Cases that were changed on purpose are not in it: budgets of several images (now
spent per sequence, and exactly), grids that are no square, and answers of FastV (whose earlier layers keep their
caches).
"""

import hashlib
import json
from pathlib import Path

import pytest

import coremat
from coremat.testing.answers import answer
from coremat.testing.families import FAMILIES

PICKS = json.loads((Path(__file__).parent / "fixtures" / "picks.json").read_text())
CASES = sorted({tuple(key.split(" | ")[:2]) for key in PICKS})


def neurons_digest(neurons):
    if not neurons:
        return None
    lists = sorted({layer: chosen.tolist() for layer, chosen in neurons.items()}.items())
    return hashlib.sha256(json.dumps(lists).encode()).hexdigest()[:16]


@pytest.mark.parametrize(("family", "batch"), CASES)
def test_picks_are_what_they_were(family, batch):
    model, inputs = FAMILIES[family].model(), FAMILIES[family].batch(batch)
    wrong = []
    for key, before in PICKS.items():
        if tuple(key.split(" | ")[:2]) != (family, batch):
            continue
        with coremat.apply(model, key.split(" | ")[2]) as session:
            tokens = answer(model, inputs, new=4).tokens.tolist()
            now = {
                "kept": [list(row.kept) for row in session.stats],
                "neurons": neurons_digest(session.prompt.neurons),
                "answer": tokens,
            }
        wrong += [f"{key}: {name}" for name in before if now[name] != before[name]]
    assert not wrong, "\n".join(wrong)
