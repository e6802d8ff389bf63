"""How a traceparent header is read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from script_runner.trace import traceparent

GOOD = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_valid_header_is_taken_as_it_is():
    """A header of version 00 is passed on unchanged."""
    assert traceparent([GOOD]) == GOOD


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [""],
        [GOOD, GOOD],
        [GOOD.upper()],
        [GOOD[:-1]],
        [GOOD + "0"],
        [GOOD + "-00"],
        [f" {GOOD}"],
        [GOOD + "\n"],
        ["ff" + GOOD[2:]],
        ["0x" + GOOD[2:]],
        ["00-" + "0" * 32 + "-b7ad6b7169203331-01"],
        ["00-0af7651916cd43dd8448eb211c80319c-" + "0" * 16 + "-01"],
        ["00-0af7651916cd43dd8448eb211c80319g-b7ad6b7169203331-01"],
        ["cc" + GOOD[2:] + "x"],
    ],
)
def test_anything_else_says_nothing(headers: list[str]):
    """What is not valid by W3C Trace Context, or stands twice, begins no trace."""
    assert traceparent(headers) is None


@pytest.mark.parametrize("rest", ["", "-what-the-future-will-be"])
def test_later_version_is_read_as_far_as_it_is_known(rest: str):
    """Of a later version the known fields count, and of the flags the known one."""
    later = "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-ff"

    assert traceparent([later + rest]) == GOOD


@given(st.text(max_size=80))
def test_no_text_is_passed_on_that_is_not_one(text: str):
    """Whatever comes, what goes out is 55 characters of lower-case hexadecimal and dashes, or nothing."""
    found = traceparent([text])

    assert found is None or (len(found) == 55 and set(found) <= set("0123456789abcdef-"))
