"""Which trace a request belongs to: the ``traceparent`` of W3C Trace Context, read by its rules."""

import re
from collections.abc import Sequence

_FIELDS = re.compile(
    r"(?P<version>[0-9a-f]{2})-(?P<trace>[0-9a-f]{32})-(?P<parent>[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})"
)
_SAMPLED = 1


def traceparent(headers: Sequence[str]) -> str | None:
    """What the ``traceparent`` headers of a request say, in the form of version 00; None if it is nothing valid.

    W3C Trace Context, section 3.2: lower-case hexadecimal only, no identifier is all zeros, version ff is none,
    and of a later version the fields known today count.
    """
    if len(headers) != 1:
        return None
    found = _FIELDS.match(headers[0])
    if not found or not _is_whole(found, headers[0]):
        return None
    version, trace, parent, flags = found.groups()
    if version == "ff" or not int(trace, 16) or not int(parent, 16):
        return None
    if version == "00":
        return found[0]
    return f"00-{trace}-{parent}-{int(flags, 16) & _SAMPLED:02x}"


def _is_whole(found: "re.Match[str]", text: str) -> bool:
    """Whether nothing follows but what a later version may add: after a dash."""
    rest = text[found.end() :]
    return not rest or (found["version"] != "00" and rest.startswith("-"))
