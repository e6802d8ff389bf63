"""Bad input, met well: whatever a script does, its task ends in a clear sentence and the worker goes on."""

import base64
import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.end_to_end.processes import Server, Site, shell_config, until

FOR_EVER = "while :; do sleep 0.05; done"

LIMIT = 200_000
"""How much a script may say here."""

MIB = 1 << 20


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Site(tmp_path_factory.mktemp("bad"), shell_config(max_output_bytes=LIMIT)) as site:
        yield site


@pytest.fixture(scope="module")
def server_and_worker(site: Site) -> tuple[Server, list[int]]:
    server = site.up("--concurrency", "2")
    server.wait_until_ready()
    return server, _workers(site)


@pytest.fixture
def server(site: Site, server_and_worker: tuple[Server, list[int]]) -> Iterator[Server]:
    """One server and one worker for all tests here: after each, the same two still work and nothing is left."""
    server, workers = server_and_worker
    yield server
    assert server.run("echo well")["state"] == "succeeded"
    assert _workers(site) == workers
    until(lambda: not site.run_folders())
    assert not _scripts(site), _scripts(site)


def _workers(site: Site) -> list[int]:
    return [pid for pid, command in site.processes().items() if "runner-worker" in command]


def _scripts(site: Site) -> list[str]:
    """What is neither server, worker, guardian nor Valkey."""
    known = ("script_runner", "guardian", "valkey-server")
    return [command for command in site.processes().values() if not any(word in command for word in known)]


def failed(document: dict[str, Any]) -> str:
    """The error of a task that failed, which tells nothing of the server's folders."""
    assert (document["status"], document["state"]) == ("failed", "failed"), document
    error = str(document["error"])
    assert "Traceback" not in error
    assert "/work" not in error
    assert "runs/results-" not in error
    return error


# How a script ends


def test_a_script_that_exits_non_zero(server: Server) -> None:
    """The exit code, the last lines of stderr, and the files it left all the same."""
    document = server.run("echo half > $RUNDIR/files/half; seq 100 >&2; exit 42")

    assert failed(document).startswith("The script ended with exit code 42.\n")
    assert document["error"].endswith("\n99\n100")
    assert (document["exit_code"], list(document["attachments"])) == (42, ["half"])
    assert len(document["error"]) < 5_000


@pytest.mark.parametrize(("name", "number"), [("KILL", 9), ("SEGV", 11), ("TERM", 15)])
def test_a_script_that_is_killed(server: Server, name: str, number: int) -> None:
    """The signal by name, and as a negative exit code."""
    document = server.run(f"kill -{name} $$; {FOR_EVER}")

    assert f"SIG{name}" in failed(document)
    assert document["exit_code"] == -number


def test_a_script_that_says_nothing_and_fails(server: Server) -> None:
    """The sentence alone."""
    assert failed(server.run("exit 3")) == "The script ended with exit code 3."


@pytest.mark.parametrize("stream", ["", ">&2"])
def test_a_script_that_floods_its_output(server: Server, stream: str) -> None:
    """More than max_output_bytes: stopped, the limit named, and what was kept of it is bounded."""
    document = server.run(f"exec yes flood {stream}")

    assert "200,000 bytes" in failed(document)
    assert "max_output_bytes" in document["error"]


def test_a_script_that_floods_and_ends_before_anybody_looked(server: Server) -> None:
    """Too much in an instant is too much, too."""
    document = server.run(f"head -c {LIMIT + 1} /dev/zero")

    assert "200,000 bytes" in failed(document)


def test_a_script_that_says_as_much_as_it_may(server: Server) -> None:
    """Exactly max_output_bytes is well, and all of it is kept."""
    document = server.run(f"head -c {LIMIT} /dev/zero | tr '\\0' x")

    assert document["state"] == "succeeded", document
    assert server.log(document["id"]) == "x" * LIMIT


def test_a_script_that_writes_no_text(server: Server) -> None:
    """Bytes that are no UTF-8, NUL and escapes in stderr do not hurt the document."""
    document = server.run(r"printf '\377\376\000\033[31m bad \303' >&2; exit 1")

    assert " bad " in failed(document)


def test_a_script_that_closes_its_streams(server: Server) -> None:
    """Without stdin, stdout and stderr it goes on, and its end is its end."""
    document = server.run("exec 0<&- 1>&- 2>&-; sleep 0.3; test -e $RUNDIR/rows.csv")

    assert (document["state"], document["exit_code"]) == ("succeeded", 0)


def test_a_script_that_waits_for_input(server: Server) -> None:
    """Standard input is at its end from the start."""
    document = server.run("cat; test $? = 0")

    assert document["state"] == "succeeded"


