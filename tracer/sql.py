"""Statements that differ only by their values have one shape. Pure."""

from __future__ import annotations

import re

TOKEN = re.compile(
    r"""
    (?P<blank> \s+ | /\*.*?(?:\*/|$) | --[^\n]* )
  | (?P<value> [eE]'(?:[^'\\]|''|\\.)*'? | [bBxXnN]?'(?:[^']|'')*'?
             | \$(?P<tag>[A-Za-z_]*)\$.*?(?:\$(?P=tag)\$|$)
             | 0[xX][0-9a-fA-F]+ | (?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)? )
  | (?P<other> "(?:[^"]|"")*"? | [^\W\d][\w$]* | \$\d+ | . )
    """,
    re.VERBOSE | re.DOTALL,
)
SIGN = re.compile(
    r"([=<>(,*/%|] ?|\b(?:and|or|in|between|limit|offset|values|then|else|when|select|by) )[-+] ?\?", re.IGNORECASE
)
LIST = re.compile(r"\?(?: ?, ?\?)+")
ROWS = re.compile(r"\(\?\)(?: ?, ?\(\?\))+")


def shape(statement: str) -> str:
    """The statement with ? for every value, one for each list of values and of rows; without comments.

    A statement may be cut anywhere: a value that does not end is one.
    """
    parts = [" " if token["blank"] else "?" if token["value"] else token[0] for token in TOKEN.finditer(statement)]
    folded = re.sub(" +", " ", "".join(parts)).strip()
    folded = SIGN.sub(r"\1?", folded)
    return ROWS.sub("(?)", LIST.sub("?", folded))
