"""The main job, whole and real: a script and its configuration in the original's format, behind HTTP."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from tests.end_to_end.processes import Server, Site, shell_config, until
from tests.servers import RedisServer

SAMPLES = Path(__file__).parents[3] / "shared" / "samples" / "configs"

RFC_3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")

QUEUED_KEYS = [
    "id",
    "status",
    "state",
    "created_at",
    "started_at",
    "finished_at",
    "exit_code",
    "attempt",
    "configuration",
]
WAITING_KEYS = ["position", "estimated_start_at"]

LIMS_CONFIG: dict[str, Any] = {
    "command": [
        "python3",
        "-S",
        "code/analyse.py",
        "--rundir",
        "$RUNDIR/",
        "--basespaceID",
        "$BASESPACE_ID",
        "--season",
        "$SEASON",
        "--city",
        "$CITY",
    ],
    "command_rundir": None,
    "command_rundir_base": None,
    "debug": False,
    "inputs": {
        "path_args": [
            {"env_var_name": "BASESPACE_ID", "path_regex": "([^/]+)", "path_regex_match_group": 1},
        ],
        "query_args": [{"env_var_name": "SEASON", "query_var_name": "season"}],
        "body_args": [{"env_var_name": "CITY", "body_jsonpath": "$.address.city"}],
    },
    "outputs": {
        "results": {
            "kind": "file",
            "format": "csv",
            "input_path": "LIMS_results.csv",
            "remapped_columns": [
                {"output_name": "plateIndex", "input_name": "Plate_384_Number", "skip_list": ["NA"]},
                {"output_name": "plateCell", "input_name": "Sample_Well", "skip_list": ["NA"]},
                {"output_name": "marker1", "input_name": "index", "skip_list": ["NA"]},
                {"output_name": "classification", "input_name": "classification"},
            ],
        },
        "attachments": ["*.pdf", "LIMS_results.csv"],
    },
}

ANALYSE = """\
import pathlib, sys
rundir = pathlib.Path(sys.argv[2])
assert sys.argv[1] == "--rundir" and (rundir / "out").is_dir() and rundir.parent == pathlib.Path.cwd()
print(ascii(sys.argv[4:]))
if sys.argv[4] == "broken":
    print("no such run", file=sys.stderr)
    sys.exit(3)
(rundir / "LIMS_results.csv").write_text(
    "index,Plate_384_Number,Sample_Well,classification\\n"
    f"CATC,1,A01,{sys.argv[4]}\\n"
    "CTGT,NA,A02,dropped by its skip list\\n"
    "GGAA,007,A03,NA\\n"
)
(rundir / (rundir.name + ".pdf")).write_bytes(b"%PDF-1.5\\n" + bytes(range(256)) * 40)
"""


def write_script(folder: Path) -> None:
    (folder / "code").mkdir()
    (folder / "code" / "analyse.py").write_text(ANALYSE)


@pytest.fixture(scope="module")
def lims(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """All in one, with a script and a configuration as the original's users have them."""
    with Site(tmp_path_factory.mktemp("lims"), LIMS_CONFIG) as site:
        write_script(site.folder)
        server = site.up()
        server.wait_until_ready()
        yield server


def submit(server: Server, path: str = "/task/RUN-7") -> dict[str, Any]:
    answer = server.http.post(path, params={"season": "winter"}, json={"address": {"city": "Los Angeles"}})
    assert answer.is_success, answer.text
    return dict(answer.json())


@pytest.fixture(scope="module")
def done(lims: Server) -> dict[str, Any]:
    """The document of a task that succeeded."""
    return lims.finished(submit(lims)["id"])


def test_submit_answers_202_with_the_place_and_a_task_that_is_not_ready(lims: Server) -> None:
    """POST /task/{path} answers 202, Location, and the first words of the task document."""
    answer = lims.http.post("/task/RUN-7?season=winter", json={"address": {"city": "Los Angeles"}})

    assert answer.status_code == 202
    document = answer.json()
    assert answer.headers["location"] == f"/task/{document['id']}"
    assert list(document) == [*QUEUED_KEYS, *WAITING_KEYS]
    assert (document["status"], document["state"], document["attempt"]) == ("not-ready", "queued", 0)
    assert document["started_at"] is document["finished_at"] is document["exit_code"] is None