@pytest.mark.parametrize(
    "child",
    [
        f"(trap '' TERM HUP INT; {FOR_EVER}) &",
        f"setsid sh -c 'trap \"\" TERM; {FOR_EVER}' &",
        f"(setsid setsid nohup sh -c 'trap \"\" TERM; {FOR_EVER}' >/dev/null 2>&1 &)",
        f"(exec 0<&- 1>&- 2>&-; cd /; {FOR_EVER}) &",
        f"for i in 1 2 3 4 5 6 7 8 9; do (for j in 1 2 3; do ({FOR_EVER}) & done; {FOR_EVER}) & done",
    ],
    ids=["ignores TERM", "own session", "daemon", "closed streams", "a bush"],
)
def test_a_script_that_leaves_children_behind(site: Site, server: Server, child: str) -> None:
    """The task ends with the script's own end; children that go on are killed, wherever they went."""
    document = server.run(f"{child}\nsleep 0.2; exit 0")

    assert document["state"] == "succeeded"
    assert not _scripts(site)


def test_a_script_that_stops_itself_is_over_at_its_cancel(server: Server) -> None:
    """A stopped process takes no TERM; it ends all the same."""
    task_id = server.submit("echo ready; kill -STOP $$")
    until(lambda: "ready" in server.log(task_id))

    server.http.post(f"/task/{task_id}/cancel")

    assert server.finished(task_id)["state"] == "cancelled"


@pytest.mark.parametrize(
    ("program", "said"), [("no-such-program", "was not found"), ("./not-executable", "may not be executed")]
)
def test_a_program_that_cannot_be_started(tmp_path: Path, program: str, said: str) -> None:
    """The worker starts all the same, and every task fails with a sentence and leaves nothing."""
    with Site(tmp_path, shell_config(command=[program])) as site:
        (site.folder / "not-executable").write_text("#!/bin/sh\n")
        server = site.up()

        errors = {failed(server.run("true")) for _ in range(2)}

        assert len(errors) == 1
        assert said in errors.pop()
        assert site.run_folders() == []


# Where a script writes


def test_a_script_that_writes_outside_its_folder(server: Server) -> None:
    """What is outside the run folder is no result and no attachment."""
    document = server.run("mkdir -p ../outside; echo x > outside.txt; ln -s $PWD/outside.txt $RUNDIR/files/link")

    assert (document["state"], document["attachments"]) == ("succeeded", {})


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ("ln -s /etc/passwd rows.csv", "leads outside the run folder"),
        ("ln -s /proc/self/environ rows.csv", "leads outside the run folder"),
        ("ln -s ../../config.json rows.csv", "leads outside the run folder"),
        ("ln -s nowhere rows.csv", "was not written"),
        ("ln -s rows.csv rows.csv", "cannot be read"),
        ("mkfifo rows.csv", "is not a regular file"),
        ("mkdir rows.csv", "is not a regular file"),
        ("python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"rows.csv\")'", "cannot be read"),
        ("ln -s /dev/zero rows.csv", "leads outside the run folder"),
        (":", "was not written"),
    ],
)
def test_a_script_that_leaves_no_file_where_the_results_should_be(server: Server, made: str, said: str) -> None:
    """A link out, a FIFO, a folder, a socket or nothing: the task fails and says what is there."""
    error = failed(server.run(f"cd $RUNDIR; rm rows.csv; {made}"))

    assert "rows.csv" in error
    assert said in error
    assert "root:" not in error


def test_a_link_inside_the_run_folder_is_followed(server: Server) -> None:
    """Results may be a link to another file of the run folder."""
    document = server.run("cd $RUNDIR; mv rows.csv other.csv; ln -s other.csv rows.csv")

    assert document["results"] == [{"name": "alpha", "value": "1"}]


def test_odd_files_among_the_attachments_are_left_out(server: Server) -> None:
    """FIFOs, folders, broken links and links out are no attachments; the rest is kept."""
    document = server.run(
        "cd $RUNDIR/files; mkfifo fifo; mkdir folder; ln -s nowhere broken; ln -s /etc/passwd out;"
        " ln -s . loop; echo x > folder/kept; echo y > kept; ln -s kept inside"
    )

    assert document["state"] == "succeeded"
    kept = {name: base64.b64decode(text).decode() for name, text in document["attachments"].items()}
    assert kept == {"inside": "y\n", "files/kept": "y\n", "files/folder/kept": "x\n"}


def test_a_file_name_that_is_no_text(server: Server) -> None:
    """A name that is not UTF-8 is written with escapes, and its URL works."""
    document = server.run(r"""echo x > "$RUNDIR/files/$(printf 'a\377b')" """)

    assert list(document["attachments"]) == [r"a\xffb"]
    assert server.http.get(document["files"][0]["url"]).text == "x\n"


