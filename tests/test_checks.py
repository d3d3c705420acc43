"""What each check takes, and the sentence about what it does not take."""

import pytest

from coremat.checks import one_of, whole_number
from coremat.errors import ConfigError


@pytest.mark.parametrize(("value", "least"), [(0, 0), (1, 1), (7, 1)])
def test_whole_numbers(value: int, least: int) -> None:
    whole_number("beams", value, least)


@pytest.mark.parametrize("value", [0, -1, 1.0, "1", True, None])
def test_no_whole_numbers(value: object) -> None:
    with pytest.raises(ConfigError) as refusal:
        whole_number("beams", value, 1)
    assert str(refusal.value) == f"beams is {value!r}; accepted: a whole number, at least 1."


def test_one_of() -> None:
    one_of("--form", "csv", iter(["text", "csv"]))
    with pytest.raises(ConfigError, match=r"^--form is 'cs'; accepted: text, csv\.$"):
        one_of("--form", "cs", iter(["text", "csv"]))
