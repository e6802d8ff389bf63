"""The measures: ours, the peers and the floors in turn, round by round, so that all meet the same machine."""

import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import peers, system
from benchmarks.costs import IMPORTS
from benchmarks.figures import Aim, Figure
from benchmarks.material import Material, use_memory, write_file, write_table
from benchmarks.system import HOST, OwnStart, Start, System, cores, free_port, running, until
from benchmarks.wire import PAUSE_SECONDS, Api, Dialect
from script_runner.follow import BEAT_SECONDS

ROOT = Path(__file__).parent.parent
WARMING_TASKS = 20
ORIGINAL = "original"
WITH_DOCUMENTS = (ORIGINAL, "celery+flask", "fastapi")
"""The peers that keep results; webhook only answers, and the bare queue knows no more than the end."""

PAUSE_MS = round(PAUSE_SECONDS * 1000)
"""Before each spawn that a task of an idle system is held against, as before each of those."""

QUIET_SECONDS = 5.0
"""How long the CPU time of an idle system is counted.

With event streams it is as long as one of them is silent at most, so that the sign of life of each falls into it.
"""

Values = dict[str, float]
Sides = dict[str, Callable[[], Values]]
Found = dict[str, dict[str, tuple[float, ...]]]
"""By side and by name: a value a round."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured."""

    rounds: int = 5
    large_rounds: int = 3
    tasks: int = 1_000
    many_tasks: int = 20_000
    idle_tasks: int = 100
    seconds: int = 2
    rows: int = 1_000_000
    few_rows: int = 50_000
    many_rows: int = 5_000_000
    file_bytes: int = 100_000_000
    large_file_bytes: int = 1_000_000_000
    spare_bytes: int = 1_000_000_000
    connections: int = 32
    polls: int = 2_000
    streams: int = 1_000
    silent: int = 1_000
    finished: int = 1_000_000
    queued: int = 100_000


