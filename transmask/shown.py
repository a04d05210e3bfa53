"""Show text that a stranger wrote, such as the name of a tensor or a file, so that a terminal cannot obey it."""

from __future__ import annotations

__all__ = ["shown"]


def shown(text: object) -> str:
    r"""Return `text` with every character that cannot be seen written as an escape, as Python's ``repr`` has it.

    Control characters (C0, DEL, C1) move the cursor, clear the screen and set titles; newlines forge lines of output;
    bidirectional and zero-width characters change what a reader sees; lone surrogates cannot be encoded. All of them
    are characters that `str.isprintable` refuses. Everything else stays as it is, a backslash too: to tell an escape
    from the characters it is written with, read the exact name in the output of ``--json``.

    Parameters
    ----------
    text : object
        Its `str` is shown.

    Returns
    -------
    str
        One line.

    Examples
    --------
    >>> print(shown("model.layers.0.weight"), shown("a\x1b[2Jb\nc\u202ed"))
    model.layers.0.weight a\x1b[2Jb\nc\u202ed
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )
