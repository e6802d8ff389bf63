"""Results and attachments: what a script wrote, and the rows and files that become of it."""

import csv
import io
import itertools
import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from script_runner import results
from script_runner.errors import Code, Error
from script_runner.results import Document
from script_runner.spec import Glob, ResultsSpec

ROOT = os.geteuid() == 0


def wanted(kind: str, columns: list[dict[str, Any]] | None = None) -> ResultsSpec:
    return ResultsSpec.read({"kind": "stdout", "format": kind, "remapped_columns": columns})


def column(output: str, name: str, *skipped: str) -> dict[str, Any]:
    return {"output_name": output, "input_name": name, "skip_list": list(skipped) or None}


def document(kind: str, content: str | bytes, *columns: dict[str, Any]) -> Document:
    source = io.BytesIO(content if isinstance(content, bytes) else content.encode())
    return Document(wanted(kind, list(columns) or None), source)


def read_csv(content: str | bytes, *columns: dict[str, Any]) -> Any:
    return json.loads(b"".join(document("csv", content, *columns)))


def read_json(content: str | bytes, *columns: dict[str, Any]) -> Any:
    return json.loads(b"".join(document("json", content, *columns)))


def refused(kind: str, content: str | bytes, *columns: dict[str, Any]) -> str:
    with pytest.raises(Error) as caught:
        b"".join(document(kind, content, *columns))
    assert caught.value.code is Code.BAD_OUTPUT
    return caught.value.message


# CSV


def test_csv_rows() -> None:
    """Each line becomes an object with the column names as keys."""
    assert read_csv("a,b\n1,2\n3,4\n") == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]


def test_csv_counts() -> None:
    """Rows and columns are known when all was read."""
    found = document("csv", "a,b,c\n1,x,2\n3,NA,4\n", column("B", "b", "NA"), column("A", "a"))

    b"".join(found)

    assert (found.rows, found.columns) == (1, ("B", "A"))


def test_one_row_a_line() -> None:
    """The JSON list has one row a line."""
    written = b"".join(document("csv", "a\n1\n2\n"))

    assert written == b'[\n{"a":"1"},\n{"a":"2"}\n]'


def test_byte_order_mark() -> None:
    """A byte order mark is eaten, also before a quoted column name."""
    assert read_csv(b'\xef\xbb\xbf"a"\n1\n') == [{"a": "1"}]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends(end) -> None:
    """Lines may end in LF, CRLF or CR, the last one in nothing."""
    assert read_csv(f"a,b{end}1,2{end}3,4") == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]


@pytest.mark.parametrize("text", ["x\ny", "x\r\ny", "\n", 'say "hi"', "a,b", " a ", "é 漢 😀", "\u2028", "\x0b"])
def test_quoted_text(text) -> None:
    """Quoted newlines, quotes, commas and spaces arrive as they are."""
    quoted = text.replace('"', '""')

    assert read_csv(f'a,b\n"{quoted}",1\n') == [{"a": text, "b": "1"}]


@pytest.mark.parametrize("text", ["007", "1.50", "1e5", "NA", "TRUE", "null", "", "NaN", "2024-01-01", "-"])
def test_text_stays_text(text) -> None:
    """Every value stays the text it is."""
    assert read_csv(f"a,b\n{text},1\n") == [{"a": text, "b": "1"}]


def test_nul_character() -> None:
    """A NUL character is a character like another."""
    assert read_csv(b"a\nx\0y\n") == [{"a": "x\0y"}]


def test_key_order() -> None:
    """Keys stand in the order of remapped_columns."""
    [row] = read_csv("a,b,c\n1,2,3\n", column("z", "c"), column("y", "a"))

    assert list(row.items()) == [("z", "3"), ("y", "1")]


def test_all_columns_under_their_own_names() -> None:
    """Without remapped_columns all columns come, in the order of the file."""
    [row] = read_csv("b,a,c\n1,2,3\n")

    assert list(row.items()) == [("b", "1"), ("a", "2"), ("c", "3")]


def test_one_column_twice() -> None:
    """A column may be given under two names."""
    assert read_csv("a\n1\n", column("x", "a"), column("y", "a")) == [{"x": "1", "y": "1"}]


@pytest.mark.parametrize(
    "name", ["", 'say "hi"', "back\\slash", "new\nline", "é", "a b", "%s", "c1", "__class__", "self"]
)
def test_any_column_name(name) -> None:
    """A column may have any name, the empty one that R writes for row names included."""
    quoted = name.replace('"', '""')

    assert read_csv(f'c0,"{quoted}"\n1,2\n') == [{"c0": "1", name: "2"}]


def test_skip_list() -> None:
    """A row is left out when a value is exactly in its column's skip list."""
    rows = read_csv("a,b\n1,NA\nNA,2\n,3\n4,5\n", column("a", "a", "NA", ""), column("b", "b", "-"))

    assert rows == [{"a": "1", "b": "NA"}, {"a": "4", "b": "5"}]


@pytest.mark.parametrize("text", ["NA ", " NA", "na", "NAN", "N", "N/A"])
def test_skip_list_is_exact(text) -> None:
    """What only resembles a skipped value is kept."""
    assert read_csv(f"a\n{text}\n", column("a", "a", "NA")) == [{"a": text}]


def test_all_rows_skipped() -> None:
    """If all rows are left out, the list is empty."""
    found = document("csv", "a\nNA\nNA\n", column("a", "a", "NA"))

    assert b"".join(found) == b"[]"
    assert found.rows == 0


def test_missing_column() -> None:
    """A named column that is not in the file fails, and the message says which columns are."""
    assert refused("csv", "a,b\n1,2\n", column("x", "Plate"), column("y", "a")) == (
        'The results have no column "Plate"; they have "a", "b".'
    )


def test_missing_column_of_many() -> None:
    """Of very many columns the message names some and counts the rest."""
    message = refused("csv", ",".join(f"c{number}" for number in range(1_000)) + "\n", column("x", "Plate"))

    assert message.endswith(" and 960 more.")


def test_short_row() -> None:
    """A row that is too short has empty text for what is missing."""
    assert read_csv("a,b,c\n1\n1,2\n") == [{"a": "1", "b": "", "c": ""}, {"a": "1", "b": "2", "c": ""}]


def test_skip_list_and_short_row() -> None:
    """What is missing in a short row is empty text for the skip list, too."""
    assert read_csv("a,b\n1\n1,2\n", column("b", "b", "")) == [{"b": "2"}]


def test_long_row() -> None:
    """A row that is too long fails with its line number."""
    message = refused("csv", 'a,b\n1,"x\ny"\n1,2\n1,2,3\n1,2\n')

    assert message == "The results have 3 values in line 5, for 2 columns."


@pytest.mark.parametrize("content", ["\n\na,b\n\n1,2\n\n", "\r\na,b\r\n\r\n1,2\r\n"])
def test_blank_lines(content) -> None:
    """Blank lines are no rows, neither before the column names nor after."""
    assert read_csv(content) == [{"a": "1", "b": "2"}]


def test_latin_1() -> None:
    """Text that is not UTF-8 fails with the byte and the line after which it stands."""
    message = refused("csv", "a\nCafé\n".encode("latin-1"))

    assert message == "The results are not UTF-8 after line 0: byte 0xe9 (invalid continuation byte)."


def test_no_rows() -> None:
    """A file of column names only has no rows, but columns."""
    found = document("csv", "a,b\n")

    assert b"".join(found) == b"[]"
    assert (found.rows, found.columns) == (0, ("a", "b"))


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf"])
def test_empty_csv(content) -> None:
    """A file without a line of column names fails as empty."""
    assert refused("csv", content).startswith("The results are empty")


def test_duplicate_header() -> None:
    """Two columns of one name fail: one would be lost."""
    assert refused("csv", "a,b,a\n1,2,3\n") == 'The results have more than one column "a".'


def test_duplicate_header_that_nobody_wants() -> None:
    """Two columns of one name do not matter when neither is wanted."""
    assert read_csv("a,b,a\n1,2,3\n", column("b", "b")) == [{"b": "2"}]


@pytest.mark.parametrize("content", ['a\n"x', 'a\n"x"y\n', 'a,b\n1,"x\ny'])
def test_bad_quotes(content) -> None:
    """A quote that does not close, or closes too early, fails with the line number."""
    assert refused("csv", content).startswith("The results are not CSV at line ")


def test_long_field() -> None:
    """A field longer than the csv module's own limit is no problem."""
    assert read_csv("a\n" + "x" * 1_000_000 + "\n") == [{"a": "x" * 1_000_000}]


def test_field_beyond_the_limit(monkeypatch) -> None:
    """A field that goes on over lines, longer than the limit, fails."""
    monkeypatch.setattr(results, "MAX_LINE_CHARACTERS", 100)

    assert "field larger than field limit (100)" in refused("csv", 'a\n"' + "x\n" * 60 + '"\n')


def test_file_without_newlines(monkeypatch) -> None:
    """A line longer than the limit fails before more of it is read."""
    monkeypatch.setattr(results, "MAX_LINE_CHARACTERS", 1_000)
    source = io.BytesIO(b"x" * 1_000_000)

    with pytest.raises(Error, match="a line is longer than 1,000 characters"):
        b"".join(Document(wanted("csv"), source))

    assert source.closed or source.tell() < 20_000


def test_many_batches() -> None:
    """Rows keep their order and number over many batches."""
    rows = 30_000
    content = "n,text\n" + "".join(f"{n},{'x' * (n % 50)}\n" for n in range(rows))

    assert [int(row["n"]) for row in read_csv(content, column("n", "n"))] == list(range(rows))


def test_very_many_columns() -> None:
    """A table of very many columns, as in gene expression, is read."""
    names = [f"gene{number}" for number in range(20_000)]

    [row] = read_csv(",".join(names) + "\n" + ",".join("1" for _ in names) + "\n")

    assert list(row) == names


def test_short_rows_count_as_they_become() -> None:
    """Short rows of a wide table are turned into JSON a few at a time, as whole ones are."""
    header = ",".join(f"c{number}" for number in range(results.BATCH_CHARACTERS // 4)) + "\n"

    pieces = list(document("csv", header + "1\n" * 100))

    assert max(piece.count(b"{") for piece in pieces) <= 5


class Endless(io.RawIOBase):
    """A file of ``size`` bytes that repeats one piece behind a beginning, and is never held in memory."""

    def __init__(self, beginning: bytes, piece: bytes, size: int, end: bytes = b"") -> None:
        times = (size - len(beginning)) // len(piece)
        self._pieces = itertools.chain([beginning], itertools.repeat(piece, times), [end])
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest and (piece := next(self._pieces, None)) is not None:
            self._rest = piece
        taken = self._rest[: len(buffer)]
        buffer[: len(taken)] = taken
        self._rest = self._rest[len(taken) :]
        return len(taken)


@pytest.mark.parametrize(
    ("kind", "beginning", "piece", "end"),
    [
        ("csv", b"a,b\n", b"12345678901,xxxxxxxxxxxxxxxxxx\n" * 300, b""),
        ("csv", b"a,b\n", b"1," + b"x" * 400_000 + b"\n", b""),
        ("csv", b",".join(b"c%d" % n for n in range(3_000)) + b"\n", b",".join([b"1"] * 3_000) + b"\n", b""),
        ("json", b"[{}", b',{"a":"xxxxxxxxxxxxxxxxxxxxx"}' * 300, b"]"),
        ("json", b"[{}", b',{"a":"' + b"x" * 100_000 + b'"}', b"]"),
        ("json", b"[", b" " * 10_000, b"]"),
    ],
    ids=["csv", "csv, long fields", "csv, wide", "json", "json, long items", "json, space"],
)
def test_flat_memory(kind, beginning, piece, end) -> None:
    """Memory does not grow with the size of the results, be it many rows, many columns or long values."""

    def peak(size: int) -> int:
        source = io.BufferedReader(Endless(beginning, piece, size, end))
        tracemalloc.start()
        for _ in Document(wanted(kind), source):
            pass
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    assert peak(3_000_000) < peak(1_200_000) * 1.3 + 100_000


ROWS = st.lists(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), min_size=3, max_size=3))


@given(ROWS, st.sampled_from([("\r\n", csv.QUOTE_MINIMAL), ("\r\n", csv.QUOTE_ALL), ("\n", csv.QUOTE_ALL)]))
def test_written_by_csv_writer(rows, form) -> None:
    """What Python's csv.writer wrote reads back to the same rows."""
    end, quoting = form
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator=end, quoting=quoting).writerows([["a", "b", "c"], *rows])

    assert [list(row.values()) for row in read_csv(file.getvalue())] == rows


@given(
    ROWS,
    st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=1), min_size=1, max_size=2),
)
def test_skipping_is_filtering(rows, skipped) -> None:
    """Skip lists leave out exactly the rows with such a value."""
    file = io.StringIO(newline="")
    csv.writer(file).writerows([["a", "b", "c"], *rows])

    found = read_csv(file.getvalue(), column("x", "b", *skipped), column("y", "a"))

    assert found == [{"x": row[1], "y": row[0]} for row in rows if row[1] not in skipped]


# JSON


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "[{}]",
        '{"a": [1, {"b": null}]}',
        '"text"',
        "5",
        "-1.5e-3",
        "true",
        "null",
        '[1, "a", null, [], {}]',
        ' \n\t[ {"a" : 1} ,\r\n {"b" : 2} ] \n',
        '{"é": "漢 😀 \\u0000 \\ud83d\\ude00 \\u2028"}',
    ],
)
def test_json_as_it_is(content) -> None:
    """A JSON document comes as it is."""
    assert read_json(content) == json.loads(content)


def test_json_byte_order_mark() -> None:
    """A byte order mark before JSON is eaten."""
    assert read_json(b"\xef\xbb\xbf[1]") == [1]


@pytest.mark.parametrize("content", ["[NaN, Infinity, -Infinity]", '[{"a": NaN}]', '{"a": [-Infinity]}', "NaN"])
def test_json_without_numbers(content) -> None:
    """NaN and Infinity become null."""
    assert read_json(content) == json.loads(content, parse_constant=lambda _: None)


@pytest.mark.parametrize("number", [2**53 + 1, 2**64, -(2**70), 10**400])
@pytest.mark.parametrize("form", ["[%d]", '{"a": %d}', "%d"])
def test_json_big_integers(number, form) -> None:
    """Whole numbers stay exact, however big."""
    assert b"".join(document("json", form % number)).decode().count(str(number)) == 1


def test_json_integer_of_thousands_of_digits() -> None:
    """A whole number beyond what Python reads fails as bad output."""
    assert "digits" in refused("json", "[" + "1" * 5_000 + "]")


def test_json_counts() -> None:
    """Rows and columns of a list of objects are known, columns in the order they first come."""
    found = document("json", '[{"b": 1}, {"a": 2, "b": 3}]')

    b"".join(found)

    assert (found.rows, found.columns) == (2, ("b", "a"))


@pytest.mark.parametrize("content", ["{}", "[1]", "[{}, 1]", "5"])
def test_json_that_is_no_rows(content) -> None:
    """What is not a list of objects has neither rows nor columns."""
    found = document("json", content)

    b"".join(found)

    assert (found.rows, found.columns) == (None, None)


@pytest.mark.parametrize(("names", "columns"), [("ab", ("a", "b")), ("abc", None)])
def test_json_of_too_many_columns(monkeypatch, names, columns) -> None:
    """A list of objects with more names than the limit has neither rows nor columns, and comes as it is."""
    monkeypatch.setattr(results, "MAX_COLUMNS", 2)
    items = [{name: 1} for name in names * 2]
    found = document("json", json.dumps(items))

    assert json.loads(b"".join(found)) == items
    assert (found.rows, found.columns) == (columns and len(items), columns)