def test_a_run_folder_that_resists_its_removal(server: Server) -> None:
    """Folders without permissions are removed all the same."""
    document = server.run(
        "mkdir -p $RUNDIR/a/b/c; echo x > $RUNDIR/a/b/c/d; chmod -R 000 $RUNDIR/a; chmod 500 $RUNDIR"
    )

    assert document["state"] == "succeeded"


def test_a_script_that_removes_its_run_folder(server: Server) -> None:
    """Without a folder there are no results, and that is said."""
    assert "was not written" in failed(server.run("rm -rf $RUNDIR"))


def test_too_many_attachments(server: Server) -> None:
    """More files than are kept: the task fails and names the limit."""
    error = failed(server.run("cd $RUNDIR/files; seq 10001 | xargs touch"))

    assert "10,001" in error
    assert "at most 1,000" in error


# What a script writes as CSV


def csv(server: Server, text: bytes) -> dict[str, Any]:
    """The task whose script wrote these bytes as its results."""
    encoded = base64.b64encode(text).decode()
    return server.run('printf "%s" "$NAME" | base64 -d > $RUNDIR/rows.csv', name=encoded)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("\ufeffa,b\n1,2\n".encode(), [{"a": "1", "b": "2"}]),
        (b"a,b\r\n1,2\r\n", [{"a": "1", "b": "2"}]),
        (b'a,b\n"x\ny","p ""q"""\n', [{"a": "x\ny", "b": 'p "q"'}]),
        (b"a,b\n1\n\n2,3\n", [{"a": "1", "b": ""}, {"a": "2", "b": "3"}]),
        (b"a,b\n", []),
        (b"a,b\n1,2", [{"a": "1", "b": "2"}]),
        ("größe,b\n007,1e5\n".encode(), [{"größe": "007", "b": "1e5"}]),
        (b'"a""b",c\n1,2\n', [{'a"b': "1", "c": "2"}]),
        (b"a,b\nNA,\n", [{"a": "NA", "b": ""}]),
    ],
    ids=[
        "BOM",
        "CRLF",
        "quoted newlines",
        "short rows",
        "no rows",
        "no last newline",
        "text",
        "odd name",
        "empty",
    ],
)
def test_csv_that_is_odd_but_well(server: Server, text: bytes, rows: list[dict[str, str]]) -> None:
    """BOM, CRLF, quoted newlines, short rows, no rows: read as they are meant, every value as text."""
    assert csv(server, text)["results"] == rows


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "empty"),
        (b"\n\n", "empty"),
        (b"a,b\n1,2\n1,2,3\n", "3 values in line 3, for 2 columns"),
        ("a,b\nMünchen,1\n".encode("latin-1"), "not UTF-8"),
        (b'a,b\n"1,2\n', "not CSV at line"),
        (b'a,b\n"1"x,2\n', "not CSV at line 2"),
        (b"a,a\n1,2\n", 'more than one column "a"'),
    ],
    ids=["0 bytes", "blank lines", "long row", "Latin-1", "open quote", "text after a quote", "doubled column"],
)
def test_csv_that_cannot_be_read(server: Server, text: bytes, said: str) -> None:
    """0 bytes, ragged rows, Latin-1, broken quotes: the task fails and says where."""
    assert said in failed(csv(server, text))


def test_csv_with_a_nul_is_either_kept_or_refused(server: Server) -> None:
    """A NUL character arrives as it is, or the task fails and says so; nothing breaks."""
    document = csv(server, b"a,b\nx\0y,1\n")

    assert document.get("results") == [{"a": "x\0y", "b": "1"}] or "line" in failed(document)


def test_csv_with_a_line_without_end(server: Server) -> None:
    """A file of one huge line fills no memory: the task fails and says so."""
    document = server.run("(echo a; head -c 40000000 /dev/zero | tr '\\0' x) > $RUNDIR/rows.csv")

    assert "longer than" in failed(document)


def test_csv_without_a_named_column(tmp_path: Path) -> None:
    """A column that the configuration names and the file has not: which, and which there are."""
    results = {
        "kind": "stdout",
        "format": "csv",
        "remapped_columns": [{"output_name": name, "input_name": name} for name in ("Plate", "Well")],
    }
    with Site(tmp_path, shell_config(outputs={"results": results})) as site:
        server = site.up()

        error = failed(server.run("echo Well,index; echo A01,CATC"))

    assert 'no column "Plate"' in error
    assert '"Well", "index"' in error


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not JSON"),
        ("[1,", "not JSON"),
        ("[1] 2", "more after its end"),
        ('{"a": 1', "not JSON"),
        ("[" * 5000, "not JSON"),
        ('"\\ud800"', "not Unicode"),
        ("9" * 5000, "not JSON"),
    ],
    ids=["nothing", "cut off", "two documents", "cut object", "too deep", "half a character", "huge number"],
)
def test_json_that_cannot_be_read(json_server: Server, text: str, said: str) -> None:
    """JSON on stdout that is none: the task fails and says so."""
    error = failed(json_server.run('printf "%s" "$NAME"', name=text))

    assert said in error or "nested too deeply" in error


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": NaN, "b": [Infinity, -Infinity]}', {"a": None, "b": [None, None]}),
        ("[1, 2.50, 12345678901234567890123]", [1, 2.5, 12345678901234567890123]),
        ("null", None),
        ('"text"', "text"),
        ("[]", []),
    ],
)
def test_json_is_handed_on_as_it_is(json_server: Server, text: str, value: Any) -> None:
    """Any JSON document is a result; NaN and Infinity become null, no digit of an integer is lost."""
    task = json_server.run('printf "%s" "$NAME"', name=text)

    assert task["state"] == "succeeded"
    assert json.loads(json_server.http.get(f"/task/{task['id']}").text)["results"] == value


