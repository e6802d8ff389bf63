"""Turns what a script wrote into rows and files: CSV or JSON in, JSON out, in pieces and in flat memory."""

import csv
import io
import json
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import msgspec

from script_runner.errors import Code, Error
from script_runner.spec import Column, Glob, ResultsSpec

BATCH_CHARACTERS = 16 * 1024
"""About how much of the source is turned into rows at a time: little enough to stay in the processor's cache."""

MAX_LINE_CHARACTERS = 16 * 1024 * 1024
"""The longest line of a CSV file, and the longest field in it."""

MAX_JSON_CHARACTERS = 32 * 1024 * 1024
"""The largest JSON document that is no list, and the largest item of a list: these are held in memory."""

MAX_COLUMNS = 10_000
"""The most names that a JSON list of objects may have as a table: they are part of its task's record."""

READ_CHARACTERS = 64 * 1024
"""How much of a JSON document is read at a time, at least."""

_VISIBLE = re.compile(r"[^ \t\r\n]")
_LONGEST_TOKEN = len(r"\ud83d\ude00")
"""The end of a text that is cut off makes sense, or not, within this many characters; only strings are longer."""

_json = msgspec.json.Encoder()

_Item = TypeVar("_Item")


class Document:
    """The JSON form of some results, to be iterated once in pieces of bytes.

    ``rows`` and ``columns`` are known when the iteration is over; None if it is not a list of objects,
    or one of too many names (MAX_COLUMNS).
    """

    def __init__(self, wanted: ResultsSpec, source: BinaryIO) -> None:
        self.rows: int | None = None
        self.columns: tuple[str, ...] | None = None
        self._wanted = wanted
        self._source = source

    def __iter__(self) -> Iterator[bytes]:
        if self._wanted.format == "csv":
            self.columns, batches = _csv_rows(self._source, self._wanted.remapped_columns)
            return self._list(batches)
        items = _Items(self._source)
        if self._wanted.remapped_columns:
            self.columns = tuple(column.output_name for column in self._wanted.remapped_columns)
            return self._list(_batched(_remapped_objects(items, self._wanted.remapped_columns), items))
        return self._as_it_is(items)

    def _list(self, batches: Iterable[list[Any]]) -> Iterator[bytes]:
        """A JSON list with one item a line."""
        self.rows = 0
        yield b"["
        for batch in batches:
            lines = _encoded(_json.encode_lines, batch)[:-1].replace(b"\n", b",\n")
            yield (b",\n" if self.rows else b"\n") + lines
            self.rows += len(batch)
        yield b"\n]" if self.rows else b"]"

    def _as_it_is(self, items: "_Items") -> Iterator[bytes]:
        if not items.is_list:
            yield _encoded(_json.encode, items.whole)
            return
        columns: dict[str, None] = {}
        is_table = True

        def watched() -> Iterator[Any]:
            nonlocal is_table
            for item in items:
                if is_table and isinstance(item, dict):
                    columns.update(dict.fromkeys(item))
                    is_table = len(columns) <= MAX_COLUMNS
                else:
                    is_table = False
                yield item

        yield from self._list(_batched(watched(), items))
        if is_table:
            self.columns = tuple(columns)
        else:
            self.rows = None


def _encoded(encode: Callable[[Any], bytes], value: Any) -> bytes:
    """The value as JSON in UTF-8; half a surrogate pair cannot be written so."""
    try:
        return encode(value)
    except UnicodeEncodeError:
        message = "The results hold text that is not Unicode (half a surrogate pair)."
        raise Error(Code.BAD_OUTPUT, message) from None
    except RecursionError:
        raise Error(Code.BAD_OUTPUT, "The results are nested too deeply.") from None


def _batched(items: Iterable[_Item], source: "_Lines | _Items") -> Iterator[list[_Item]]:
    """The items in lists, each made of about BATCH_CHARACTERS of the source, however large one item is."""
    batch: list[_Item] = []
    end = BATCH_CHARACTERS
    for item in items:
        batch.append(item)
        if source.read >= end:
            yield batch
            batch = []
            end = source.read + BATCH_CHARACTERS
    if batch:
        yield batch


def open_inside(folder: Path, relative: str) -> BinaryIO:
    """Open a regular file whose real path is inside ``folder``; Error(BAD_OUTPUT) says why it cannot be."""
    real = os.path.realpath(folder / relative)
    shown = _printable(relative)
    if not Path(real).is_relative_to(os.path.realpath(folder)):
        raise Error(Code.BAD_OUTPUT, f'"{shown}" leads outside the run folder.')
    try:
        # non-blocking: a FIFO without a writer must not hold us up
        descriptor = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Error(Code.BAD_OUTPUT, f'"{shown}" was not written.') from None
    except OSError as error:
        raise Error(Code.BAD_OUTPUT, f'"{shown}" cannot be read: {error.strerror}.') from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Error(Code.BAD_OUTPUT, f'"{shown}" is not a regular file.')
    return os.fdopen(descriptor, "rb")


