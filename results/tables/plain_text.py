"""Text for a stream whose encoding lacks some of its characters: spelled in ASCII, and never an error."""

import codecs

ERRORS = "coremat.spelled"  # a name for the argument `errors` of whatever encodes a text
SPELLED = {"→": "->", "±": "+-", "×": "x", "–": "-", "…": "...", "─": "-", "│": "|"}  # noqa: RUF001
UNKNOWN = "?"


def _spell(error: UnicodeError) -> tuple[str, int]:
    """For `codecs.register_error`: the characters that cannot be encoded in other words, and where to go on."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(SPELLED.get(char, UNKNOWN) for char in error.object[error.start : error.end]), error.end


codecs.register_error(ERRORS, _spell)


def spelled(text: str, encoding: str) -> str:
    """The text as it will be read from a stream of this encoding."""
    return text.encode(encoding, ERRORS).decode(encoding)
