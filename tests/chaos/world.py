"""One world: Redis, servers, workers, their wires and disks, all of it real, and all of it gone afterwards."""

import contextlib
import math
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis
from tests.chaos.journal import Journal
from tests.chaos.ledger import Held, Ledger, held, now
from tests.chaos.plan import DISK_KINDS, FAILOVER_KINDS, LEASE_SECONDS, Episode
from tests.chaos.proxy import Exchange, Wire
from tests.end_to_end.processes import Program, Server, Site
from tests.servers import RedisServer, redis_binary, valkey_binary

DRAIN_SECONDS = 1.5
MAX_ATTEMPTS = 4
SERVERS = 2
RUNS_MEGABYTES = 48
STORE_MEGABYTES = 256
REDIS_MEGABYTES = 192
PATIENCE_SECONDS = 60.0


def configuration(ledger: Ledger, *, is_retried: bool) -> dict[str, Any]:
    """The script of the ledger as a service, which may run again after a lost worker or may not."""
    names = {"KIND": "kind", "SECONDS": "seconds", "KEY": "key"}
    return {
        "command": [sys.executable, "-I", "-S", str(ledger.script)],
        "command_rundir": "runs",
        "command_rundir_base": "base",
        "environment": {"set": {"LEDGER": str(ledger.folder)}},
        "inputs": {
            "body_args": [
                {"env_var_name": name, "body_jsonpath": f"$.{field}", "required": True}
                for name, field in names.items()
            ]
        },
        "outputs": {
            "results": {"kind": "file", "format": "csv", "input_path": "rows.csv"},
            "attachments": ["files/**"],
        },
        "grace_seconds": 0.5,
        "on_worker_lost": "retry" if is_retried else "fail",
        "max_attempts": MAX_ATTEMPTS,
    }


class Slot:
    """The place of one server or worker, where a new one is started when it has gone."""

    def __init__(self, world: "World", name: str, wire: Wire) -> None:
        self.name = name
        self.wire = wire
        self.lock = threading.Lock()
        """Who hurts it."""

        self._world = world
        self._lives = 0
        self._program: Program | None = None

    @property
    def life(self) -> str:
        return f"{self.name}.{self._lives}"

    @property
    def program(self) -> Program:
        assert self._program, f"{self.name} was not started"
        return self._program

    @property
    def has_ended(self) -> bool:
        return self._program is None or self._program.has_ended

    def start(self) -> None:
        """Start the next one here."""
        self._lives += 1
        marks = {
            "CHAOS_SLOT": self.name,
            "CHAOS_LIFE": self.life,
            "SCRIPT_RUNNER_REDIS_URL": self.wire.url,
            **self._world.environment,
        }
        with self._world.starting:
            self._program = self._start(marks)
        self._world.journal.note(f"{self.life} started, pid {self._program.pid}")

    def _start(self, marks: dict[str, str]) -> Program:
        return self._world.site.worker("--concurrency", "3", "--drain-timeout", str(DRAIN_SECONDS), **marks)

    def kill(self) -> None:
        self.check()
        self.program.kill()
        self._world.journal.note(f"{self.life} killed")

    def check(self) -> None:
        """It lives, as nobody has killed it."""
        if self.program.has_ended:
            text = f"{self.life} ended by itself with {self.program.wait()}: {self.program.output[-600:]}"
            self._world.journal.violation("other", text, at=now())

    def end(self) -> None:
        """Ask it to stop, and see that it does so well."""
        self.check()
        life, program = self.life, self.program
        is_new = not program.output  # it may not listen to signals yet
        self._world.journal.drained(life)
        self._world.journal.note(f"{life} asked to stop")
        program.terminate()
        try:
            code = program.wait(seconds=PATIENCE_SECONDS)
        except AssertionError:
            code = None
            program.kill()
        self._world.journal.note(f"{life} stopped, exit code {code}")
        if code != 0 and not (is_new and code == -signal.SIGTERM):
            text = f"{life} asked to stop ended with {code}: {program.output[-600:]}"
            self._world.journal.violation("other", text, at=now())

    def processes(self) -> dict[int, str]:
        """It, its guardian and its scripts, as if they were one machine."""
        return self._world.site.processes(CHAOS_SLOT=self.name)

    def guardians(self) -> set[int]:
        return {pid for pid, command in self.processes().items() if "guardian.py" in command}


