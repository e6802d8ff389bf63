"""Tasks, leases and log tails in Redis or Valkey (6.2 and newer).

Every change of a task is one Lua script (``lua/``), so that it happens whole or not at all. All keys begin with
``{namespace}:1:`` (the braces keep them in one slot of a cluster, the 1 is the version of this layout; each record
carries the version of its own form, ``format``)::

    task:ID        hash    the record: format, id, owner, arguments, configuration, state, attempt, run,
                           max_attempts, priority, rank, sequence, retention (also one for a state), not_before,
                           expires, created, started, finished (ms), worker, cancelling, once, fingerprint,
                           request_id, traceparent, outcome (JSON), exit_code, followed
    owner:OWNER    zset    the owner's ids, by sequence
    STATE          zset    ids in a state -> when they came there (ms)
    STATE:OWNER    zset    the owner's ids in a state, by sequence
    once:DIGEST    text    the id that an owner's idempotency key stands for

    queue          zset    what may start: SEQUENCE and ID, by rank (priority, then turn)
    backlog:OWNER  zset    the same, held back while the owner has as many running as it may
    backlogs       set     owners with a backlog
    newer:FORMAT   zset    the same, put aside for workers that understand it
    scheduled      zset    ids that wait for a time (ms)
    expiring       zset    waiting ids -> until when they may start (ms)
    sequence       number  the last sequence given
    turn           hash    priority -> the turn of the task started last
    turns:PRIORITY zset    owner -> the last turn it was given
    limits         hash    the most that may run, of all and of one caller, as the last claim had it
    pace           number  how long runs took of late (ms)
    wake           list    one token a waiting task (at most 128); workers that wait block on it

    workers        zset    worker -> end of its lease (ms)
    slots          hash    worker -> how many it runs at once
    loaded         hash    worker -> the configuration it has loaded
    versions       hash    worker -> its version of this package
    worker:NAME    hash    its last claim: number and ids, so that a lost answer can be asked for again
    held:NAME      set     ids that the worker runs
    stop:NAME      list    ids that the worker is to stop; a wake-up, the truth is ``cancelling``
    log:ID         hash    tail and start of each stream of a running script
    finished       zset    final ids -> end of their retention (ms)
    reaper         hash    when somebody last looked for dead workers, and until when to leave them
    server         hash    the run id of the server, when it changed, and the end of the leases of before
    unheard        set     workers that have not compared what they run since then
    mark           number  written when replicas are waited for

And channels, which are no keys: nothing of them is kept::

    changes        ID and the state that a task comes into, or ``removed``, as the scripts publish it; servers
                   listen while anybody waits there
    changes:ID     the name of a stream of the task's log of which more can be read; servers listen while the log
                   is followed there

A word says only that there is something to be read. So it may be lost: who listens looks for himself after every
new connection, and every few seconds. In a cluster a word goes to all nodes; replicas get it too.
"""

from script_runner.adapters.redis.changes import RedisChanges
from script_runner.adapters.redis.connection import check_url
from script_runner.adapters.redis.lease import RedisLease
from script_runner.adapters.redis.logs import RedisLogs
from script_runner.adapters.redis.tasks import RedisTasks

__all__ = ["RedisChanges", "RedisLease", "RedisLogs", "RedisTasks", "check_url"]
