"""How a bundled task compares an answer with its target: exact match; of a listing its items, in order and by F1.

The items of a listing are what stands between its commas, each in lower case with single blanks; nothing else is
forgiven but one full stop at the end of the answer. An item is right if it is one of the target's to the letter. So
what a comma too many leaves empty is a wrong item, and so is what a missing comma has run together.
"""

import string
from collections import Counter

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(text: str) -> str:
    """Lower case, without punctuation, single blanks."""
    return _plain(text.translate(_PUNCTUATION))


def exact_match(answer: str, target: str) -> float:
    return float(normalized(answer) == normalized(target))


def listing_match(answer: str, target: str) -> float:
    """Whether the items are those of the target, in its order."""
    return float(_items(answer) == _items(target))


def listing_f1(answer: str, target: str) -> float:
    """F1 of the items as multisets: an item repeated too often is wrong, one that is not repeated often enough missing.

    An answer of n items, of which c are right, to a target of m: 2c / (n + m).
    """
    said, meant = Counter(_items(answer)), Counter(_items(target))
    return 2 * (said & meant).total() / (said.total() + meant.total())


def _items(listing: str) -> list[str]:
    """At least one: nothing said is one empty item."""
    return [_plain(item) for item in listing.strip().removesuffix(".").split(",")]


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