def test_a_task_that_succeeded_has_the_whole_document(done: dict[str, Any]) -> None:
    """The document has exactly the promised keys, the words ready and succeeded, and the first attempt."""
    assert list(done) == [*QUEUED_KEYS, "results", "attachments", "files"]
    assert (done["status"], done["state"], done["exit_code"], done["attempt"]) == ("ready", "succeeded", 0, 1)


def test_times_are_rfc_3339_and_in_order(done: dict[str, Any]) -> None:
    """created_at, started_at and finished_at are UTC times by RFC 3339, none before the other."""
    times = [done[name] for name in ("created_at", "started_at", "finished_at")]

    assert all(RFC_3339.fullmatch(time) for time in times)
    moments = [datetime.fromisoformat(time) for time in times]
    assert moments == sorted(moments)


def test_results_are_the_remapped_rows(done: dict[str, Any]) -> None:
    """Rows have the new names in the order of the configuration, text only, without the skipped ones."""
    assert done["results"] == [
        {"plateIndex": "1", "plateCell": "A01", "marker1": "CATC", "classification": "RUN-7"},
        {"plateIndex": "007", "plateCell": "A03", "marker1": "GGAA", "classification": "NA"},
    ]
    assert list(done["results"][0]) == ["plateIndex", "plateCell", "marker1", "classification"]


def test_attachments_are_the_files_in_base64_and_by_url(lims: Server, done: dict[str, Any]) -> None:
    """Each attachment is inline, and the same bytes with size, type and SHA-256 under its URL."""
    names = [file["name"] for file in done["files"]]
    assert names == list(done["attachments"])
    assert "LIMS_results.csv" in names
    assert any(re.fullmatch(r"results-.{8}\.pdf", name) for name in names)
    for file in done["files"]:
        content = base64.b64decode(done["attachments"][file["name"]], validate=True)
        assert list(file) == ["name", "size", "media_type", "sha256", "url"]
        assert file["size"] == len(content)
        assert file["sha256"] == hashlib.sha256(content).hexdigest()
        answer = lims.http.get(file["url"])
        assert answer.content == content
        assert answer.headers["content-type"].partition(";")[0] == file["media_type"]


@pytest.mark.parametrize("word", ["links", "none"])
def test_attachments_may_be_left_out(lims: Server, done: dict[str, Any], word: str) -> None:
    """?attachments=links gives URLs in place of base64, none gives nothing; files stay."""
    document = lims.http.get(f"/task/{done['id']}", params={"attachments": word}).json()

    expected = {file["name"]: file["url"] for file in done["files"]} if word == "links" else {}
    assert document == {**done, "attachments": expected}


@pytest.mark.parametrize(
    "value",
    ["two words", "a'b\"c", "; touch $HOME `id` $(id) |&", "two\nlines\n", "数据 ÿ", "$SEASON *"],
)
def test_one_value_is_one_argument_whatever_is_in_it(lims: Server, value: str) -> None:
    """A value from path, query and body arrives in the script as it was sent, never cut, joined or expanded."""
    answer = lims.http.post(f"/task/{quote(value)}", params={"season": value}, json={"address": {"city": value}})
    assert answer.status_code == 202, answer.text
    task_id = answer.json()["id"]

    lims.finished(task_id)

    assert lims.log(task_id) == ascii([value, "--season", value, "--city", value]) + "\n"


def test_a_script_that_fails_is_a_failed_task_with_its_last_words(lims: Server) -> None:
    """A failed task is HTTP 200 with a sentence and the end of stderr, without results."""
    failed = lims.finished(submit(lims, "/task/broken")["id"])

    assert list(failed) == [*QUEUED_KEYS, "attachments", "files", "error"]
    assert (failed["status"], failed["state"], failed["exit_code"]) == ("failed", "failed", 3)
    assert failed["error"].startswith("The script ended with exit code 3.")
    assert failed["error"].endswith("no such run")


def test_run_folders_are_removed_afterwards(lims: Server, done: dict[str, Any]) -> None:
    """Nothing of a run stays in the working directory."""
    assert done["state"] == "succeeded"

    until(lambda: not list(lims.folder.glob("results-*")))


def test_the_originals_routes_do_the_same_and_post_answers_200(lims: Server) -> None:
    """POST /script/{path} answers 200, and GET /script/{id} has the whole document."""
    answer = lims.http.post("/script/RUN-8?season=fall", json={"address": {"city": "Oz"}})
    assert answer.status_code == 200
    task_id = answer.json()["id"]

    lims.finished(task_id)

    document = lims.http.get(f"/script/{task_id}").json()
    assert document["status"] == "ready"
    assert document["results"][0]["classification"] == "RUN-8"


