"""How long a sequence may become: to the last position of a model, and, with a short cache, to its sliding window.

A short cache counts a window in columns, not in positions, so that behind a full window other tokens would be seen than
the model sees by itself, without an error.
"""

from collections.abc import Mapping
from typing import Any

from coremat.errors import DataError, UnsupportedError

UNLIMITED = 20  # new tokens that `generate` stops at where nothing else is said


def check_window(window: int | None, tokens: int) -> None:
    """tokens: of the prompt with its padding, and all new ones."""
    if window is not None and tokens > window:
        raise UnsupportedError(
            f"prompt and new tokens are {tokens} together; accepted where tokens are pruned: up to {window}, "
            "the sliding window of this model."
        )


def check_positions(positions: int | None, tokens: int) -> None:
    """positions: that the model was made for, None if it does not say."""
    if positions is not None and tokens > positions:
        raise DataError(
            f"prompt and new tokens are {tokens} together; accepted: up to {positions}, the positions of this model."
        )


def tokens_to_come(inputs: Any, kwargs: Mapping[str, Any], config: Any) -> int:
    """Tokens that a call of `generate` may reach: prompt and new ones. config: its generation config."""
    prompts = (inputs, kwargs.get("inputs"), kwargs.get("input_ids"))
    prompt = next((given.shape[1] for given in prompts if given is not None), 0)
    new, longest = (kwargs.get(name) or getattr(config, name, None) for name in ("max_new_tokens", "max_length"))
    return prompt + (new or UNLIMITED) if new or not longest else max(prompt + 1, longest)
