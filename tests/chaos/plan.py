"""What will be done to the system and what will be asked of it, all of it drawn from one seed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

LEASE_SECONDS = 2.0

HURTS_PER_EPISODE = 16
"""How many hurts one world suffers before it is judged and built anew."""

WEIGHTS = {
    "kill-server": 2,
    "kill-worker": 4,
    "kill-machine": 2,
    "kill-guardian": 1,
    "kill-script": 3,
    "kill-redis": 3,
    "stop-worker": 2,
    "stop-script": 1,
    "stop-redis": 1,
    "pause-machine": 2,
    "term-server": 1,
    "term-worker": 2,
    "cut-worker": 1,
    "blackhole-worker": 2,
    "delay-worker": 1,
    "half-close-worker": 1,
    "partition-server": 1,
    "fill-disk": 1,
    "fill-redis-disk": 1,
    "failover": 2,
}
"""The kinds of hurt, and how often each comes in one round of all of them."""

DISK_KINDS = ("fill-disk", "fill-redis-disk")
"""Kinds that need a small disk of their own, which not everybody may mount."""

FAILOVER_KINDS = ("failover",)
"""Kinds that need a replica, and writes that wait for it."""

IS_FAILOVER_IN_DEFAULT_PLAN = True

ALWAYS_BEYOND_LEASE = ("pause-machine",)

ORDERS = {
    "instant": 26,
    "seconds": 22,
    "long": 8,
    "forking": 16,
    "flooding": 8,
    "term-proof": 8,
    "files": 12,
}
"""The kinds of script, and how many in a hundred are of each."""


@dataclass(frozen=True, slots=True)
class Hurt:
    """One thing that is done to the system."""

    kind: str
    pause_before: float
    """Seconds after the hurt before it has begun."""

    pick: float
    """Which one of several is hit, as a number from 0 to 1."""

    seconds: float
    """How long it lasts; shorter or longer than the lease."""

    rest: float
    """How long a killed program stays away."""

    variant: int
    """Which of the ways to do it."""


@dataclass(frozen=True, slots=True)
class Order:
    """One task that the caller submits."""

    kind: str
    seconds: float
    """How long the script works."""

    pause_before: float
    cancel_after: float | None
    """Seconds after the answer when the caller thinks better of it."""

    key: str
    """The caller's own name of it, the same in every repeat."""


@dataclass(frozen=True, slots=True)
class Episode:
    """One world, what it suffers, and what is asked of it."""

    number: int
    seed: int
    server: str
    """``redis`` or ``valkey``."""

    is_retried: bool
    workers: int
    hurts: tuple[Hurt, ...]
    outstanding: int = 24
    """How many tasks may be on their way before the caller waits."""

    @property
    def kinds(self) -> set[str]:
        return {hurt.kind for hurt in self.hurts}

    def orders(self) -> Iterator[Order]:
        """The tasks in the order of their submission, without end."""
        random = _random(self.seed, self.number, "orders")
        while True:
            kind = random.choices(list(ORDERS), list(ORDERS.values()))[0]
            yield Order(
                kind=kind,
                seconds=_work_seconds(random, kind),
                pause_before=random.expovariate(6.0),
                cancel_after=random.uniform(0, 3) if random.random() < 0.07 else None,
                key=f"{random.getrandbits(128):032x}",
            )


def plan(seed: int, kills: int, kinds: Sequence[str], *, per_episode: int = HURTS_PER_EPISODE) -> list[Episode]:
    """The episodes of a run with so many hurts of these kinds; the same seed gives the same plan."""
    random = _random(seed, "plan")
    hurts = [_hurt(random, kind) for kind in _deck(random, kills, kinds)]
    parts = _parts(random, hurts, per_episode)
    return [
        Episode(
            number=number,
            seed=seed,
            server=("redis", "valkey")[(number + seed) % 2],
            is_retried=(number // 2 + seed) % 3 != 2,
            workers=random.choice((2, 3)),
            hurts=part,
        )
        for number, part in enumerate(parts)
    ]


def _parts(random: Random, hurts: Sequence[Hurt], size: int) -> list[tuple[Hurt, ...]]:
    """The hurts of each episode. Failovers share some episodes, whose worlds have a replica, with others, but not
    with full disks: Redis 7.0 that was a replica can spoil its append-only file on one.
    """
    failovers = [hurt for hurt in hurts if hurt.kind in FAILOVER_KINDS]
    disks = [hurt for hurt in hurts if hurt.kind in DISK_KINDS]
    others = [hurt for hurt in hurts if hurt not in failovers and hurt not in disks]
    parts: list[tuple[Hurt, ...]] = []
    while failovers:
        part = failovers[: (size + 1) // 2]
        del failovers[: len(part)]
        company = others[: size - len(part)]
        del others[: len(company)]
        part += company
        random.shuffle(part)
        parts.append(tuple(part))
    rest = others + disks
    random.shuffle(rest)
    parts += [tuple(rest[start : start + size]) for start in range(0, len(rest), size)]
    random.shuffle(parts)
    return parts


def _deck(random: Random, count: int, kinds: Sequence[str]) -> list[str]:
    """So many kinds in random order, each as often as its weight says."""
    drawn: list[str] = []
    while len(drawn) < count:
        whole_round = [kind for kind in kinds for _ in range(WEIGHTS[kind])]
        random.shuffle(whole_round)
        drawn += whole_round
    return drawn[:count]


def _hurt(random: Random, kind: str) -> Hurt:
    is_short = random.random() < 0.4 and kind not in ALWAYS_BEYOND_LEASE
    return Hurt(
        kind=kind,
        pause_before=random.uniform(0.1, 2.0),
        pick=random.random(),
        seconds=random.uniform(0.1, 0.8 * LEASE_SECONDS) if is_short else random.uniform(1.4, 2.4) * LEASE_SECONDS,
        rest=random.choice((0.0, random.uniform(0, 1), random.uniform(1, 1.5 * LEASE_SECONDS))),
        variant=random.randrange(1 << 16),
    )


def _work_seconds(random: Random, kind: str) -> float:
    match kind:
        case "instant":
            return 0.0
        case "long":
            return random.uniform(2.1, 3.0) * LEASE_SECONDS
        case "seconds" | "term-proof":
            return random.uniform(1.0, 4.0)
        case _:
            return random.uniform(0.3, 3.0)


def _random(*parts: object) -> Random:
    return Random("/".join(map(str, parts)))  # noqa: S311 - to be repeated, not to be secret