def test_json_remapped() -> None:
    """A list of objects is remapped: the named columns in their order, null for what an object lacks."""
    rows = read_json('[{"a": 1, "b": {"c": 2}}, {"b": "x"}]', column("B", "b"), column("A", "a"))

    assert [list(row.items()) for row in rows] == [[("B", {"c": 2}), ("A", 1)], [("B", "x"), ("A", None)]]


@pytest.mark.parametrize(
    ("value", "skipped"), [('"NA"', "NA"), ("5", "5"), ("true", "true"), ("null", "null"), ("[1]", "[1]")]
)
def test_json_skip_list(value, skipped) -> None:
    """An object is left out when a value is exactly in the skip list; what is no text, as JSON writes it."""
    assert read_json(f'[{{"a": {value}}}, {{"a": "x"}}]', column("a", "a", skipped)) == [{"a": "x"}]


def test_json_remapped_counts() -> None:
    """Of a remapped list, what was skipped does not count."""
    found = document("json", '[{"a": "NA"}, {"a": "x"}]', column("A", "a", "NA"))

    b"".join(found)

    assert (found.rows, found.columns) == (1, ("A",))


@pytest.mark.parametrize("content", ["{}", "5", '"x"'])
def test_json_that_cannot_be_remapped(content) -> None:
    """What is no list cannot be remapped."""
    assert "not a JSON list of objects" in refused("json", content, column("a", "a"))


def test_json_item_that_cannot_be_remapped() -> None:
    """An item that is no object cannot be remapped, and its number is said."""
    assert "Item 1" in refused("json", '[{"a": 1}, 2]', column("a", "a"))


@pytest.mark.parametrize(
    "content",
    [
        "", "\n", "{", '{"a"', '{"a": }', "[1 2]", "[1,]", "[,1]", "[1", "[1,", "[", "]", "[1]]", "[1] x", "{} {}",
        "nul", "tru", "-", "1.", "[1.]", "01", "'a'", '"a', '"\\x"', '"\\u12', '"a\nb"', "[1, ]", '{"a": 1,}',
        "+1", "Inf", "/* a */ 1", '{"a" 1}', "{1: 2}",
    ],
)  # fmt: skip
def test_malformed_json(content) -> None:
    """JSON that is malformed, truncated or followed by something fails with the place."""
    assert refused("json", content).startswith("The results are not JSON that can be read (character ")


def test_place_of_a_mistake() -> None:
    """The place of a mistake is counted from the beginning of the file, in characters."""
    content = "[" + '"é", ' * 100_000 + "x]"

    assert f"(character {len(content) - 2})" in refused("json", content)


def test_mistake_in_a_large_file(monkeypatch) -> None:
    """A mistake is found where it is, and not taken for an item that is too large."""
    monkeypatch.setattr(results, "MAX_JSON_CHARACTERS", 200_000)

    assert "Expecting value" in refused("json", '[{"a": tru}' + ', {"a": true}' * 100_000 + "]")


def test_json_not_utf8() -> None:
    """JSON in another encoding fails as such."""
    assert "not UTF-8" in refused("json", '["é"]'.encode("latin-1"))


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 100_000, "[" + "[" * 5_000 + "]" * 5_000 + "]"])
def test_deep_json(content) -> None:
    """JSON nested too deeply fails as such."""
    assert "nested too deeply" in refused("json", content)


@pytest.mark.parametrize("content", ['"\\ud800"', '["\\udc00"]', '{"\\ud800": 1}', '[{"a": ["x\\ud800"]}]'])
def test_half_a_surrogate_pair(content) -> None:
    """Half a surrogate pair, which cannot be written in UTF-8, fails as such."""
    assert "half a surrogate pair" in refused("json", content)