def test_the_originals_own_configurations_load_unchanged(tmp_path: Path) -> None:
    """The command check finds no mistake in the files that ran in production."""
    samples = sorted(SAMPLES.glob("*.json"))
    if not samples:
        pytest.skip("the samples are not on this machine")
    with Site(tmp_path, shell_config()) as site:
        checked = [site.run("check", str(sample), "--json") for sample in samples]

    assert [json.loads(done.stdout)["problems"] for done in checked] == [[]] * len(samples)


# On several machines: server, workers and Redis apart


def test_two_workers_share_the_tasks_of_one_redis(redis_server: RedisServer, tmp_path: Path) -> None:
    """With one script a worker, two scripts that wait for each other both end, and the server has their files."""
    with Site(tmp_path, shell_config(), SCRIPT_RUNNER_REDIS_URL=redis_server.url) as site:
        (site.folder / "here").mkdir()
        server = site.serve()
        for _ in range(2):
            site.worker("--concurrency", "1")
        server.wait_until_ready(workers=2)
        code = (
            ': > "here/$TASK_ID"; echo $PPID > "$RUNDIR/files/worker.txt";'
            ' until [ "$(ls here | wc -l)" = 2 ]; do sleep 0.02; done'
        )

        documents = [server.finished(task_id) for task_id in [server.submit(code) for _ in range(2)]]

        assert [document["state"] for document in documents] == ["succeeded"] * 2
        assert len({document["attachments"]["worker.txt"] for document in documents}) == 2


def test_the_names_of_redis_in_other_programs_are_taken(redis_server: RedisServer, tmp_path: Path) -> None:
    """A server with REDIS_URL and a worker with the original's CELERY_BROKER_URL do a task together."""
    with Site(tmp_path, shell_config()) as site:
        server = site.serve(REDIS_URL=redis_server.url)
        site.worker(CELERY_BROKER_URL=redis_server.url)
        server.wait_until_ready()

        assert server.run("true")["results"] == [{"name": "alpha", "value": "1"}]


def test_a_script_does_not_inherit_the_runners_secrets(redis_server: RedisServer, tmp_path: Path) -> None:
    """Redis, store and auth are not in the script's environment; its inputs and all else are."""
    with Site(tmp_path, shell_config(), SCRIPT_RUNNER_REDIS_URL=redis_server.url) as site:
        server = site.serve()
        site.worker(AUTH0_CLIENT_ID="secret", REDIS_URL="redis://:secret@127.0.0.1", OWN="kept")
        server.wait_until_ready()

        task = server.run('env | cut -d= -f1 | sort > "$RUNDIR/files/names"; test "$OWN" = kept', name="x")

        assert task["state"] == "succeeded", task
        names = base64.b64decode(task["attachments"]["names"]).decode().split()
        assert {"CODE", "NAME", "OWN", "RUNDIR", "TASK_ID", "PATH"} <= set(names)
        assert not [name for name in names if re.match("SCRIPT_RUNNER|REDIS|AUTH|CELERY", name)]


def test_a_server_killed_and_started_anew_knows_every_task(redis_server: RedisServer, tmp_path: Path) -> None:
    """The worker goes on while the server is dead, and a new server has the results."""
    with Site(tmp_path, shell_config(), SCRIPT_RUNNER_REDIS_URL=redis_server.url) as site:
        server = site.serve()
        site.worker()
        server.wait_until_ready()
        task_id = server.submit("until [ -e go ]; do sleep 0.02; done")
        server.wait_for_state(task_id, "running")
        server.kill()
        (site.folder / "go").touch()

        again = site.serve()

        document = again.finished(task_id)
        assert (document["state"], document["attempt"]) == ("succeeded", 1)


@pytest.mark.parametrize("command", ["serve", "worker"])
def test_without_redis_the_separate_commands_say_what_to_do(tmp_path: Path, command: str) -> None:
    """Without a Redis URL serve and worker exit with 2 and name the option, the variable and up."""
    with Site(tmp_path, shell_config()) as site:
        done = site.run(command)

    assert done.returncode == 2
    assert all(word in done.stderr for word in ("--redis", "SCRIPT_RUNNER_REDIS_URL", "script-runner up"))