class ServerSlot(Slot):
    """The place of a server; it gets a new port each time."""

    _url: str | None = None

    def _start(self, marks: dict[str, str]) -> Program:
        self._url = None
        return self._world.site.serve(**marks)

    @property
    def url(self) -> str | None:
        """Where it serves; None while there is none."""
        program = self._program
        if program is None or program.has_ended or " at http://" not in program.output:
            return None
        if self._url is None:
            assert isinstance(program, Server)
            self._url = program.url
        return self._url


class Disk:
    """A small disk of its own, to be filled and freed."""

    def __init__(self, folder: Path, megabytes: int) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True, parents=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=700", "tmpfs", str(folder)]
        subprocess.run(command, check=True, capture_output=True)

    def fill(self) -> None:
        """Take all that is free now."""
        with contextlib.suppress(OSError), (self._folder / ".filler").open("ab", buffering=0) as file:
            while True:
                file.write(bytes(1 << 20))

    def free(self) -> None:
        (self._folder / ".filler").unlink(missing_ok=True)

    def close(self) -> None:
        subprocess.run(["umount", "-l", str(self._folder)], check=False, capture_output=True)


def may_mount(folder: Path) -> bool:
    """Whether this machine lets us have disks of our own."""
    try:
        Disk(folder, 1).close()
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