def test_half_a_surrogate_pair_in_a_remapped_list() -> None:
    """The same in a list that is remapped, also where a skip list looks at it."""
    assert "half a surrogate pair" in refused("json", '[{"a": ["\\ud800"]}]', column("a", "a", "NA"))


@pytest.mark.parametrize(
    "item", ["1.5", "-2.5e-10", "1e+5", "12", "true", "null", "NaN", "-Infinity", '"\\u00e9\\\\"',
     '"\\ud83d\\ude00"', '{"a": [1.5]}', "[[], {}]", '"x\\""'],
)  # fmt: skip
@pytest.mark.parametrize("separator", [",", " , "])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
def test_items_across_reads(monkeypatch, item, separator, size) -> None:
    """An item that begins in one read and ends in another is read whole, wherever it is cut."""
    monkeypatch.setattr(results, "READ_CHARACTERS", size)
    expected = json.loads(item, parse_constant=lambda _: None)

    assert read_json("[" + separator.join([item] * 40) + "]") == [expected] * 40


def test_item_larger_than_a_read() -> None:
    """An item larger than one read is read whole."""
    assert read_json(json.dumps([{"a": "x" * 300_000}, 2])) == [{"a": "x" * 300_000}, 2]


@pytest.mark.parametrize("form", ['[1, "%s"]', '{"a": "%s"}', '"%s"'])
def test_item_larger_than_the_limit(monkeypatch, form) -> None:
    """An item, or a document that is no list, larger than the limit fails with the limit."""
    monkeypatch.setattr(results, "MAX_JSON_CHARACTERS", 100_000)

    assert "longer than 100,000 characters" in refused("json", form % ("x" * 1_000_000))


def test_list_larger_than_the_limit(monkeypatch) -> None:
    """The limit is for one item: a list may be of any length."""
    monkeypatch.setattr(results, "MAX_JSON_CHARACTERS", 100_000)

    assert len(read_json(json.dumps(["x" * 1_000] * 1_000))) == 1_000


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=20,
)


@given(JSON, st.sampled_from([None, 1]), st.booleans(), st.integers(1, 30))
def test_json_round_trip(value, indent, ascii_only, size) -> None:
    """Any JSON document, however it is written and in whatever pieces it is read, comes back as it was."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "READ_CHARACTERS", size)

        assert read_json(json.dumps(value, indent=indent, ensure_ascii=ascii_only)) == value


PIECES = st.sampled_from(
    [b"[", b"]", b"{", b"}", b",", b":", b'"', b'"a"', b"1", b".", b"e", b"-", b"\n", b"\r", b" ", b"true",
     b"NaN", b"\\", b"\xff", b"\xc3", b"\xef\xbb\xbf", b"\0", b"\\ud800", b"a,b"]
)  # fmt: skip
ANY_BYTES = st.binary(max_size=50) | st.lists(PIECES, max_size=15).map(b"".join)


@settings(max_examples=500)
@given(st.sampled_from(["csv", "json"]), ANY_BYTES, st.booleans())
def test_any_bytes(kind, content, is_remapped) -> None:
    """Whatever a script wrote becomes valid JSON, or an Error of bad output."""
    columns = [column("x", "a", "1")] if is_remapped else []
    try:
        written = b"".join(document(kind, content, *columns))
    except Error as error:
        code = error.code
    else:
        code = Code.BAD_OUTPUT
        assert json.dumps(json.loads(written), allow_nan=False)

    assert code is Code.BAD_OUTPUT


# Files of the run folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "secret.txt").write_text("secret")
    inside = tmp_path / "results-1"
    inside.mkdir()
    return inside


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(os.fsencode(name))


def kept(folder: Path, *patterns: str) -> dict[str, str]:
    return results.attachments(folder, [Glob.parse(pattern) for pattern in patterns])


def not_opened(folder: Path, name: str) -> str:
    with pytest.raises(Error) as caught:
        results.open_inside(folder, name)
    assert caught.value.code is Code.BAD_OUTPUT
    return caught.value.message


@pytest.mark.parametrize("name", ["a.csv", "out/a.csv", "./out/../a.csv"])
def test_open_inside(folder, name) -> None:
    """A file in the run folder or below is opened for reading."""
    write(folder, "a.csv", "out/a.csv")

    with results.open_inside(folder, name) as source:
        assert source.read().endswith(b"a.csv")


@pytest.mark.parametrize("name", ["../secret.txt", "out/../../secret.txt", "/etc/passwd"])
def test_path_that_leads_outside(folder, name) -> None:
    """A path that leads outside is refused."""
    (folder / "out").mkdir()

    assert not_opened(folder, name) == f'"{name}" leads outside the run folder.'


@pytest.mark.parametrize("target", ["../secret.txt", "/etc/passwd", "../nowhere"])
def test_link_that_leads_outside(folder, target) -> None:
    """A symbolic link that leads outside is refused."""
    (folder / "a.csv").symlink_to(target)

    assert "leads outside" in not_opened(folder, "a.csv")


def test_folder_that_leads_outside(folder) -> None:
    """A file below a linked folder outside is refused."""
    (folder / "out").symlink_to("..")

    assert "leads outside" in not_opened(folder, "out/secret.txt")


def test_neighbour_with_a_longer_name(folder) -> None:
    """A folder whose name only begins like the run folder's is outside."""
    write(folder.with_name("results-12"), "a.csv")

    assert "leads outside" in not_opened(folder, "../results-12/a.csv")