def attachments(folder: Path, patterns: Sequence[Glob]) -> dict[str, str]:
    """Public name to relative path of each file that a pattern matches, sorted; links to folders are not followed.

    The name is the base name, or the relative path where base names collide.
    """
    if not patterns:
        return {}
    found = [path for path in sorted(_files(folder)) if any(pattern.matches(path) for pattern in patterns)]
    inside = [path for path in found if _is_file_inside(folder, path)]
    shown = {path: _printable(path) for path in inside}
    times = Counter(name.rpartition("/")[2] for name in shown.values())
    named = {path: base if times[base := name.rpartition("/")[2]] == 1 else name for path, name in shown.items()}
    if len(set(named.values())) < len(named):
        raise Error(Code.BAD_OUTPUT, "Two attachments have names that are the same once they are made printable.")
    return {name: path for path, name in named.items()}


def _printable(name: str) -> str:
    r"""A file name with the bytes that are not UTF-8 written as ``\xNN``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _files(folder: Path) -> Iterator[str]:
    """Relative paths of all that is no folder, at any depth; what cannot be listed is passed over."""
    waiting = [""]
    while waiting:
        prefix = waiting.pop()
        with suppress(OSError), os.scandir(folder / prefix) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(f"{prefix}{entry.name}/")
                elif not entry.is_dir():
                    yield prefix + entry.name


def _is_file_inside(folder: Path, relative: str) -> bool:
    real = os.path.realpath(folder / relative)
    return Path(real).is_relative_to(os.path.realpath(folder)) and os.path.isfile(real)  # noqa: PTH113 - never raises


# CSV (RFC 4180)


def _csv_rows(source: BinaryIO, columns: Sequence[Column] | None) -> tuple[tuple[str, ...], Iterator[list[Any]]]:
    """The output columns, and the rows in batches."""
    csv.field_size_limit(MAX_LINE_CHARACTERS)
    lines = _Lines(source)
    records = _records(lines)
    header = next(records, None)
    if header is None:
        raise Error(Code.BAD_OUTPUT, "The results are empty: there is not even a line of column names.")
    picks = _picks(header, columns)
    return tuple(name for name, _, _ in picks), _row_batches(_batched(records, lines), picks)


class _Lines:
    """The lines of a text, none longer than the limit: a file without newlines cannot fill the memory."""

    def __init__(self, source: BinaryIO) -> None:
        self.read = 0
        self._text = io.TextIOWrapper(source, encoding="utf-8-sig", newline="")

    def __iter__(self) -> Iterator[str]:
        while line := self._text.readline(MAX_LINE_CHARACTERS):
            if len(line) == MAX_LINE_CHARACTERS:
                raise csv.Error(f"a line is longer than {MAX_LINE_CHARACTERS:,} characters")
            self.read += len(line)
            yield line


def _records(lines: _Lines) -> Iterator[list[str]]:
    """The line of column names, then the rows, all as wide as it; blank lines are no rows."""
    reader = csv.reader(lines, strict=True)
    width = 0
    try:
        for record in reader:
            if not record:
                continue
            width = width or len(record)
            if len(record) > width:
                message = f"The results have {len(record)} values in line {reader.line_num}, for {width} columns."
                raise Error(Code.BAD_OUTPUT, message)
            if len(record) < width:
                lines.read += width - len(record)  # they take memory as what is read does
                record.extend([""] * (width - len(record)))
            yield record
    except csv.Error as error:
        message = f"The results are not CSV at line {reader.line_num}: {error}."
        raise Error(Code.BAD_OUTPUT, message) from None
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        message = f"The results are not UTF-8 after line {reader.line_num}: byte 0x{byte:02x} ({error.reason})."
        raise Error(Code.BAD_OUTPUT, message) from None


_Pick = tuple[str, int, frozenset[str]]


def _picks(header: list[str], columns: Sequence[Column] | None) -> list[_Pick]:
    """Output name, position and skip list of each column that is wanted."""
    times = Counter(header)
    wanted = [(column.output_name, column.input_name, column.skip_list or ()) for column in columns or ()]
    wanted = wanted or [(name, name, ()) for name in header]
    if missing := [name for _, name, _ in wanted if name not in times]:
        message = f"The results have no column {_listed(missing)}; they have {_listed(header)}."
        raise Error(Code.BAD_OUTPUT, message)
    if doubled := [name for _, name, _ in wanted if times[name] > 1]:
        raise Error(Code.BAD_OUTPUT, f"The results have more than one column {_listed(dict.fromkeys(doubled))}.")
    positions = {name: position for position, name in enumerate(header)}
    return [(output, positions[name], frozenset(skipped)) for output, name, skipped in wanted]


def _listed(names: Iterable[str]) -> str:
    shown = [f'"{name[:80]}"' for name in names]
    rest = len(shown) - 40
    return ", ".join(shown[:40]) + (f" and {rest} more" if rest > 0 else "")


def _row_batches(batches: Iterable[list[list[str]]], picks: list[_Pick]) -> Iterator[list[Any]]:
    row = _row_maker([name for name, _, _ in picks])
    pick = _picker([position for _, position, _ in picks])
    skips = [(position, skipped) for _, position, skipped in picks if skipped]
    for batch in batches:
        kept = batch
        for position, skipped in skips:
            kept = [record for record in kept if record[position] not in skipped]
        if kept:
            yield [row(*pick(record)) for record in kept]


def _row_maker(names: list[str]) -> Callable[..., Any]:
    """What makes a row of its values. A struct costs a third of a dict, but takes not every name."""
    fields = {f"c{number}": name for number, name in enumerate(names)}
    try:
        return msgspec.defstruct("Row", [(field, str) for field in fields], rename=fields, gc=False)
    except ValueError:  # a name with a quote, a backslash or a control character
        return lambda *values: dict(zip(names, values, strict=True))


def _picker(positions: list[int]) -> Callable[[list[str]], tuple[str, ...]]:
    if len(positions) == 1:
        return lambda record: (record[positions[0]],)
    return itemgetter(*positions)


# JSON (RFC 8259), with NaN and Infinity taken as null


class _Items:
    """A JSON text: the items of a list one by one, or ``whole`` if it is anything else."""

    def __init__(self, source: BinaryIO) -> None:
        self.read = 0
        self._text = io.TextIOWrapper(source, encoding="utf-8-sig")
        self._buffer = ""
        self._position = 0
        self._decoder = json.JSONDecoder(parse_constant=lambda _: None)
        self.is_list = self._next() == "["

    @property
    def whole(self) -> Any:
        value = self._value()
        self._expect_end()
        return value

    def __iter__(self) -> Iterator[Any]:
        self._take("[")
        if self._next() != "]":
            yield self._value()
            while self._next() != "]":
                self._take(",")
                yield self._value()
        self._take("]")
        self._expect_end()

    def _value(self) -> Any:
        """The next value; reads on until it is certainly complete."""
        while True:
            self._next()
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._position)
            except json.JSONDecodeError as error:
                if not self._may_be_cut(error) or not self._fill():
                    raise self._bad(error.msg) from None
            except RecursionError:
                raise self._bad("it is nested too deeply") from None
            except ValueError as error:  # a whole number of thousands of digits
                raise self._bad(str(error)) from None
            else:
                length = end - self._position
                # a number may go on behind what was read: 1 is the beginning of 1e+5
                if end + _LONGEST_TOKEN < len(self._buffer) or not self._fill():
                    self._position += length
                    return value

    def _may_be_cut(self, error: json.JSONDecodeError) -> bool:
        """Whether what was read may be right so far, and only its end is missing."""
        return error.msg.startswith("Unterminated") or error.pos + _LONGEST_TOKEN >= len(self._buffer)

    def _fill(self) -> bool:
        """Read at least as much again as is held, so that a large item is not tried too often."""
        held = self._buffer[self._position :]
        if len(held) > MAX_JSON_CHARACTERS:
            raise self._bad(f"one item of it is longer than {MAX_JSON_CHARACTERS:,} characters")
        try:
            more = self._text.read(max(READ_CHARACTERS, len(held)))
        except UnicodeDecodeError as error:
            raise self._bad(f"it is not UTF-8 ({error.reason})") from None
        self._buffer = held + more
        self._position = 0
        self.read += len(more)
        return bool(more)

    def _next(self) -> str:
        """The character that comes next after space, not taken; "" at the end."""
        while not (found := _VISIBLE.search(self._buffer, self._position)):
            self._position = len(self._buffer)
            if not self._fill():
                return ""
        self._position = found.start()
        return found[0]

    def _take(self, character: str) -> None:
        if self._next() != character:
            raise self._bad(f'"{character}" expected')
        self._position += 1

    def _expect_end(self) -> None:
        if self._next():
            raise self._bad("there is more after its end")

    def _bad(self, reason: str) -> Error:
        offset = self.read - len(self._buffer) + self._position
        return Error(Code.BAD_OUTPUT, f"The results are not JSON that can be read (character {offset}): {reason}.")


def _remapped_objects(items: _Items, columns: Sequence[Column]) -> Iterator[dict[str, Any]]:
    if not items.is_list:
        raise Error(Code.BAD_OUTPUT, "The results are to be remapped, but they are not a JSON list of objects.")
    skips = [(column.input_name, frozenset(column.skip_list)) for column in columns if column.skip_list]
    for number, item in enumerate(items):
        if not isinstance(item, dict):
            raise Error(Code.BAD_OUTPUT, f"Item {number} of the results is not an object and cannot be remapped.")
        if any(_text(item.get(name)) in skipped for name, skipped in skips):
            continue
        yield {column.output_name: item.get(column.input_name) for column in columns}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else _encoded(_json.encode, value).decode()
