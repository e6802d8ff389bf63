"""Starts the service on this example, submits one run, shows what comes back, and stops the service again."""

import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import httpx

EXAMPLE = Path(__file__).resolve().parent
RUN, SEASON = "DEMO-001", "winter"
SHOWN_ROWS = 5
POLL_SECONDS = 0.1
START_SECONDS = 60
STOP_SECONDS = 30


def main() -> None:
    # SIGINT too: a shell starts background jobs deaf to it, and the service would inherit that
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, _interrupted)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="plate-qc-") as data,
            running_service(Path(data)) as url,
            httpx.Client(base_url=url, trust_env=False, timeout=30) as api,
        ):
            demonstrate(api)
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        sys.exit(130)
    except httpx.TransportError as error:
        sys.exit(f"The service does not answer any more: {error}")


def demonstrate(api: httpx.Client) -> None:
    """Submit, follow the log, show the rows, keep the report."""
    task = answer(api.post(f"/task/{RUN}", params={"season": SEASON})).json()
    print(f"\nPOST /task/{RUN}?season={SEASON}  ->  task {task['id']}, {task['status']}\n")

    task = follow(api, task["id"])
    if task["status"] != "ready":
        sys.exit(f"The task failed: {task.get('error', task['state'])}")

    print(f"\nGET /task/{task['id']}  ->  {task['status']}, {len(task['results'])} rows\n")
    print_table(task["results"][:SHOWN_ROWS])
    classes = Counter(row["classification"] for row in task["results"])
    print(f"  …\n\n  {', '.join(f'{count} {name}' for name, count in classes.most_common())}\n")

    for file in task["files"]:
        if file["name"].endswith(".pdf"):
            report = Path.cwd() / Path(file["name"]).name
            report.write_bytes(answer(api.get(f"/task/{task['id']}/attachments/{file['name']}")).content)
            print(f"The report, {file['size']:,} bytes: {report}\n")


def follow(api: httpx.Client, task_id: str) -> dict[str, Any]:
    """The task document once the task is over; meanwhile what the script says is printed as it comes."""
    offset, rest = 0, b""
    while True:
        task: dict[str, Any] = answer(api.get(f"/task/{task_id}", params={"attachments": "none"})).json()
        log = answer(api.get(f"/task/{task_id}/logs", params={"stream": "stdout", "offset": offset}))
        offset = int(log.headers["X-Log-Next-Offset"])
        *lines, rest = (rest + log.content).split(b"\n")  # what was read may end within a line
        for line in lines:
            print(f"  | {line.decode(errors='replace')}", flush=True)
        if task["status"] != "not-ready" and not log.content:
            return task
        time.sleep(POLL_SECONDS)


def answer(response: httpx.Response) -> httpx.Response:
    """The response if it is a success; else the demonstration ends with what the service says is wrong."""
    if not response.is_success:
        sys.exit(f"{response.request.method} {response.url} was answered {response.status_code}: {response.text}")
    return response


def print_table(rows: Sequence[dict[str, str]]) -> None:
    """The rows in columns that are as wide as their widest value."""
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  " + "  ".join(value.ljust(width) for value, width in zip(line, widths, strict=True)).rstrip())


@contextmanager
def running_service(data: Path) -> Iterator[str]:
    """The URL of a service that keeps its tasks in ``data``, started and stopped here."""
    command = (sys.executable, "-m", "script_runner", "up", "config.json", "--port", "0", "--data", str(data))
    output = data / "service.log"
    print("Starting script-runner up config.json …", flush=True)
    with output.open("wb") as log:
        # a session of its own: Ctrl-C in the terminal then reaches the service once, from here
        service = subprocess.Popen(  # noqa: S603 - fixed words and our own interpreter
            command, cwd=EXAMPLE, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            yield wait_for_service(service, output)
        finally:
            stop(service)


def wait_for_service(service: subprocess.Popen[bytes], output: Path) -> str:
    """The URL that the service prints, once it answers there."""
    deadline = time.monotonic() + START_SECONDS
    while service.poll() is None and time.monotonic() < deadline:
        said = re.search(r"http://127\.0\.0\.1:\d+", output.read_text(errors="replace"))
        if said and answers(said[0]):
            return said[0]
        time.sleep(POLL_SECONDS)
    sys.exit(f"The service did not start. It says:\n{output.read_text(errors='replace')}")


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", trust_env=False).is_success
    except httpx.TransportError:
        return False


def stop(service: subprocess.Popen[bytes]) -> None:
    """Ask the service to stop as Ctrl-C would, and see that it has."""
    if service.poll() is None:
        service.send_signal(signal.SIGINT)
    try:
        service.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        service.kill()
        service.wait()
        print("The service did not stop when asked, and was killed.", file=sys.stderr)


def _interrupted(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