def test_link_that_stays_inside(folder) -> None:
    """A symbolic link inside the run folder is followed."""
    write(folder, "out/real.csv")
    (folder / "a.csv").symlink_to("out/real.csv")

    with results.open_inside(folder, "a.csv") as source:
        assert source.read() == b"out/real.csv"


def test_run_folder_behind_a_link(folder) -> None:
    """The run folder itself may be reached by a link."""
    write(folder, "a.csv")
    folder.with_name("link").symlink_to(folder)

    with results.open_inside(folder.with_name("link"), "a.csv") as source:
        assert source.read() == b"a.csv"


def test_fifo(folder) -> None:
    """A FIFO is refused, and without waiting for a writer."""
    os.mkfifo(folder / "a.csv")

    assert not_opened(folder, "a.csv") == '"a.csv" is not a regular file.'


@pytest.mark.parametrize("name", ["out", ".", "out/.."])
def test_directory(folder, name) -> None:
    """A directory is refused."""
    (folder / "out").mkdir()

    assert "is not a regular file" in not_opened(folder, name)


@pytest.mark.parametrize("name", ["a.csv", "out/a.csv"])
def test_missing_file(folder, name) -> None:
    """A file that was not written is refused as such."""
    assert not_opened(folder, name) == f'"{name}" was not written.'


def test_link_to_itself(folder) -> None:
    """A link that leads to itself is refused."""
    (folder / "a.csv").symlink_to("a.csv")

    assert "cannot be read" in not_opened(folder, "a.csv")


def test_file_used_as_a_folder(folder) -> None:
    """A path through a file is refused."""
    write(folder, "a")

    assert "cannot be read" in not_opened(folder, "a/b")


@pytest.mark.skipif(ROOT, reason="root may read everything")
def test_unreadable_file(folder) -> None:
    """A file without the right to read it is refused with the reason."""
    write(folder, "a.csv")
    (folder / "a.csv").chmod(0)

    assert "Permission denied" in not_opened(folder, "a.csv")


def test_message_about_a_strange_name(folder) -> None:
    """A message about a name that is not UTF-8 can be written."""
    message = not_opened(folder, os.fsdecode(b"\xff.csv"))

    assert message == '"\\xff.csv" was not written.'


# Attachments


def test_no_patterns(folder) -> None:
    """Without patterns there are no attachments."""
    write(folder, "a.pdf")

    assert kept(folder) == {}


