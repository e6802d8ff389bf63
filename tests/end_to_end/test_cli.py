"""The command line against real servers: what it prints, where, and with which exit code."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.end_to_end.processes import Server, Site, shell_config, until
from tests.servers import free_port

COMMANDS = ("up", "serve", "worker", "check", "doctor", "status", "submit", "show", "wait", "logs", "cancel")

UNKNOWN = "00000000-0000-4000-8000-000000000000"

WAIT_FOR_GO = 'until [ -e "go-$NAME" ]; do sleep 0.02; done'

CHECKED: dict[str, Any] = {
    "command": ["sh", "run.sh", "--id", "$ID", ["--season", "$SEASON"], "$CITY", "$RUNDIR/out", "$$HOME"],
    "inputs": {
        "path_args": [{"env_var_name": "ID", "path_regex": "([^/]+)"}],
        "query_args": [{"env_var_name": "SEASON", "query_var_name": "season"}],
        "body_args": [{"env_var_name": "CITY", "body_jsonpath": "$.address.city"}],
    },
    "environment": {"set": {"MODE": "fast"}, "inherit": ["PATH"]},
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Site(tmp_path_factory.mktemp("cli"), shell_config()) as site:
        yield site


@pytest.fixture(scope="module")
def server(site: Site) -> Server:
    server = site.up("--concurrency", "4")
    server.wait_until_ready()
    return server


def client(
    site: Site, server: Server, *words: str, stdin: bytes = b"", **environment: str
) -> "subprocess.CompletedProcess[str]":
    """A command of the client's side, told of the server by its environment."""
    return site.run(*words, stdin=stdin, SCRIPT_RUNNER_URL=server.url, **environment)


def body(code: str, **more: str) -> str:
    return json.dumps({"code": code, **more})


# Help


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(site: Site, command: str) -> None:
    """COMMAND --help says what it does, its options and the exit codes, on standard output."""
    done = site.run(command, "--help")

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: script-runner {command}")
    assert "exit codes:" in done.stdout


def test_the_whole_help_names_every_command(site: Site) -> None:
    """--help lists the commands, --version the version."""
    listed = site.run("--help").stdout

    assert all(f"\n    {command} " in listed for command in COMMANDS)
    assert site.run("--version").stdout.startswith("script-runner ")


@pytest.mark.parametrize("words", [(), ("fly",), ("submit", "--nonsense"), ("wait",)])
def test_a_wrong_command_line_is_exit_code_2(site: Site, words: tuple[str, ...]) -> None:
    """What is not understood is refused with the usage on standard error."""
    done = site.run(*words)

    assert (done.returncode, done.stdout) == (2, "")
    assert "usage:" in done.stderr


# Check


@pytest.fixture
def checked(tmp_path: Path) -> Iterator[Site]:
    """A site with a configuration to check; nothing is started in it."""
    with Site(tmp_path, CHECKED) as site:
        (site.config.parent / "run.sh").touch()
        yield site
        assert not site.processes()


def test_check_of_a_good_file_says_so(checked: Site) -> None:
    """Exit code 0 and one line; with --json an object."""
    done, as_json = checked.run("check"), checked.run("check", "--json")

    assert (done.returncode, done.stdout, done.stderr) == (0, "config.json is well.\n", "")
    assert json.loads(as_json.stdout) == {"config": "config.json", "ok": True, "problems": [], "cautions": []}


@pytest.mark.parametrize("words", [["sh", "there.sh"], ["sh", "-c", "no.sh"], ["sh", "$CITY"], ["env", "no.sh"]])
def test_check_takes_no_other_word_for_a_missing_script(checked: Site, words: list[str]) -> None:
    """A script that is there, code, an input, the argument of a program that is no interpreter: all is well."""
    (checked.config.parent / "there.sh").touch()
    checked.config.write_text(json.dumps({**CHECKED, "command": words}))

    assert checked.run("check").returncode == 0


