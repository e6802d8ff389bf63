"""Records traces by OpenTelemetry and sends them as OTLP over HTTP; the environment says where (OTEL_…)."""

import asyncio
import contextlib
import logging
import threading

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from script_runner.ports import NO_ATTRIBUTES, Attributes

SECONDS_TO_SEND = 3.0
"""How long the end of a process waits for spans that are not yet sent."""

_KINDS = {"server": SpanKind.SERVER, "consumer": SpanKind.CONSUMER, "internal": SpanKind.INTERNAL}

_log = logging.getLogger("script_runner.traces")


class OpenTelemetryTraces:
    """Spans of one process. A thread sends them in batches: nothing here waits for the collector."""

    def __init__(self, *, service: str, version: str, role: str) -> None:
        ours: Attributes = {"service.name": service, "service.version": version, "script_runner.role": role}
        # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES go before what we say
        resource = Resource(ours).merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("script_runner", version)

    def begin(
        self, name: str, *, parent: str | None, kind: str = "internal", at: float | None = None
    ) -> "_Recorded":
        context = set_span_in_context(NonRecordingSpan(_context(parent))) if parent else None
        span = self._tracer.start_span(name, context, _KINDS[kind], start_time=_nanoseconds(at))
        return _Recorded(span)

    async def close(self) -> None:
        loop = asyncio.get_running_loop()
        sent = asyncio.Event()

        def send() -> None:
            self._provider.shutdown()
            with contextlib.suppress(RuntimeError):  # nobody waits any more
                loop.call_soon_threadsafe(sent.set)

        # its own limit is half a minute, and a process that ends would wait for a thread of a pool
        threading.Thread(target=send, name="last spans", daemon=True).start()
        try:
            await asyncio.wait_for(sent.wait(), SECONDS_TO_SEND)
        except TimeoutError:
            _log.warning("the last spans could not be sent in %g s", SECONDS_TO_SEND)


class _Recorded:
    """A span that is recorded, unless the sampler has left it out."""

    def __init__(self, span: Span) -> None:
        self._span = span

    @property
    def traceparent(self) -> str | None:
        context = self._span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags & TraceFlags.SAMPLED:02x}"

    def end(
        self, attributes: Attributes = NO_ATTRIBUTES, *, is_error: bool = False, at: float | None = None
    ) -> None:
        if name := attributes.get("http.route"):
            self._span.update_name(f"{attributes['http.request.method']} {name}")
        self._span.set_attributes(attributes)
        if is_error:
            self._span.set_status(StatusCode.ERROR)
        self._span.end(_nanoseconds(at))


def _context(traceparent: str) -> SpanContext:
    """The context that a valid traceparent names."""
    _, trace, span, flags = traceparent.split("-")
    return SpanContext(int(trace, 16), int(span, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16)))


def _nanoseconds(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1_000_000_000)
