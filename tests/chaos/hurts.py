"""The deeds: what is done to the system, one function a kind."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import redis
from tests.chaos.ledger import Held, held, now
from tests.chaos.plan import LEASE_SECONDS, Hurt
from tests.chaos.world import PATIENCE_SECONDS, Slot, World, freeze
from tests.end_to_end.processes import until

NOTICE_PATIENCE_SECONDS = 10 * LEASE_SECONDS
REST_SECONDS = 2 * LEASE_SECONDS
"""How long after an outage of Redis nobody is taken for dead."""

STALE_SECONDS = 2.0
"""How long a script that stood still with its machine may live after it; its guardian kills it at once."""

Deed = Callable[[World, Hurt], None]


# kill -9


def kill_server(world: World, hurt: Hurt) -> None:
    slot = world.server(hurt.pick)
    with slot.lock:
        slot.kill()
        time.sleep(hurt.rest)
        slot.start()


def kill_worker(world: World, hurt: Hurt) -> None:
    slot = world.worker(hurt.pick)
    with slot.lock:
        life = slot.life
        slot.kill()
        killed_at = now()
        measure = threading.Thread(target=_measure_notice, args=(world, life, killed_at), daemon=True)
        measure.start()
        time.sleep(hurt.rest)
        slot.start()
        measure.join()


def kill_machine(world: World, hurt: Hurt) -> None:
    """Worker, guardian and scripts go at once, as when a machine loses its power; its run folders go with it."""
    slot = world.worker(hurt.pick)
    with slot.lock:
        slot.check()
        frozen = freeze(slot)
        world.lost_folders.update(world.folders_of_nobody_else(slot))
        for process in frozen:
            process.signal(signal.SIGKILL)
            process.close()
        slot.program.wait()
        world.journal.note(f"{slot.life} killed with all that it had started")
        time.sleep(hurt.rest)
        slot.start()


def kill_guardian(world: World, hurt: Hurt) -> None:
    """The guardian alone; its worker replaces it, and is not hurt before that."""
    slot = world.worker(hurt.pick)
    with slot.lock:
        slot.check()
        old = held(slot.guardians())
        for guardian in old:
            guardian.signal(signal.SIGKILL)
        until(lambda: slot.guardians() - {guardian.pid for guardian in old}, seconds=PATIENCE_SECONDS)
        for guardian in old:
            guardian.close()


def kill_script(world: World, hurt: Hurt) -> None:
    scripts = _running_scripts(world)
    if scripts:
        script = scripts[int(hurt.pick * len(scripts))]
        world.journal.note(f"kill -9 of script {script.pid} of task {script.task}")
        world.journal.script_killed(str(script.task))
        script.signal(signal.SIGKILL)
    for script in scripts:
        script.close()


def _running_scripts(world: World) -> list[Held]:
    """The scripts that run, once there are any; none if none comes in a while."""
    end = time.monotonic() + LEASE_SECONDS
    while not (scripts := world.leaders()) and time.monotonic() < end:
        time.sleep(0.02)
    return scripts


def kill_redis(world: World, hurt: Hurt) -> None:
    with world.redis_in_trouble():
        world.redis.kill()
        time.sleep(hurt.rest)
        world.redis.start()


# Standing still


def stop_worker(world: World, hurt: Hurt) -> None:
    slot = world.worker(hurt.pick)
    with slot.lock:
        slot.check()
        slot.program.signal(signal.SIGSTOP)
        try:
            time.sleep(hurt.seconds)
        finally:
            slot.program.signal(signal.SIGCONT)


def stop_script(world: World, hurt: Hurt) -> None:
    scripts = _running_scripts(world)
    chosen = scripts[int(hurt.pick * len(scripts)) :][:1]
    for script in chosen:
        world.journal.note(f"script {script.pid} of task {script.task} stopped")
        script.signal(signal.SIGSTOP)
    try:
        time.sleep(hurt.seconds if chosen else 0)
    finally:
        for script in chosen:
            script.signal(signal.SIGCONT)
        for script in scripts:
            script.close()


def stop_redis(world: World, hurt: Hurt) -> None:
    with world.redis_in_trouble():
        world.redis.pause()
        try:
            time.sleep(hurt.seconds)
        finally:
            world.redis.resume()


def pause_machine(world: World, hurt: Hurt) -> None:
    """Worker, guardian and scripts stand still together beyond the lease, and go on together."""
    slot = world.worker(hurt.pick)
    with slot.lock:
        slot.check()
        frozen = freeze(slot)
        scripts = [process for process in frozen if process.task]
        try:
            for task_id in {str(script.task) for script in scripts}:
                world.ledger.begin_era(task_id)
            world.journal.note(f"{slot.life} frozen with {[(script.task, script.pid) for script in scripts]}")
            time.sleep(hurt.seconds)
        finally:
            thawed_at = now()
            for script in scripts:
                world.journal.froze(script.pid, thawed_at + STALE_SECONDS)
            for process in reversed(frozen) if hurt.variant % 2 else frozen:
                process.signal(signal.SIGCONT)
        while any(script.is_alive for script in scripts) and now() < thawed_at + STALE_SECONDS:
            time.sleep(0.002)
        if scripts:
            world.journal.thawed(now() - thawed_at)
        for script in scripts:
            if script.is_alive:
                text = f"script {script.pid} of task {script.task} lives {STALE_SECONDS} s after the pause"
                world.journal.violation("doubled", text, at=thawed_at)
        for process in frozen:
            process.close()


# Being asked to stop


def term_server(world: World, hurt: Hurt) -> None:
    _end_and_start(world.server(hurt.pick), hurt)


def term_worker(world: World, hurt: Hurt) -> None:
    _end_and_start(world.worker(hurt.pick), hurt)


def _end_and_start(slot: Slot, hurt: Hurt) -> None:
    with slot.lock:
        slot.end()
        time.sleep(hurt.rest)
        slot.start()


# The network


def cut_worker(world: World, hurt: Hurt) -> None:
    """Connections break, once or for a while."""
    slot = world.worker(hurt.pick)
    with slot.lock:
        if hurt.variant % 3 == 0:
            slot.wire.cut()
            return
        slot.wire.refuse()
        _heal_after(slot, hurt.seconds)


def blackhole_worker(world: World, hurt: Hurt) -> None:
    """Nothing comes through, one way or both; afterwards what was sent arrives late, or the connections break."""
    _black_hole(world.worker(hurt.pick), hurt)


def delay_worker(world: World, hurt: Hurt) -> None:
    slot = world.worker(hurt.pick)
    with slot.lock:
        slot.wire.delay((0.1, 0.4, 0.9, 1.6)[hurt.variant % 4])
        _heal_after(slot, hurt.seconds)


def half_close_worker(world: World, hurt: Hurt) -> None:
    slot = world.worker(hurt.pick)
    with slot.lock:
        slot.wire.half_close(to_redis=hurt.variant % 2 == 0)


def partition_server(world: World, hurt: Hurt) -> None:
    slot = world.server(hurt.pick)
    match hurt.variant % 3:
        case 0:
            with slot.lock:
                slot.wire.refuse()
                _heal_after(slot, hurt.seconds)
        case 1:
            with slot.lock:
                slot.wire.half_close(to_redis=hurt.variant % 2 == 0)
        case _:
            _black_hole(slot, hurt)


def _black_hole(slot: Slot, hurt: Hurt) -> None:
    with slot.lock:
        direction = hurt.variant % 3
        slot.wire.hold(requests=direction != 1, answers=direction != 0)
        try:
            time.sleep(hurt.seconds)
            if hurt.variant // 3 % 3 == 0:
                slot.wire.cut()
        finally:
            slot.wire.heal()


def _heal_after(slot: Slot, seconds: float) -> None:
    try:
        time.sleep(seconds)
    finally:
        slot.wire.heal()


# Disks


def fill_disk(world: World, hurt: Hurt) -> None:
    """No room for run folders and store."""
    with world.disk_lock:
        _full(world.disks, hurt.seconds)


def fill_redis_disk(world: World, hurt: Hurt) -> None:
    """No room for the append-only file; what was answered in that moment is only safe once there is room again."""
    with world.redis_in_trouble():
        _full([world.redis_disk], hurt.seconds)
        end = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < end and not _is_written(world):
            time.sleep(0.05)


def _full(disks: list[Any], seconds: float) -> None:
    try:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for disk in disks:
                disk.fill()
            time.sleep(0.03)
    finally:
        for disk in disks:
            disk.free()


def _is_written(world: World) -> bool:
    with contextlib.suppress(redis.RedisError), world.redis_client() as client:
        return client.info("persistence").get("aof_last_write_status") == "ok"
    return False


# Failover


def failover(world: World, hurt: Hurt) -> None:
    """The link to the replica stands still for a moment, the master dies, and the replica takes over without
    the last writes.
    """
    assert world.link
    with world.redis_in_trouble():
        world.link.hold(requests=hurt.variant % 2 == 0, answers=True)
        time.sleep(min(hurt.seconds, LEASE_SECONDS / 2) * 0.5)
        world.redis.kill()
        world.link.cut()
        time.sleep(min(hurt.rest, LEASE_SECONDS / 2))
        world.fail_over()


# How soon a dead worker is noticed


def _measure_notice(world: World, life: str, killed_at: float) -> None:
    """Note for each task that ran there when it no longer does, as the store says; not while the store is away."""
    with contextlib.suppress(redis.RedisError, OSError), world.redis_client() as client:
        waiting = {task: value for task in _ran_on(world, life) if (value := _holder(client, world, task))}
        while waiting and now() < killed_at + NOTICE_PATIENCE_SECONDS:
            for task, value in tuple(waiting.items()):
                if _holder(client, world, task) != value:
                    if world.was_redis_well(since=killed_at - REST_SECONDS):
                        world.journal.noticed(now() - killed_at)
                    del waiting[task]
            time.sleep(0.02)


def _ran_on(world: World, life: str) -> set[str]:
    stamps = world.ledger.stamps()
    ended = {stamp.run for stamp in stamps if stamp.word == "end"}
    return {stamp.task for stamp in stamps if stamp.life == life and stamp.run not in ended}


def _holder(client: "redis.Redis", world: World, task_id: str) -> tuple[str, ...] | None:
    state, worker, attempt = client.hmget(world.key("task", task_id), ["state", "worker", "attempt"])
    return (str(worker), str(attempt)) if state == "running" else None


DEEDS: Mapping[str, Deed] = {
    deed.__name__.replace("_", "-"): deed
    for deed in (
        kill_server, kill_worker, kill_machine, kill_guardian, kill_script, kill_redis,
        stop_worker, stop_script, stop_redis, pause_machine, term_server, term_worker,
        cut_worker, blackhole_worker, delay_worker, half_close_worker, partition_server,
        fill_disk, fill_redis_disk, failover,
    )
}  # fmt: skip