@pytest.fixture(scope="module")
def json_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A script whose results are the JSON on its stdout."""
    config = shell_config(outputs={"results": {"kind": "stdout", "format": "json"}})
    with Site(tmp_path_factory.mktemp("json"), config) as site:
        server = site.up()
        server.wait_until_ready()
        yield server


# Disks


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of one megabyte, where the tests may make one."""
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], check=False, capture_output=True
    )
    if made.returncode != 0:
        pytest.skip("only root may mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_of_the_run_folders(tmp_path: Path) -> None:
    """A script that fills it fails, so does one that comes while it is full; both say so, then all is well."""
    with small_disk(tmp_path / "disk") as disk, Site(tmp_path, shell_config(command_rundir="disk")) as site:
        server = site.up("--concurrency", "1")
        server.wait_until_ready()

        assert "exit code" in failed(server.run("head -c 2000000 /dev/zero > $RUNDIR/big"))

        fill(disk / "rest")
        assert "No space left" in failed(server.run("true"))
        (disk / "rest").unlink()
        assert server.run("true")["state"] == "succeeded"
        until(lambda: not list(disk.glob("results-*")))


def test_a_full_disk_of_the_store(tmp_path: Path) -> None:
    """Results that cannot be kept: the task fails with a sentence; when there is room again, all is well."""
    with small_disk(tmp_path / "disk") as disk, Site(tmp_path, shell_config()) as site:
        server = site.up("--store", disk.as_uri())
        server.wait_until_ready()
        fill(disk / "rest")

        error = failed(server.run("head -c 20000 /dev/zero > $RUNDIR/files/x"))

        assert "No space left" in error
        assert server.http.get("/health").status_code == 200
        (disk / "rest").unlink()
        assert server.run("head -c 20000 /dev/zero > $RUNDIR/files/x")["state"] == "succeeded"


def fill(file: Path) -> None:
    """Take all the room that is left."""
    with file.open("wb", buffering=0) as target, contextlib.suppress(OSError):
        while True:
            target.write(b"\0" * 4096)


def test_a_base_folder_that_is_gone(tmp_path: Path) -> None:
    """Without command_rundir_base the task fails and names the key."""
    with Site(tmp_path, shell_config()) as site:
        server = site.up()
        server.wait_until_ready()
        (site.folder / "base").rename(site.folder / "elsewhere")

        assert "command_rundir_base" in failed(server.run("true"))
        (site.folder / "elsewhere").rename(site.folder / "base")
        assert server.run("true")["state"] == "succeeded"


def test_run_folders_that_cannot_be_made(tmp_path: Path) -> None:
    """A file where command_rundir should be: the task fails with a sentence."""
    with Site(tmp_path, shell_config()) as site:
        (site.folder / "runs").write_text("")
        server = site.up()
        server.wait_until_ready()

        assert "could not prepare the run" in failed(server.run("true"))


# Bodies and values


@pytest.mark.parametrize("size", [MIB + 1, 20 * MIB])
def test_a_body_over_the_limit(server: Server, size: int) -> None:
    """1 MiB and more: 413, whether or not it says its length, and the server goes on."""
    announced = server.http.post("/task", content=b" " * size)
    unannounced = server.http.post("/task", content=iter([b" " * MIB] * (size // MIB + 1)))

    assert [announced.status_code, unannounced.status_code] == [413, 413]


def test_a_body_of_just_the_limit(server: Server) -> None:
    """Exactly 1 MiB is read."""
    body = json.dumps({"code": "true"}).encode()

    answer = server.http.post(
        "/task", content=body + b" " * (MIB - len(body)), headers={"Content-Type": "application/json"}
    )

    assert answer.status_code == 202, answer.text
    assert server.finished(answer.json()["id"])["state"] == "succeeded"


def test_the_longest_value_still_runs(server: Server) -> None:
    """The longest value that is taken is one that the system takes as an argument and in the environment."""
    document = server.run("test ${#NAME} = 120000", name="x" * 120_000)

    assert document["state"] == "succeeded", document