@pytest.mark.parametrize("words", [["sh", "no.sh", "$CITY"], ["python3", "-u", "no.py"]])
def test_check_misses_the_script(checked: Site, words: list[str]) -> None:
    """Where the file that the interpreter is to run is not there, as in an image without it: exit code 2."""
    checked.config.write_text(json.dumps({**CHECKED, "command": words}))

    done = checked.run("check")

    assert done.returncode == 2
    assert "command: the script 'no." in done.stderr


def test_check_lists_all_mistakes_at_once(checked: Site) -> None:
    """Each mistake with its place, what came, what was expected and the nearest key; exit code 2."""
    checked.config.write_text(
        json.dumps(
            {
                "command": ["sh", "$NOTHING"],
                "comand": [],
                "debug": "yes",
                "inputs": {
                    "path_args": [{"env_var_name": "A", "path_regex": "(["}],
                    "body_args": [{"env_var_name": "A", "body_jsonpath": "address"}],
                    "query_args": [{"env_var_name": "RUNDIR", "query_var_name": "x"}],
                },
                "outputs": {"results": {"kind": "file", "format": "xml"}, "attachments": ["../*"]},
            }
        )
    )

    done = checked.run("check")

    assert (done.returncode, done.stdout) == (2, "")
    for said in (
        "script-runner: config.json has 10 mistakes.",
        "command[1]: nothing defines $NOTHING",
        "comand: unknown key; did you mean command?",
        'debug: got "yes", expected true or false',
        "inputs.path_args[0].path_regex: ",
        "inputs.body_args[0].body_jsonpath: ",
        "inputs.body_args[0].env_var_name: ",
        "inputs.query_args[0].env_var_name: ",
        "outputs.results.format: ",
        "outputs.results.input_path: ",
        "outputs.attachments[0]: ",
    ):
        assert said in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cannot be parsed"),
        (b"{", "cannot be parsed"),
        (b"[]", "expected an object"),
        (b"\xff\xfe", "expected UTF-8"),
        (b'{"command": ["sh"], "command": ["ls"]}', "twice"),
        (b"[" * 100_000, "cannot be parsed"),
        (b" " * (1 << 20) + b" ", "at most 1,048,576 bytes"),
        (b"{}", "command"),
    ],
)
def test_check_of_an_unreadable_file_is_a_sentence(checked: Site, content: bytes, said: str) -> None:
    """Empty, cut off, binary, doubled, too deep, too large: exit code 2, what is wrong, no traceback."""
    checked.config.write_bytes(content)

    done = checked.run("check")

    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_check_of_a_missing_file_says_how_to_name_one(checked: Site) -> None:
    """No file: exit code 2, --config and SCRIPT_RUNNER_CONFIG."""
    done = checked.run("check", "nothing.json")

    assert done.returncode == 2
    assert all(word in done.stderr for word in ("nothing.json", "--config", "SCRIPT_RUNNER_CONFIG"))


def test_check_of_a_program_that_is_not_there_warns(checked: Site) -> None:
    """What would make runs fail on this machine is said, with exit code 2."""
    checked.config.write_text(json.dumps({"command": ["no-such-program"], "command_rundir_base": "nowhere"}))

    done = checked.run("check")

    assert done.returncode == 2
    assert "no-such-program" in done.stderr
    assert "nowhere" in done.stderr


def test_explain_prints_exactly_what_would_run(checked: Site) -> None:
    """--explain shows argv item by item and the environment, and starts nothing."""
    done = checked.run(
        "check", "--explain", "--path", "0 76", "--query", "season=winter", "--body", '{"address":{"city":"Oz"}}'
    )

    folder = checked.folder.resolve() / "results-XXXXXXXX"
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        "argv:",
        "  [0] 'sh'",
        "  [1] 'run.sh'",
        "  [2] '--id'",
        "  [3] '0 76'",
        "  [4] '--season'",
        "  [5] 'winter'",
        "  [6] 'Oz'",
        f"  [7] '{folder}/out'",
        "  [8] '$HOME'",
        "environment:",
        "  CITY='Oz'",
        "  ID='0 76'",
        "  MODE='fast'",
        f"  RUNDIR='{folder}'",
        "  SEASON='winter'",
        "  TASK_ID='TASK-ID'",
        "  and inherited: PATH",
        f"working directory: {checked.folder.resolve()}",
    ]


def test_explain_shows_the_run_folders_that_the_operator_names(checked: Site) -> None:
    """With SCRIPT_RUNNER_RUNDIR and no command_rundir the run folder is there."""
    request = ("--path", "7", "--body", '{"address":{"city":"Oz"}}')
    done = checked.run("check", "--explain", "--json", *request, SCRIPT_RUNNER_RUNDIR="/elsewhere")

    assert json.loads(done.stdout)["environment"]["RUNDIR"] == "/elsewhere/results-XXXXXXXX"


def test_explain_as_json(checked: Site) -> None:
    """--json gives the same as an object; a group whose value is absent is left out whole."""
    done = checked.run("check", "--explain", "--json", "--path", "7", "--body", '{"address":{"city":"é"}}')

    explained = json.loads(done.stdout)
    assert explained["argv"][:5] == ["sh", "run.sh", "--id", "7", "é"]
    assert explained["environment"]["CITY"] == "é"


def test_explain_of_a_bad_request_says_what_is_wrong(checked: Site) -> None:
    """A request that the server would refuse: exit code 2 and the inputs that are missing."""
    done = checked.run("check", "--explain")

    assert (done.returncode, done.stdout) == (2, "")
    assert "ID is required" in done.stderr
    assert "CITY is required" in done.stderr


# What the original was started with


@pytest.mark.parametrize(
    ("module", "command"), [("main", "script-runner serve "), ("analysis", "script-runner worker ")]
)
def test_the_originals_modules_say_the_command_of_today(checked: Site, module: str, command: str) -> None:
    """What gunicorn, flask or celery load ends with one sentence, and with the code on which gunicorn gives up."""
    done = subprocess.run(
        [Site.python, "-c", f"import script_runner.{module}"], cwd=checked.folder, capture_output=True, check=False
    )

    assert done.returncode == 4
    assert done.stderr.decode().count("\n") == 1
    assert command in done.stderr.decode()


def test_the_originals_settings_are_taken_and_reported(site: Site) -> None:
    """A server with the original's variables starts, answers any Host, and names those without effect once."""
    variables = {"SERVER_NAME": "api.example.org", "CELERY_RESULT_BACKEND": "redis://:secret@r"}
    server = site.up(**variables)
    server.wait_until_ready()

    answer = server.http.get("/health", headers={"Host": "other.example.org"})
    server.terminate()  # the tests after this one have a server of their own on the same data
    server.wait()

    assert answer.status_code == 200
    assert server.output.count("without effect here: CELERY_RESULT_BACKEND, SERVER_NAME\n") == 1
    assert "secret" not in server.output


def test_schema_is_a_json_schema_of_the_file(checked: Site) -> None:
    """--schema prints JSON that names the keys of the configuration."""
    schema = json.loads(checked.run("check", "--schema").stdout)

    assert schema["$schema"].startswith("https://json-schema.org/")
    assert {"command", "inputs", "outputs", "timeout_seconds"} <= set(schema["properties"])


# Submit, wait, show


def test_submit_prints_the_id_alone(site: Site, server: Server) -> None:
    """Standard output has the id and nothing else, for programs to take."""
    done = client(site, server, "submit", "--body", body("true"))

    assert (done.returncode, done.stderr) == (0, "")
    assert server.finished(done.stdout.strip())["state"] == "succeeded"


