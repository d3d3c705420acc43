"""How a bundled task compares an answer with its target: exact match, and F1 over listed objects."""

import string
from collections import Counter

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(text: str) -> str:
    """Lower case, without punctuation, single blanks."""
    return " ".join(text.lower().translate(_PUNCTUATION).split())


def exact_match(answer: str, target: str) -> float:
    return float(normalized(answer) == normalized(target))


def listing_f1(answer: str, target: str) -> float:
    """F1 of two lists divided by commas, as multisets: two red circles are named twice or half of them is missing."""
    said, meant = _objects(answer), _objects(target)
    common = (said & meant).total() if said and meant else 0
    return 2 * common / (said.total() + meant.total()) if common else 0.0


def _objects(listing: str) -> Counter[str]:
    names = (normalized(name) for name in listing.split(","))
    return Counter(name for name in names if name)