def test_attachments_by_base_name(folder) -> None:
    """Each file that a pattern matches is kept once, under its base name."""
    write(folder, "a.pdf", "out/b.pdf", "c.csv", "d.txt")

    assert kept(folder, "*.pdf", "a.*", "out/*", "c.csv") == {
        "a.pdf": "a.pdf",
        "b.pdf": "out/b.pdf",
        "c.csv": "c.csv",
    }


def test_two_stars(folder) -> None:
    """** matches folders of any depth, none included."""
    write(folder, "a.pdf", "x/b.pdf", "x/y/c.pdf")

    assert set(kept(folder, "**/*.pdf")) == {"a.pdf", "b.pdf", "c.pdf"}


def test_colliding_names(folder) -> None:
    """Files of one base name are kept under their relative paths, the others under their base names."""
    write(folder, "a.pdf", "x/a.pdf", "x/b.pdf", "y/z/a.pdf")

    assert kept(folder, "**") == {
        "a.pdf": "a.pdf",
        "x/a.pdf": "x/a.pdf",
        "b.pdf": "x/b.pdf",
        "y/z/a.pdf": "y/z/a.pdf",
    }


def test_collision_with_a_file_that_is_not_kept(folder) -> None:
    """A file that no pattern matches takes no name away."""
    write(folder, "a.pdf", "x/a.pdf")

    assert kept(folder, "x/*.pdf") == {"a.pdf": "x/a.pdf"}


def test_hidden_files(folder) -> None:
    """Hidden files are kept only where the pattern says the dot."""
    write(folder, ".hidden", ".git/config", "seen")

    assert set(kept(folder, "**")) == {"seen"}
    assert set(kept(folder, ".*", ".git/*")) == {".hidden", "config"}


def test_only_files(folder) -> None:
    """Folders, FIFOs and broken links are no attachments."""
    (folder / "a.pdf").mkdir()
    os.mkfifo(folder / "b.pdf")
    (folder / "c.pdf").symlink_to("nowhere.pdf")
    (folder / "d.pdf").symlink_to("d.pdf")

    assert kept(folder, "*.pdf") == {}


def test_links_that_lead_outside(folder) -> None:
    """A link to a file outside is no attachment, one to a file inside is."""
    write(folder, "real.txt")
    (folder / "outside.txt").symlink_to("../secret.txt")
    (folder / "inside.txt").symlink_to("real.txt")

    assert set(kept(folder, "*.txt")) == {"real.txt", "inside.txt"}


def test_linked_folders_are_not_followed(folder) -> None:
    """A link to a folder is not followed, be it inside, outside or to the run folder itself."""
    write(folder, "out/a.txt")
    (folder / "inside").symlink_to("out")
    (folder / "outside").symlink_to("..")
    (folder / "loop").symlink_to(".")

    assert kept(folder, "**") == {"a.txt": "out/a.txt"}


def test_names_that_are_not_utf8(folder) -> None:
    """A name that is not UTF-8 is made printable; its path still opens the file."""
    write(folder, os.fsdecode(b"caf\xe9.txt"))

    [(name, path)] = kept(folder, "*.txt").items()

    assert name == "caf\\xe9.txt"
    with results.open_inside(folder, path) as source:
        assert source.read() == b"caf\xe9.txt"


def test_attachments_are_sorted(folder) -> None:
    """Attachments come in the order of their paths."""
    write(folder, "b", "a/z", "c")

    assert list(kept(folder, "**").values()) == ["a/z", "b", "c"]


def test_very_deep_folder(folder) -> None:
    """A folder that is deeper than Python's recursion goes hides no attachment and does no harm."""
    depth = 1_500
    path = folder
    for _ in range(depth):
        path /= "d"
        path.mkdir()
    write(path, "a.txt")
    write(folder, "b.txt")

    found = kept(folder, "**/*.txt")

    (path / "a.txt").unlink()
    for _ in range(depth):  # pytest could not remove it
        path.rmdir()
        path = path.parent
    assert found == {"a.txt": "d/" * depth + "a.txt", "b.txt": "b.txt"}