def test_submit_and_wait_shows_a_table_and_the_scripts_words(site: Site, server: Server) -> None:
    """--wait shows progress on standard error, and state, rows and files on standard output; exit code 0."""
    code = "echo I am at it; echo 123 > $RUNDIR/files/n.txt"

    done = client(site, server, "submit", "--wait", "--body", body(code))

    assert done.returncode == 0
    assert "I am at it" in done.stderr
    assert "succeeded" in done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["state", "succeeded"] in lines
    assert ["name", "value"] in lines
    assert ["alpha", "1"] in lines
    assert ["(1", "rows)"] in lines or ["(1", "row)"] in lines
    assert ["n.txt", "4", "text/plain"] in lines


def test_submit_and_wait_as_json(site: Site, server: Server) -> None:
    """--json prints the task document on standard output; --quiet says nothing beside it."""
    done = client(site, server, "submit", "--wait", "--json", "--quiet", "--body", body("echo x"))

    document = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    assert (document["state"], document["results"]) == ("succeeded", [{"name": "alpha", "value": "1"}])


def test_a_task_that_failed_is_exit_code_1(site: Site, server: Server) -> None:
    """--wait of a script that fails: exit code 1 and its error."""
    done = client(site, server, "submit", "--wait", "--body", body("echo bad luck >&2; exit 7"))

    assert done.returncode == 1
    assert "exit code 7" in done.stdout
    assert "bad luck" in done.stdout


def test_a_body_from_a_file_and_from_standard_input(site: Site, server: Server, tmp_path: Path) -> None:
    """--body @FILE and --body @- are read; a file that is not there is exit code 2."""
    file = tmp_path / "body.json"
    file.write_text(body("true"))

    from_file = client(site, server, "submit", "--body", f"@{file}")
    from_input = client(site, server, "submit", "--body", "@-", stdin=body("true").encode())
    missing = client(site, server, "submit", "--body", "@nothing.json")

    assert (from_file.returncode, from_input.returncode, missing.returncode) == (0, 0, 2)
    assert "nothing.json cannot be read" in missing.stderr


def test_a_refused_submit_says_the_servers_sentence(site: Site, server: Server) -> None:
    """A 400 is exit code 2, and the sentence names the input."""
    done = client(site, server, "submit", "--body", "{}")

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("script-runner: CODE is required")


def test_show_saves_the_attachments(site: Site, server: Server, tmp_path: Path) -> None:
    """--save downloads every file, whatever its name, into the folder."""
    names = ["a b.txt", "größe.txt"]
    document = server.run("".join(f'echo "{name}" > "$RUNDIR/files/{name}";' for name in names))

    done = client(site, server, "show", document["id"], "--save", str(tmp_path / "saved"))

    assert done.returncode == 0
    assert {file.name: file.read_text() for file in (tmp_path / "saved").iterdir()} == {
        name: f"{name}\n" for name in names
    }


def test_saved_files_stay_inside_the_folder_and_do_not_overwrite_each_other(
    site: Site, server: Server, tmp_path: Path
) -> None:
    """Files of one base name in several folders are all saved, and none above the folder."""
    document = server.run(
        "cd $RUNDIR/files; mkdir one two; echo 1 > one/x.txt; echo 2 > two/x.txt; echo 3 > 'a\\..\\b'"
    )

    done = client(site, server, "show", document["id"], "--save", str(tmp_path / "saved"))

    assert done.returncode == 0
    saved = [file for file in (tmp_path / "saved").rglob("*") if file.is_file()]
    assert sorted(file.read_text() for file in saved) == ["1\n", "2\n", "3\n"]
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_show_without_an_id_lists_the_last_tasks(site: Site, server: Server) -> None:
    """A table of the newest tasks, and as JSON the list itself."""
    task_id = server.submit("true")
    server.finished(task_id)

    table, listed = client(site, server, "show"), client(site, server, "show", "--json")

    assert table.returncode == 0
    assert table.stdout.split()[0] == "id"
    assert task_id in table.stdout
    assert json.loads(listed.stdout)["tasks"][0]["id"] == task_id


def test_rows_limits_the_rows_shown(site: Site, server: Server) -> None:
    """--rows 2 shows two rows and says how many there are."""
    document = server.run("(echo n; seq 100 150) > $RUNDIR/rows.csv")

    done = client(site, server, "show", document["id"], "--rows", "2")

    assert done.stdout.splitlines()[-3:] == ["100", "101", "(51 rows)"]


