"""What a hostile or colourful message becomes before it is printed."""

from __future__ import annotations

import pytest

from laocoon.files.wording import printable


@pytest.mark.parametrize(("text", "said"), [
    ("\x1b[96mThis is step 1/3\x1b[0m of exporting", "This is step 1/3 of exporting"),
    ("\x1b[2J\x1b[1;1Hall is well", "all is well"),
    ("\x1b]0;title\x07name", "�]0;title�name"),
    ("[0m is no colour", "[0m is no colour"),
    ("two\n lines\t", "two lines")])
def test_one_line_without_escapes(text: str, said: str) -> None:
    assert printable(text) == said
