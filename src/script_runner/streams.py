"""What a script says: on which streams, and a part of one."""

from dataclasses import dataclass

STREAMS = ("stdout", "stderr")


@dataclass(frozen=True, slots=True)
class LogChunk:
    """Bytes of a stream and the offset of the first of them in the whole stream."""

    offset: int
    data: bytes
