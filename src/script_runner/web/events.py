"""What happens to a task as Server-Sent Events (HTML Living Standard, section 9.2)."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec
from starlette.responses import StreamingResponse
from starlette.types import Send

from script_runner.follow import Event, Moved, Quiet, Said
from script_runner.web import documents

RETRY_MILLISECONDS = 1000
"""When a client that lost its stream is to come again."""

HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
"""No cache keeps the stream, and nginx does not hold it back."""

MEDIA_TYPE = "text/event-stream"


class EventStream(StreamingResponse):
    """Events as they come; when the client goes away they are no longer asked for."""

    def __init__(self, events: AsyncGenerator[Event, None]) -> None:
        self._pieces = _pieces(events)
        super().__init__(self._pieces, headers=HEADERS, media_type=MEDIA_TYPE)

    async def stream_response(self, send: Send) -> None:
        async with aclosing(self._pieces):
            await super().stream_response(send)


async def _pieces(events: AsyncGenerator[Event, None]) -> AsyncGenerator[bytes, None]:
    yield f"retry: {RETRY_MILLISECONDS}\n\n".encode()
    async with aclosing(events):
        async for event in events:
            yield _written(event)


def _written(event: Event) -> bytes:
    match event:
        case Quiet():
            return b":\n\n"
        case Moved(task, place):
            name = "end" if place.is_end else "state"
            document = documents.summary(task) | documents.waiting(task)
        case Said(stream, offset, text, place):
            name = stream
            document = {"offset": offset, "next": place.offsets[stream], "text": text}
    return b"id: %b\nevent: %b\ndata: %b\n\n" % (str(place).encode(), name.encode(), msgspec.json.encode(document))