QUICK = Sizes(
    rounds=2, large_rounds=1, tasks=100, many_tasks=300, idle_tasks=20, seconds=1, rows=20_000, few_rows=5_000,
    many_rows=50_000, file_bytes=2_000_000, large_file_bytes=10_000_000, spare_bytes=10_000_000, polls=50,
    streams=50, silent=100, finished=2_000, queued=200,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Bench:
    """What all measures need. ``ours`` and ``peers`` are the systems under measure, by name."""

    material: Material
    sizes: Sizes
    ours: Mapping[str, OwnStart]
    peers: Mapping[str, Start]
    say: Callable[[str], None]
    floors_python: str | None = None
    """Of the environment that has what the floors need; None if it cannot be installed."""

    own_python: str = sys.executable
    """Of the environment that has this package."""

    @property
    def starts(self) -> dict[str, Start]:
        """All systems, ours first."""
        return {**self.ours, **self.peers}

    # Each of these is a word of --only

    def start(self) -> Iterator[Figure]:
        """From the command until the first answer, and until the first result; what importing costs."""
        sides: Sides = {name: partial(self._start_up, start) for name, start in self.starts.items()}
        found = self._rounds("start", sides)
        bars = {ORIGINAL: Aim("at most", 0.5, of="ratio")}
        yield from self._compared(found, "start to first answer", "s", "answered")
        yield from self._compared(found, "start to first result", "s", "ended", bars=bars, aim=Aim("under", 1.2))
        words = {**IMPORTS, "python": "pass"}
        imported = self._rounds("import", {name: partial(self._imported, code) for name, code in words.items()})
        for name in IMPORTS:
            ours, floor = imported[name]["seconds"], imported["python"]["seconds"]
            yield Figure("import", f"import, {name}", "s", ours, "python -c pass", floor)

    def memory(self) -> Iterator[Figure]:
        """What an idle system holds that has run a few tasks, and the most that it held under load.

        No other one stands meanwhile: pages that several systems share would count in part only.
        """
        sides: Sides = {name: partial(self._memory_of, start) for name, start in self.starts.items()}
        found = self._rounds("memory", sides, count=self.sizes.large_rounds)
        bars = {ORIGINAL: Aim("at most", 0.3, of="ratio")}
        yield from self._compared(found, "idle PSS, all", "MB", "idle", bars=bars)
        yield from self._compared(found, "under load, sum of peaks", "MB", "load")
        for name in self._ours(found):
            for key, values in found[name].items():
                when, _, process = key.partition(" ")
                if process:
                    title = "idle PSS" if when == "idle" else "under load, peak"
                    yield Figure(name, f"{title}, {process}", "MB", values)

    def latency(self) -> Iterator[Figure]:
        """From POST to the result, one trivial task at a time on an idle system."""
        modes = {"polls": "poll", "wait": "wait", "long-poll": "long-poll"}
        count = self.sizes.idle_tasks
        with self._all_started(self.material.trivial) as systems:
            for title, mode in modes.items():
                names = systems if mode == "poll" else self._ours(systems)
                sides: Sides = {
                    name: partial(self._load, systems[name], "latency", tasks=count, mode=mode) for name in names
                }
                for one in names:
                    self._load(systems[one], "latency", tasks=WARMING_TASKS)
                spawn = partial(self._spawned, at_once=1, count=count, pause_ms=PAUSE_MS)
                if not all(self._load(systems[name], "latency", tasks=2, mode=mode) for name in names):
                    self.say(f"the server knows no {title}: left out")
                    continue
                found = self._rounds(f"POST to result by {title}", sides | {"spawn": spawn})
                bars = {"p50": {ORIGINAL: Aim("at most", 0.3, of="ratio")}}
                bars["p99"] = {ORIGINAL: Aim("at most", 0.2, of="ratio")}
                if mode == "wait":
                    bars["p50"] = {"spawn": Aim("at most", 2.5, of="ratio")}
                for name, chosen in bars.items():
                    yield from self._compared(found, f"POST to result by {title}, {name}", "ms", name, bars=chosen)

    def submit(self) -> Iterator[Figure]:
        """Submissions by one caller, and by 256 at once, while the workers run what comes."""
        with self._all_started(self.material.trivial) as systems, self._hello() as hello:
            for connections in (1, 256):
                count = self.sizes.tasks if connections > 1 else self.sizes.tasks // 4
                load = partial(self._load, tasks=count, connections=connections)
                sides: Sides = {
                    name: partial(load, one, "burst") for name, one in systems.items() if one.dialect.document
                }
                sides |= {name: partial(load, one, "submit") for name, one in hello.items()}
                found = self._rounds(f"submissions at {connections} connections", sides)
                yield from self._submit_figures(found, connections)

    def burst(self) -> Iterator[Figure]:
        """Many trivial tasks at once: taken, run, and seen as done; and how they are taken meanwhile."""
        sizes = self.sizes
        with self._all_started(self.material.trivial) as systems, self._hello() as hello:
            store = next((systems[name].store for name in self._ours(systems)), "")
            load = partial(self._load, tasks=sizes.tasks, connections=sizes.connections)
            sides: Sides = {name: partial(self._burst_and_cpu, one) for name, one in systems.items()}
            sides |= {name: partial(load, one, "submit") for name, one in hello.items()}
            sides |= self._spawn_floors(at_once=cores(), count=sizes.tasks)
            sides["Redis"] = partial(self._floor, "xadd", store, count=5 * sizes.tasks, at_once=sizes.connections)
            found = self._rounds(f"{sizes.tasks:,} tasks at once", sides)
            yield from self._submit_figures(found, sizes.connections)
            yield from self._burst_figures(found, f"{sizes.tasks:,}")
            yield from self._compared(found, "CPU a task, all", "ms", "cpu_ms")
            for name in self._ours(systems):
                submitted, ended = (found[name][f"{what}_per_second"] for what in ("submits", "tasks"))
                redis = found["Redis"]
                yield Figure(
                    name, f"submits/s at {sizes.connections}", "/s", submitted, "bare XADD", redis["added"]
                )
                yield Figure(name, f"tasks/s, {sizes.tasks:,}", "/s", ended, "bare XREADGROUP", redis["taken"])
                for process in systems[name].processes:
                    spent = found[name][f"cpu_ms {process.name}"]
                    yield Figure(name, f"CPU a task, {process.name}", "ms", spent)

    def many(self) -> Iterator[Figure]:
        """20,000 trivial tasks, one round: a queue that is long."""
        count = self.sizes.many_tasks
        names = self._ours_and(ORIGINAL)
        with self._all_started(self.material.trivial, names) as systems:
            load = partial(self._load, tasks=count, connections=self.sizes.connections)
            sides: Sides = {name: partial(load, one, "burst") for name, one in systems.items()}
            sides |= self._spawn_floors(at_once=cores(), count=count)
            found = self._rounds(f"{count:,} tasks", sides, count=1)
            yield from self._burst_figures(found, f"{count:,}")

    def concurrency(self) -> Iterator[Figure]:
        """The same with workers that run 8 and 64 at once."""
        count = self.sizes.tasks
        for at_once in (8, 64):
            starts = {name: partial(start, concurrency=at_once) for name, start in self.ours.items()}
            with self._started(starts, self.material.trivial) as systems:
                load = partial(self._load, tasks=count, connections=self.sizes.connections)
                sides: Sides = {name: partial(load, one, "burst") for name, one in systems.items()}
                sides |= self._spawn_floors(at_once=at_once, count=count)
                found = self._rounds(f"{count:,} tasks, {at_once} at once", sides)
                yield from self._compared(
                    found, f"tasks/s, {count:,}, {at_once} at once", "/s", "tasks_per_second"
                )

    def poll(self) -> Iterator[Figure]:
        """The document of a task that runs, and of one that has ended, asked for by 32 callers."""
        names = self._ours_and(*WITH_DOCUMENTS)
        with self._all_started(self.material.trivial, names) as systems, self._hello() as hello:
            load = partial(self._load, seconds=self.sizes.seconds, connections=self.sizes.connections)
            sides: Sides = {name: partial(load, one, "poll") for name, one in systems.items()}
            tasks = {"tasks": self.sizes.tasks, "connections": self.sizes.connections}
            sides |= {name: partial(self._load, one, "submit", **tasks) for name, one in hello.items()}
            found = self._rounds("polls", sides)
        for when in ("running", "finished"):
            for name in hello:
                found[name][f"{when} per_second"] = found[name]["submits_per_second"]
            bars = {ORIGINAL: Aim("at least", 3, of="ratio")}
            yield from self._compared(found, f"polls/s at 32, {when}", "/s", f"{when} per_second", bars=bars)
            yield from self._compared(found, f"poll p99 at 32, {when}", "ms", f"{when} p99")

    def rows(self) -> Iterator[Figure]:
        """A large table, from POST until all its rows are here; then again; then by many at once."""
        title = f"{self.sizes.rows:,} rows"
        table = str(self.material.table)
        names = self._ours_and(*WITH_DOCUMENTS)
        with self._all_started(self.material.rows, names) as systems:
            sides: Sides = {
                name: partial(self._fetch_and_peaks, one, _forget_peaks(one)) for name, one in systems.items()
            }
            sides |= {
                "csv.reader": partial(self._floor, "csv", table),
                "convert+transfer": partial(self._floor, "convert", table),
            }
            if self.floors_python:
                sides["polars+transfer"] = partial(self._floor, "columnar", table, python=self.floors_python)
            found = self._rounds(title, sides, count=self.sizes.large_rounds)
            bars = {ORIGINAL: Aim("at most", 0.2, of="ratio"), "convert+transfer": Aim("at most", 1.3, of="ratio")}
            yield from self._large_figures(systems, title, found, bars)
            first = "later GET to first byte"
            yield from self._compared(
                found, f"{title}, {first}", "ms", "later_first_byte_ms", aim=Aim("at most", 20)
            )
            for clients in (4, 16):
                readers = [name for name in systems if clients == 4 or name in self.ours]
                health = {name: partial(self._load, systems[name], "read", clients=clients) for name in readers}
                read = self._rounds(f"/health while {clients} read", health, count=1)
                limit = Aim("under", 50) if clients == 16 else None
                yield from self._compared(
                    read, f"/health, slowest while {clients} read rows", "ms", "most", aim=limit
                )

    def flat(self) -> Iterator[Figure]:
        """The peak above idle of server and worker, for a small table and a huge one."""
        found: defaultdict[str, dict[int, dict[str, tuple[float, ...]]]] = defaultdict(dict)
        for count in (self.sizes.few_rows, self.sizes.many_rows):
            table = self.material.folder / f"rows-{count}.csv"
            write_table(table, count)
            names = list(self.ours)
            with self._all_started(self.material.rows_of(table), names) as systems:
                sides: Sides = {
                    name: partial(self._fetch_and_peaks, one, _forget_peaks(one)) for name, one in systems.items()
                }
                for name, values in self._rounds(f"{count:,} rows", sides, count=1).items():
                    found[name][count] = values
            table.unlink()
        few, many = self.sizes.few_rows, self.sizes.many_rows
        for name, sizes in found.items():
            for process, limit in (("worker", 40), ("server", 30)):
                key = f"above {process}"
                title = f"{many:,} rows, peak of {process} above idle"
                yield Figure(
                    name, title, "MB", sizes[many][key], f"{few:,} rows", sizes[few][key], Aim("under", limit)
                )

    def attachment(self) -> Iterator[Figure]:
        """A large file, from POST until all its base64 is here; and the file as it is."""
        file, size = str(self.material.file), self.sizes.file_bytes
        title = f"{size / 1e6:g} MB file"
        names = self._ours_and(*WITH_DOCUMENTS)
        with self._all_started(self.material.attachment, names) as systems, self._hello() as hello:
            sides: Sides = {
                name: partial(self._fetch_and_peaks, one, _forget_peaks(one)) for name, one in systems.items()
            }
            sides |= self._base64_floors(file)
            found = self._rounds(title, sides, count=self.sizes.large_rounds)
            bars = {ORIGINAL: Aim("at most", 0.15, of="ratio")}
            bars |= dict.fromkeys(("binascii", "pybase64"), Aim("at most", 2, of="ratio"))
            yield from self._large_figures(systems, title, found, bars)
            sides = {
                name: partial(self._load, systems[name], "download", name="file.bin")
                for name in self._ours(systems)
            }
            sides["static file"] = partial(self._load, hello["ASGI hello"], "download", name="file")
            found = self._rounds(f"{title}, raw", sides, count=self.sizes.large_rounds)
            bars = {"static file": Aim("at most", 1.2, of="ratio")}
            yield from self._compared(found, f"{title}, raw download", "s", "seconds", bars=bars)

    def large(self) -> Iterator[Figure]:
        """A file ten times as large: the memory must be that of the small one."""
        file = self.material.folder / "large.bin"
        write_file(file, self.sizes.large_file_bytes)
        title = f"{self.sizes.large_file_bytes / 1e6:,g} MB file"
        names = list(self.ours)
        with self._all_started(self.material.attachment_of(file), names) as systems:
            sides: Sides = {
                name: partial(self._fetch_and_peaks, one, _forget_peaks(one)) for name, one in systems.items()
            }
            found = self._rounds(title, sides | self._base64_floors(str(file)), count=1)
            yield from self._large_figures(systems, title, found, {})
        file.unlink()

    def streams(self) -> Iterator[Figure]:
        """What many callers cost who wait while nothing happens: long-polls, and then event streams as well."""
        with self._all_started(self.material.trivial, list(self.ours)) as systems:
            for name, one in systems.items():
                self._load(one, "latency", tasks=WARMING_TASKS)
                self.say(f"{name}: {self.sizes.polls:,} long-polls and {self.sizes.streams:,} event streams")
                alone = _cores_used(one)
                with ExitStack() as held:
                    known = [
                        held.enter_context(self._held(one, what, count))
                        for what, count in (("long-poll", self.sizes.polls), ("stream", self.sizes.streams))
                    ]
                    if not all(known):
                        self.say(f"{name} knows no long-polls or no event streams: left out")
                        continue
                    time.sleep(1)
                    share, memory = _cores_used(one, seconds=BEAT_SECONDS) * 100, one.idle_mb
                title = f"{self.sizes.polls:,} long-polls, {self.sizes.streams:,} streams"
                yield Figure(name, f"{title}, CPU", "%", (share,), "alone", (alone * 100,), Aim("under", 20))
                yield Figure(name, f"{title}, PSS", "MB", (memory,))

    def silent(self) -> Iterator[Figure]:
        """What others feel of many connections that say nothing."""
        count = self.sizes.idle_tasks
        with self._all_started(self.material.trivial, list(self.ours)) as systems:
            for name, one in systems.items():
                load = partial(self._load, one, "latency", tasks=count, mode="poll")
                load()

                def beside(one: System = one, load: Callable[[], Values] = load) -> Values:
                    with self._held(one, "silent", self.sizes.silent):
                        return load()

                found = self._rounds(f"{name}: silent connections", {"with": beside, "without": load})
                for key, limit in (("p50", 1.1), ("p99", 1.25)):
                    title = f"POST to result beside {self.sizes.silent:,} silent connections, {key}"
                    bar = Aim("at most", limit, of="ratio")
                    yield Figure(name, title, "ms", found["with"][key], "without", found["without"][key], bar)

    # Rounds, and what one measures

    def _rounds(self, title: str, sides: Mapping[str, Callable[[], Values]], *, count: int | None = None) -> Found:
        """All sides in turn, so many times; each time another one begins. A peer that fails is left out."""
        values: defaultdict[str, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        total, names = count or self.sizes.rounds, list(sides)
        for number in range(total):
            self.say(f"{title}, round {number + 1} of {total}")
            first = number % len(names)
            for name in names[first:] + names[:first]:
                try:
                    found = sides[name]()
                except SystemExit as error:
                    if name not in self.peers:
                        raise
                    self.say(f"{title}: {name} is left out: {error}")
                    names.remove(name)
                    continue
                for key, value in found.items():
                    values[name][key].append(value)
        return {name: {key: tuple(found) for key, found in values[name].items()} for name in names}

    def _start_up(self, start: Start) -> Values:
        started = time.perf_counter()
        with self._alone(start) as one:
            with closing(Api(HOST, one.port, one.dialect)) as api:
                api.end_of_one()
            ended = time.perf_counter()
            return {"answered": one.answered_at - started, "ended": ended - started}

    def _memory_of(self, start: Start) -> Values:
        with self._alone(start) as one:
            self._load(one, "burst", tasks=WARMING_TASKS, connections=2)
            time.sleep(1)
            idle = {f"idle {process.name}": process.pss_mb for process in one.processes}
            values = {"idle": one.idle_mb, **idle}
            _forget_peaks(one)
            self._load(one, "burst", tasks=self.sizes.tasks, connections=self.sizes.connections)
            values |= {f"load {name}": peak for name, peak in _peaks(one).items()}
            return {**values, "load": sum(process.peak_mb for process in one.processes)}

    def _burst_and_cpu(self, one: System) -> Values:
        before = [process.cpu_seconds for process in one.processes]
        found = self._load(one, "burst", tasks=self.sizes.tasks, connections=self.sizes.connections)
        used: defaultdict[str, float] = defaultdict(float)
        for process, earlier in zip(one.processes, before, strict=True):
            used[process.name] += (process.cpu_seconds - earlier) * 1000 / self.sizes.tasks
        return {**found, **{f"cpu_ms {name}": value for name, value in used.items()}, "cpu_ms": sum(used.values())}

    def _fetch_and_peaks(self, one: System, idle: Mapping[str, float]) -> Values:
        """``idle`` is what was resident before the first round, so that what stays is seen."""
        use_memory(self.material.folder, self.sizes.spare_bytes)
        _forget_peaks(one)
        found = self._load(one, "fetch")
        peaks = _peaks(one)
        above = {f"above {name}": peaks[name] - resident for name, resident in idle.items()}
        return {**found, **above, "peak": sum(process.peak_mb for process in one.processes)}

    # The processes that load, and the floors

    def _load(self, one: System, load: str, **options: int | str) -> Values:
        place: dict[str, int | str] = {"host": HOST, "port": one.port, "submit": one.dialect.submit}
        return _said("wire", load, document=one.dialect.document, **place, **options)

    def _imported(self, code: str) -> Values:
        started = time.perf_counter()
        subprocess.run([self.own_python, "-c", code], check=True, cwd=ROOT)
        return {"seconds": time.perf_counter() - started}

    def _floor(self, floor: str, subject: str, *, python: str = sys.executable, **options: int) -> Values:
        return _said("floors", floor, subject, python=python, **options)

    def _spawned(self, *, at_once: int, count: int, pause_ms: int = 0) -> Values:
        program = self.material.program
        found = self._floor("spawn", program, count=count, at_once=at_once, pause_ms=pause_ms)
        return {**found, "tasks_per_second": found["per_second"]}

    def _spawn_floors(self, *, at_once: int, count: int) -> Sides:
        """posix_spawn and wait of the same program, from Python and from C."""
        found: Sides = {"spawn": partial(self._spawned, at_once=at_once, count=count)}
        if spawner := self.material.spawner:
            words = [spawner, self.material.program, str(count), str(at_once)]
            found["spawn from C"] = lambda: {"tasks_per_second": _printed(words)["per_second"]}
        return found

    def _base64_floors(self, file: str) -> Sides:
        found: Sides = {"binascii": partial(self._floor, "binascii", file)}
        if self.floors_python:
            found["pybase64"] = partial(self._floor, "pybase64", file, python=self.floors_python)
        return found

    @contextmanager
    def _held(self, one: System, what: str, count: int) -> Iterator[bool]:
        """So many connections that wait; False if the server does not let such wait."""
        options = ("--host", HOST, "--port", str(one.port), "--what", what, "--count", str(count))
        command = [sys.executable, "-m", "benchmarks.wire", "hold", *options]
        with subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as holder:
            assert holder.stdin
            assert holder.stdout
            try:
                line = holder.stdout.readline()
                if not line:
                    raise SystemExit(f"{count} connections could not be held")
                yield bool(json.loads(line)["is_known"])
            finally:
                holder.stdin.close()
                holder.wait()

    @contextmanager
    def _hello(self) -> Iterator[dict[str, System]]:
        """The ASGI floors, by name; without a redis-server only the one that says hello."""
        with TemporaryDirectory(prefix="script-runner-benchmark-") as name, ExitStack() as stack:
            folder, port = Path(name), free_port()
            store = ""
            if system.redis_server():
                store, _ = stack.enter_context(system.own_redis(folder))
            environment = {
                "HELLO_REDIS": f"redis://{store or HOST}",
                "HELLO_FILE": str(self.material.file),
                "PYTHONPATH": str(ROOT),
            }
            words = ["-m", "uvicorn", "benchmarks.hello:app", "--port", str(port), "--no-access-log"]
            words += ["--loop", "uvloop", "--http", "httptools", "--log-level", "warning"]
            server = stack.enter_context(running([sys.executable, *words], folder, "hello", environment))
            until(lambda: system.answer_moment(port), server, folder / "hello.log")
            found = {"ASGI hello": System("ASGI hello", port, "", (), Dialect("/hello/", ""))}
            if store:
                found["ASGI XADD"] = System("ASGI XADD", port, store, (), Dialect("/xadd/", ""))
            yield found

    @contextmanager
    def _all_started(self, config: Path, names: Sequence[str] | None = None) -> Iterator[dict[str, System]]:
        starts = {name: start for name, start in self.starts.items() if names is None or name in names}
        with self._started(starts, config) as systems:
            yield systems

    @contextmanager
    def _started(self, starts: Mapping[str, Start], config: Path) -> Iterator[dict[str, System]]:
        """All of these at once, each in a folder of its own. A peer that does not start is left out."""
        with ExitStack() as stack:
            systems = {}
            for name, start in starts.items():
                folder = stack.enter_context(TemporaryDirectory(prefix="script-runner-benchmark-"))
                try:
                    systems[name] = stack.enter_context(start(config, Path(folder)))
                except SystemExit as error:
                    if name in self.ours:
                        raise
                    self.say(f"{name} is left out: {error}")
            yield systems

    @contextmanager
    def _alone(self, start: Start) -> Iterator[System]:
        with (
            TemporaryDirectory(prefix="script-runner-benchmark-") as folder,
            start(self.material.trivial, Path(folder)) as one,
        ):
            yield one

    # Figures

    def _ours(self, found: Mapping[str, Any]) -> list[str]:
        return [name for name in found if name in self.ours]

    def _ours_and(self, *peers: str) -> list[str]:
        return [name for name in self.starts if name in (*self.ours, *peers)]

    def _compared(
        self,
        found: Found,
        title: str,
        unit: str,
        key: str,
        *,
        bars: Mapping[str, Aim] | None = None,
        aim: Aim | None = None,
    ) -> Iterator[Figure]:
        """Each of ours beside each of the others that has such a value; ``aim`` is held against ours alone."""
        for name in self._ours(found):
            ours = found[name].get(key)
            if not ours:
                continue
            if aim:
                yield Figure(name, title, unit, ours, aim=aim)
            others = [other for other in found if other not in self.ours and key in found[other]]
            for other in others:
                yield Figure(name, title, unit, ours, other, found[other][key], (bars or {}).get(other))
            if not others and not aim:
                yield Figure(name, title, unit, ours)

    def _submit_figures(self, found: Found, connections: int) -> Iterator[Figure]:
        # webhook answers when the task has ended, and a spawn is no submission
        taken = {name: values for name, values in found.items() if name not in (peers.WEBHOOK, "spawn")}
        bars = {ORIGINAL: Aim("at least", 5, of="ratio"), "ASGI XADD": Aim("at least", 0.6, of="ratio")}
        title, chosen = f"submits/s at {connections}", bars if connections == self.sizes.connections else {}
        yield from self._compared(taken, title, "/s", "submits_per_second", bars=chosen)
        for name in ("p50", "p99"):
            yield from self._compared(taken, f"submit {name} at {connections}", "ms", name)

    def _burst_figures(self, found: Found, many: str) -> Iterator[Figure]:
        bars = {ORIGINAL: Aim("at least", 4, of="ratio"), "spawn": Aim("at least", 0.7, of="ratio")}
        yield from self._compared(found, f"tasks/s, {many}", "/s", "tasks_per_second", bars=bars)

    def _large_figures(
        self, systems: Mapping[str, System], title: str, found: Found, bars: Mapping[str, Aim]
    ) -> Iterator[Figure]:
        yield from self._compared(found, f"{title}, POST to downloaded", "s", "seconds", bars=bars)
        yield from self._compared(found, f"{title}, POST to first byte", "s", "first_byte")
        peaks = {name: {"peak": values["peak"]} for name, values in found.items() if "peak" in values}
        yield from self._compared(peaks, f"{title}, sum of peaks", "MB", "peak")
        for name in self._ours(systems):
            for process, limit in (("worker", 40), ("server", 30), ("Redis", None)):
                ours = found[name][f"above {process}"]
                aim = Aim("under", limit) if limit else None
                yield Figure(name, f"{title}, peak of {process} above idle", "MB", ours, aim=aim)


MEASURES = (
    "start", "memory", "latency", "submit", "burst", "many", "concurrency", "poll", "rows", "flat", "attachment",
    "large", "streams", "silent",
)  # fmt: skip


def _forget_peaks(one: System) -> dict[str, float]:
    """Begin the peaks anew; what is resident now, by kind of process."""
    resident: defaultdict[str, float] = defaultdict(float)
    for process in one.processes:
        process.forget_peak()
        resident[process.name] = max(resident[process.name], process.resident_mb)
    return dict(resident)


def _peaks(one: System) -> Values:
    """The peak of the largest process of each kind."""
    peaks: defaultdict[str, float] = defaultdict(float)
    for process in one.processes:
        peaks[process.name] = max(peaks[process.name], process.peak_mb)
    return dict(peaks)


def _cores_used(one: System, *, seconds: float = QUIET_SECONDS) -> float:
    """How many cores all its processes together keep busy now."""
    before, started = one.cpu_seconds, time.perf_counter()
    time.sleep(seconds)
    return (one.cpu_seconds - before) / (time.perf_counter() - started)


def _said(module: str, *words: str, **options: int | str) -> Values:
    """What one of our own processes prints, run by ``python`` or by our own; SystemExit if it failed."""
    python = str(options.pop("python", sys.executable))
    flags = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return _printed([python, "-m", f"benchmarks.{module}", *words, *flags])


def _printed(command: list[str]) -> Values:
    """The JSON object that a process prints. It does not outlive this call."""
    # Ctrl-C is to reach us alone
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    with process:
        try:
            said = process.communicate()[0]
        finally:
            process.kill()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    found: Values = json.loads(said)
    return found