class World:
    """All of one episode that can be hurt."""

    def __init__(self, folder: Path, episode: Episode, journal: Journal) -> None:
        self.folder = folder
        self.episode = episode
        self.journal = journal
        self.starting = threading.Lock()
        self._redis_lock = threading.Lock()
        self._redis_well_since = 0.0
        self.disk_lock = threading.Lock()
        self._redis_disks: dict[int, Disk] = {}
        self.lost_folders: set[Path] = set()
        """Run folders on machines that have gone."""

        self.ledger = Ledger(folder / "ledger")
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:
            self._build(undo)
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()

    def _build(self, undo: contextlib.ExitStack) -> None:
        self.has_disks = bool(self.episode.kinds & set(DISK_KINDS))
        self.has_replica = bool(self.episode.kinds & set(FAILOVER_KINDS))
        self.environment = {"SCRIPT_RUNNER_REDIS_REPLICAS": "1"} if self.has_replica else {}
        self.exchange = undo.enter_context(Exchange())
        self.redis = self._redis(undo)
        self.replica: RedisServer | None = None
        self.link: Wire | None = None
        if self.has_replica:
            self.follow(undo)
        (self.folder / "site").mkdir()
        config = configuration(self.ledger, is_retried=self.episode.is_retried)
        lease = str(LEASE_SECONDS)
        self.site = Site(self.folder / "site", config, SCRIPT_RUNNER_LEASE_SECONDS=lease)
        self.disks: list[Disk] = []
        if self.has_disks:
            for name, megabytes in (("runs", RUNS_MEGABYTES), ("store", STORE_MEGABYTES)):
                self.disks.append(Disk(self.site.folder / name, megabytes))
                undo.callback(self.disks[-1].close)
        undo.callback(self.site.close)
        self.servers = [ServerSlot(self, f"server-{number}", self._wire()) for number in range(SERVERS)]
        self.workers = [Slot(self, f"worker-{number}", self._wire()) for number in range(self.episode.workers)]
        for slot in self.slots:
            slot.start()

    # What there is

    @property
    def slots(self) -> list[Slot]:
        return [*self.servers, *self.workers]

    @property
    def namespace(self) -> str:
        return self.site._environment["SCRIPT_RUNNER_NAMESPACE"]

    @property
    def store(self) -> Path:
        return self.site.folder / "store"

    def worker(self, pick: float) -> Slot:
        return self.workers[int(pick * len(self.workers))]

    def server(self, pick: float) -> ServerSlot:
        return self.servers[int(pick * len(self.servers))]

    def key(self, *parts: str) -> str:
        return ":".join((f"{{{self.namespace}}}:1", *parts))

    def scripts(self) -> dict[int, str]:
        """The living processes that scripts have started, themselves included."""
        own = {slot.program.pid for slot in self.slots if not slot.has_ended}
        return {
            pid: command
            for pid, command in self.site.processes().items()
            if pid not in own and "guardian.py" not in command and "-m script_runner" not in command
        }

    def folders_of_nobody_else(self, slot: Slot) -> set[Path]:
        """The run folders in which no script of another worker runs."""
        others = held(pid for other in self.workers if other is not slot for pid in other.processes())
        used = {process.run for process in others}
        for process in others:
            process.close()
        return {folder for folder in self.site.run_folders() if folder.name not in used}

    def leaders(self) -> list[Held]:
        """The scripts that run now, without what they have started; the caller closes them."""
        open_runs = {}
        for stamp in self.ledger.stamps():
            if stamp.word == "start":
                open_runs[stamp.run] = stamp
            elif stamp.word == "end":
                open_runs.pop(stamp.run, None)
        found = held(stamp.pid for stamp in open_runs.values())
        for process in found:
            if process.run not in open_runs:
                process.close()
        return [process for process in found if process.run in open_runs]

    @contextlib.contextmanager
    def redis_in_trouble(self) -> Iterator[None]:
        """One hurt of Redis at a time."""
        with self._redis_lock:
            self._redis_well_since = math.inf
            try:
                yield
            finally:
                self._redis_well_since = now()

    def was_redis_well(self, since: float) -> bool:
        """Whether nothing was done to Redis from this time of the boot clock to now."""
        return self._redis_well_since <= since

    @contextlib.contextmanager
    def redis_client(self) -> Iterator["redis.Redis"]:
        """A way to Redis that nobody hurts."""
        with contextlib.closing(self.redis.client()) as client:
            yield client

    # Redis

    @property
    def redis_disk(self) -> Disk:
        """That of the master."""
        return self._redis_disks[self.redis.port]

    def follow(self, undo: contextlib.ExitStack | None = None) -> None:
        """Give the master a replica, behind a wire of its own, and wait until it has all."""
        self.link = self.exchange.wire(self.redis.port)
        self.replica = self._redis(undo or self._undo)
        with contextlib.closing(self.replica.client()) as client:
            client.replicaof("127.0.0.1", str(self.link.port))
            end = time.monotonic() + PATIENCE_SECONDS
            while client.info("replication").get("master_link_status") != "up":
                assert time.monotonic() < end, "the replica does not come up"
                time.sleep(0.02)

    def fail_over(self) -> None:
        """The master has died: the replica takes its place, and gets one of its own."""
        assert self.replica
        dead, self.redis = self.redis, self.replica
        with self.redis_client() as client:
            client.replicaof("NO", "ONE")
        for slot in self.slots:
            slot.wire.aim(self.redis.port)
        dead.kill()
        self.follow()

    def _redis(self, undo: contextlib.ExitStack) -> RedisServer:
        binary = valkey_binary() if self.episode.server == "valkey" else redis_binary()
        binary = binary or redis_binary() or valkey_binary()
        assert binary, "there is neither a redis-server nor a valkey-server"
        # a replica that asks for the whole must not wait for others to ask too
        server = RedisServer(binary, settings={"repl-diskless-sync-delay": "0"})
        undo.callback(server.stop)
        if self.has_disks:
            disk = self._redis_disks[server.port] = Disk(server.folder, REDIS_MEGABYTES)
            undo.callback(disk.close)
        server.start()
        undo.callback(server.kill)
        self.journal.note(f"{Path(binary).name} at port {server.port} in {server.folder}")
        return server

    def _wire(self) -> Wire:
        return self.exchange.wire(self.redis.port)

    # Being well again

    def heal(self) -> None:
        """Whatever was hurt, nothing is hurt any more, and everything runs."""
        for slot in self.slots:
            slot.wire.heal()
            slot.check()
            if slot.has_ended:
                slot.start()


def freeze(slot: Slot) -> list[Held]:
    """Stop all that there is of a worker, as a paused machine does: the worker first, so that nothing is born."""
    frozen: dict[int, Held] = {}
    while True:
        found = {slot.program.pid, *slot.processes()}  # one that is just being started shows no environment yet
        new = held(found - frozen.keys())
        for process in sorted(new, key=lambda process: process.pid != slot.program.pid):
            process.signal(signal.SIGSTOP)
            frozen[process.pid] = process
        if not new and all(process.is_stopped for process in frozen.values()):
            return list(frozen.values())
        time.sleep(0.01)