def test_a_table_cannot_be_used_to_talk_to_the_terminal(site: Site, server: Server) -> None:
    """Control characters in rows and errors do not reach the terminal."""
    rows = server.run(r"printf 'n\033\n\033[31mred\007\n' > $RUNDIR/rows.csv")
    failed = server.run(r"printf '\033[31mred\007' >&2; exit 1")

    for document in (rows, failed):
        done = client(site, server, "show", document["id"])
        assert "red" in done.stdout
        assert not {"\033", "\007"} & set(done.stdout)


def test_an_unknown_task_is_exit_code_5(site: Site, server: Server) -> None:
    """An id that nobody has is one sentence, whatever is asked about it."""
    for command in ("show", "wait", "cancel"):
        done = client(site, server, command, UNKNOWN)
        assert (done.returncode, done.stdout) == (5, "")
        assert done.stderr == "script-runner: There is no such task.\n"


def test_wait_gives_up_after_its_timeout(site: Site, server: Server) -> None:
    """Wait --timeout of a task that goes on: exit code 6, and the task goes on."""
    task_id = server.submit(WAIT_FOR_GO, name="timeout")

    done = client(site, server, "wait", task_id, "--timeout", "0.3", "--quiet")

    assert done.returncode == 6
    assert task_id in done.stderr
    (server.folder / "go-timeout").touch()
    assert server.finished(task_id)["state"] == "succeeded"


def test_ctrl_c_leaves_a_waiting_client_and_not_the_task(site: Site, server: Server) -> None:
    """Ctrl-C in wait: exit code 130, how to wait again, no traceback, and the task goes on."""
    task_id = server.submit(f"echo ready; {WAIT_FOR_GO}", name="ctrl-c")
    waiting = site.start("wait", task_id, "--url", server.url)
    waiting.wait_for_output("ready")

    waiting.signal(signal.SIGINT)

    assert waiting.wait() == 130
    assert f"script-runner wait {task_id}" in waiting.output
    assert "Traceback" not in waiting.output
    (server.folder / "go-ctrl-c").touch()
    assert server.finished(task_id)["state"] == "succeeded"


def test_cancel_asks_a_running_task_to_stop(site: Site, server: Server) -> None:
    """Cancel prints id and state, and the task ends cancelled."""
    task_id = server.submit(WAIT_FOR_GO, name="never")
    server.wait_for_state(task_id, "running")

    done = client(site, server, "cancel", task_id)

    assert done.returncode == 0
    assert done.stdout.split()[0] == task_id
    assert server.finished(task_id)["state"] == "cancelled"


# Logs


def test_logs_are_the_bytes_of_the_script(site: Site, server: Server) -> None:
    """Logs prints stdout, logs --stderr the other, byte for byte."""
    document = server.run("echo out; printf 'err \\303\\251' >&2")

    assert client(site, server, "logs", document["id"]).stdout == "out\n"
    assert client(site, server, "logs", "--stderr", document["id"]).stdout == "err é"


def test_logs_follow_a_running_script_to_its_end(site: Site, server: Server) -> None:
    """Logs --follow prints what comes while it comes, and ends with the task."""
    task_id = server.submit(f"echo one; {WAIT_FOR_GO}; echo two", name="follow")
    following = site.start("logs", "--follow", task_id, "--url", server.url)
    following.wait_for_output("one\n")

    (server.folder / "go-follow").touch()

    assert following.wait() == 0
    assert following.output == "one\ntwo\n"


def test_logs_follow_what_is_no_text(site: Site, server: Server) -> None:
    """Bytes that are no UTF-8 are followed as they are."""
    task_id = server.submit(f"printf 'a\\377\\303'; {WAIT_FOR_GO}; printf '\\251z'", name="bytes")
    done = site.start("logs", "--follow", task_id, "--url", server.url)
    done.wait_for_output("a")

    (server.folder / "go-bytes").touch()

    assert done.wait() == 0
    assert done.output_bytes == b"a\xff\xc3\xa9z"


