"""A task as its record in Redis has it, and back."""

from collections.abc import Mapping, Sequence

import msgspec

from script_runner.task import Outcome, Place, State, Task

_Arguments = dict[str, str | tuple[str, ...]]
_arguments_of = msgspec.json.Decoder(_Arguments).decode
_outcome_of = msgspec.json.Decoder(Outcome).decode

Argument = str | bytes | float

LISTED = (
    "id", "owner", "format", "configuration", "state", "attempt", "run", "max_attempts", "retention", "priority",
    "not_before", "created", "started", "finished", "worker", "cancelling", "exit_code", "followed",
)  # fmt: skip
"""What a listing reads of a record: nothing that can be large."""


def fields_of(task: Task, *, version: int) -> dict[str, Argument]:
    """The fields of a new record."""
    fields: dict[str, Argument] = {
        "format": version,
        "arguments": msgspec.json.encode(task.arguments),
        "configuration": task.configuration,
        "max_attempts": task.max_attempts,
        "priority": task.priority,
        "fingerprint": task.fingerprint,
        "retention": milliseconds(task.retention_seconds),
    }
    fields |= {f"retention:{state}": milliseconds(kept) for state, kept in task.retention.items()}
    fields |= {"request_id": task.request_id} if task.request_id else {}
    fields |= {"traceparent": task.traceparent} if task.traceparent else {}
    return fields if task.not_before is None else fields | {"not_before": milliseconds(task.not_before)}


def pairs(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def task_of(record: Mapping[bytes, bytes]) -> Task | None:
    """The task in a record, as far as it is there; None if there is none."""
    if not record:
        return None
    state = State(record[b"state"].decode())
    return Task(
        id=record[b"id"].decode(),
        owner=record[b"owner"].decode(),
        arguments=_arguments_of(record.get(b"arguments", b"{}")),
        configuration=record.get(b"configuration", b"").decode(),
        max_attempts=int(record[b"max_attempts"]),
        retention_seconds=seconds_of(record[b"retention"]),
        priority=int(record.get(b"priority", 0)),
        not_before=_moment(record, b"not_before"),
        request_id=_text(record, b"request_id"),
        traceparent=_text(record, b"traceparent"),
        state=state,
        created_at=seconds_of(record[b"created"]),
        started_at=_moment(record, b"started"),
        finished_at=_moment(record, b"finished"),
        worker=_text(record, b"worker"),
        attempt=int(record[b"attempt"]),
        run=int(record[b"run"]),
        is_cancelling=b"cancelling" in record,
        outcome=_outcome(record, state),
    )


def holder(task: Task) -> tuple[str, str, int]:
    return task.id, task.worker or "", task.run


def place_of(position: int, expected_wait: int) -> Place | None:
    """Where a task stands, 0 being nowhere; the milliseconds are -1 when nobody knows."""
    return Place(position, None if expected_wait < 0 else expected_wait / 1000) if position else None


def _outcome(record: Mapping[bytes, bytes], state: State) -> Outcome | None:
    """The outcome in a record; of one that was read in part, how it ended and no more."""
    if outcome := record.get(b"outcome"):
        return _outcome_of(outcome)
    code = record.get(b"exit_code")
    return Outcome(state, int(code) if code else None) if state.is_final else None


def _moment(record: Mapping[bytes, bytes], name: bytes) -> float | None:
    return seconds_of(record[name]) if name in record else None


def _text(record: Mapping[bytes, bytes], name: bytes) -> str | None:
    return record[name].decode() if record.get(name) else None


def seconds_of(milliseconds: bytes) -> float:
    return int(milliseconds) / 1000


def milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def or_empty(number: int | None) -> int | str:
    return "" if number is None else number