def test_a_reader_that_goes_away_is_no_error(site: Site, server: Server) -> None:
    """Logs | head: no traceback, and exit code 0."""
    document = server.run("seq 500000")
    head = subprocess.run(
        [
            "bash",
            "-c",
            f'set -o pipefail; "$PYTHON" -m script_runner logs {document["id"]} --url {server.url} | head -1',
        ],
        env={**os.environ, "PYTHON": site.python},
        capture_output=True,
        check=False,
    )

    assert (head.returncode, head.stdout, head.stderr) == (0, b"1\n", b"")


# A server that is not as it should be


@pytest.mark.parametrize(
    "words", [("submit",), ("show",), ("show", UNKNOWN), ("cancel", UNKNOWN), ("logs", UNKNOWN)]
)
def test_a_server_that_is_away_is_exit_code_3(site: Site, words: tuple[str, ...]) -> None:
    """Nobody listens there: one sentence with the URL."""
    url = f"http://127.0.0.1:{free_port()}"

    done = site.run(*words, "--url", url, "--patience", "0")

    assert (done.returncode, done.stdout) == (3, "")
    assert url in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "url", ["nonsense", "ftp://127.0.0.1", "http://", "http://[::1", "http://127.0.0.1:99999"]
)
def test_a_url_that_is_none_is_exit_code_2(site: Site, url: str) -> None:
    """What is no URL of a server is refused with a sentence."""
    done = site.run("show", "--url", url)

    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("script-runner: ")
    assert "Traceback" not in done.stderr


def test_a_token_from_option_or_environment(site: Site, tmp_path: Path) -> None:
    """Without a token exit code 4; one that is refused too, and it is nowhere in what is said."""
    settings = {
        "AUTH_PROVIDER": "auth0",
        "AUTH0_DOMAIN": "lab.example.org",
        "AUTH0_API_AUDIENCE": "https://script-runner.example.org",
        "AUTH0_JWKS_URL": f"http://127.0.0.1:{free_port()}/",
    }
    with Site(tmp_path, shell_config(), **settings) as closed:
        url = closed.up().url
        tokens = (
            site.run("show", "--url", url),
            site.run("show", "--url", url, "--token", "garbage"),
            site.run("show", "--url", url, SCRIPT_RUNNER_TOKEN="garbage"),
        )

    assert [done.returncode for done in tokens] == [4, 4, 4]
    assert not any("garbage" in done.stderr for done in tokens)
    assert tokens[0].stderr != tokens[1].stderr == tokens[2].stderr


def test_wait_outlives_a_restart_of_the_server(tmp_path: Path) -> None:
    """A server that is away for a moment does not end wait."""
    port = str(free_port())
    with Site(tmp_path, shell_config()) as site:
        server = site.up("--port", port)
        task_id = server.submit(WAIT_FOR_GO, name="restart")
        waiting = site.start("wait", task_id, "--url", server.url)
        waiting.wait_for_output("running")
        (site.folder / "go-restart").touch()
        server.finished(task_id)
        site_server_pid = server.pid
        server.kill()

        again = site.up("--port", port)

        assert again.pid != site_server_pid
        assert waiting.wait() == 0
        until(lambda: "succeeded" in waiting.output)


def test_a_process_with_an_object_store_ends_before_python_is_taken_down(site: Site) -> None:
    """Threads of the library would abort it now and then: all is written, and it ends with the same code."""
    begin = "import atexit, sys; atexit.register(print, 'taken down'); sys.modules['obstore'] = sys"
    program = f"{begin}; from script_runner.cli import main; main(['check', 'nothing.json'])"

    done = subprocess.run(
        [site.python, "-c", program], cwd=site.folder, capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stdout) == (2, "")
    assert "nothing.json cannot be read" in done.stderr
