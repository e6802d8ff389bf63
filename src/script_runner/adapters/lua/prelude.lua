-- What every script begins with: the clock, the names of the keys, and the moves of one task.
-- KEYS[1] is the prefix of all keys, the first argument the newest format of records that the caller understands;
-- times are milliseconds by the clock of the server.

local prefix = KEYS[1]
local FORMAT = tonumber(table.remove(ARGV, 1))

-- A rank is a priority (the high digits) and a turn (these).
local TURNS = 2 ^ 47
local MOST_AT_ONCE = 100

local function key(kind, name)
  return name and prefix .. kind .. ':' .. name or prefix .. kind
end

-- One moment for all of a script.
local moment
local function milliseconds()
  if not moment then
    local time = redis.call('TIME')
    moment = time[1] * 1000 + math.floor(time[2] / 1000)
  end
  return moment
end

-- A Redis that is full refuses what takes memory, but not to a script that has written what takes none. For what must
-- happen all the same: a lease that is not renewed costs the scripts that run.
local function need_no_room()
  redis.call('DEL', key('room'))
end

local function text(number)
  return string.format('%.0f', number)
end

local function read(id, ...)
  return redis.call('HMGET', key('task', id), ...)
end

-- Whether only a newer version understands this record; then it is left alone.
local function is_format_newer(format)
  return tonumber(format or 0) > FORMAT
end

local function is_newer(id)
  return is_format_newer(read(id, 'format')[1])
end

-- The most that may run, of all and of one owner, each under its name; nothing where there is no limit.
local known_limits
local function limits()
  if not known_limits then
    local given = redis.call('HMGET', key('limits'), 'running', 'running_per_caller')
    known_limits = {running = tonumber(given[1] or ''), running_per_caller = tonumber(given[2] or '')}
  end
  return known_limits
end

-- How many more there may be of a kind that has a limit; without one, as many as are moved at once.
local function room(limit, kind, owner)
  local most = limits()[limit]
  return most and most - redis.call('ZCARD', key(kind, owner)) or MOST_AT_ONCE
end

-- Workers that wait are woken by a token each; more than these are of no use.
local function wake()
  if redis.call('LLEN', key('wake')) < 128 then
    redis.call('LPUSH', key('wake'), 1)
  end
end

-- After the server was replaced by another (a restart, a failover) nothing starts while living workers have yet to
-- compare what they run with what they hold.
local has_unheard
local function is_quiet()
  if has_unheard == nil then
    has_unheard = redis.call('EXISTS', key('unheard')) == 1
  end
  if not has_unheard then
    return false
  end
  local server = redis.call('HMGET', key('server'), 'quiet_from', 'quiet_until')
  local now = milliseconds()
  return now >= tonumber(server[1] or 0) and now < tonumber(server[2] or 0)
end

-- Whether this worker was one that had yet to compare.
local function heard(worker)
  has_unheard = nil
  return redis.call('SREM', key('unheard'), worker) == 1
end

local function may_start()
  return room('running', 'running') > 0 and not is_quiet()
end

-- Tokens speak of tasks that may start: none without, at least one with. Whether there are such.
local function mend_tokens()
  local may_more = redis.call('EXISTS', key('queue')) == 1 and may_start()
  if not may_more then
    redis.call('DEL', key('wake'))
  elseif redis.call('EXISTS', key('wake')) == 0 then
    wake()
  end
  return may_more
end

-- Tell those who listen. A user whom the server's rules keep from the channel (ACL) tells nobody, and does
-- its work all the same; those who listen look for themselves now and then.
local function publish(channel, word)
  redis.pcall('PUBLISH', channel, word)
end

local function tell(id, state)
  publish(key('changes'), id .. ' ' .. state)
end

-- What the lists know of a task.
local function listed(id)
  return read(id, 'state', 'owner', 'sequence')
end

-- Let a task that was listed so come into a state, with more fields of its record: the lists that tell of a task by its
-- state say when it came there, and each owner's go by sequence.
local function enter(id, was, state, ...)
  if was[1] then
    redis.call('ZREM', key(was[1]), id)
    redis.call('ZREM', key(was[1], was[2]), id)
  end
  redis.call('HSET', key('task', id), 'state', state, ...)
  redis.call('ZADD', key(state), text(milliseconds()), id)
  redis.call('ZADD', key(state, was[2]), was[3], id)
  if was[1] then
    tell(id, state)
  end
end

-- A task in the queue: by its rank, then by its sequence.
local function member(id, sequence)
  return string.format('%016.0f', tonumber(sequence)) .. id
end

local function member_id(member)
  return string.sub(member, 17)
end

-- The rank of a new task: priorities apart, the owners take turns (start-time fair queueing, Goyal et al. 1996).
local function new_rank(id, owner, priority)
  local turn = tonumber(redis.call('HGET', key('turn'), priority) or 0)
  local own = tonumber(redis.call('ZSCORE', key('turns', priority), owner) or -1)
  turn = math.max(turn, own + 1)
  redis.call('ZADD', key('turns', priority), text(turn), owner)
  local rank = text((9 - tonumber(priority)) * TURNS + turn)
  redis.call('HSET', key('task', id), 'rank', rank)
  return rank
end

-- Let a task wait for its start, once its time has come; one that waited before keeps its rank.
local function wait(id, owner, sequence, priority, rank, not_before, expires)
  if expires then
    redis.call('ZADD', key('expiring'), expires, id)
  end
  if tonumber(not_before or 0) > milliseconds() then
    redis.call('ZADD', key('scheduled'), not_before, id)
  else
    redis.call('ZADD', key('queue'), rank or new_rank(id, owner, priority), member(id, sequence))
    if may_start() then
      wake()
    end
  end
end

local function enqueue(id)
  wait(id, unpack(read(id, 'owner', 'sequence', 'priority', 'rank', 'not_before', 'expires'), 1, 6))
end

-- Take a task off all that waits. When nothing more of its owner does, turns that it did not use are not held against it.
local function dequeue(id)
  local task = read(id, 'owner', 'sequence', 'format', 'state', 'priority')
  if task[4] == 'queued' and redis.call('ZCARD', key('queued', task[1])) == 1 then
    redis.call('ZREM', key('turns', task[5]), task[1])
  end
  local waiting = member(id, task[2])
  redis.call('ZREM', key('queue'), waiting)
  redis.call('ZREM', key('backlog', task[1]), waiting)
  redis.call('ZREM', key('newer', task[3]), waiting)
  redis.call('ZREM', key('scheduled'), id)
  redis.call('ZREM', key('expiring'), id)
end

-- Let tasks of an owner whose others had to end first wait in the queue again.
local function admit(owner)
  local backlog = key('backlog', owner)
  if redis.call('SISMEMBER', key('backlogs'), owner) == 0 then
    return
  end
  local count = math.min(room('running_per_caller', 'running', owner), MOST_AT_ONCE)
  if count > 0 then
    local waiting = redis.call('ZRANGE', backlog, 0, count - 1, 'WITHSCORES')
    for index = 1, #waiting, 2 do
      redis.call('ZADD', key('queue'), waiting[index + 1], waiting[index])
      redis.call('ZREM', backlog, waiting[index])
    end
  end
  if redis.call('EXISTS', backlog) == 0 then
    redis.call('SREM', key('backlogs'), owner)
  end
end

-- The fence: what the lists know of the task, if this run (worker and number of the run) holds it now.
local function held_by(id, worker, run)
  local task = read(id, 'state', 'owner', 'sequence', 'worker', 'run')
  return task[1] == 'running' and task[4] == worker and task[5] == run and task
end

local function let_go(id, worker)
  redis.call('SREM', key('held', worker), id)
  redis.call('DEL', key('log', id))
end

-- How long runs take: each new one counts a fifth.
local function note_pace(started, now)
  local last = tonumber(redis.call('GET', key('pace')) or '')
  local took = now - started
  redis.call('SET', key('pace'), text(last and last * 0.8 + took * 0.2 or took))
end

-- The one way into a final state, for a task that was listed so.
local function finish(id, was, state, outcome, exit_code)
  local now = milliseconds()
  local task = read(id, 'retention:' .. state, 'retention', 'started')
  enter(id, was, state, 'outcome', outcome, 'exit_code', exit_code or '', 'finished', text(now))
  redis.call('ZADD', key('finished'), text(now + tonumber(task[1] or task[2])), id)
  if task[3] and (state == 'succeeded' or state == 'failed') then
    note_pace(tonumber(task[3]), now)
  end
  admit(was[2])
  mend_tokens()
end

-- The way of a task whose run was given up: back in the queue, or final when it may not run again. Returns the state.
local function give_up(id)
  local task = read(id, 'worker', 'attempt', 'max_attempts', 'cancelling', 'owner', 'started', 'expires')
  let_go(id, task[1])
  if task[4] then
    finish(id, listed(id), 'cancelled', '{"state":"cancelled","error":"The task was cancelled."}')
    return 'cancelled'
  elseif tonumber(task[2]) < tonumber(task[3]) then
    enter(id, listed(id), 'queued')
    if task[7] then -- while it ran it did not wait
      redis.call('HSET', key('task', id), 'expires', text(task[7] + milliseconds() - task[6]))
    end
    redis.call('HDEL', key('task', id), 'worker', 'started')
    enqueue(id)
    admit(task[5])
    mend_tokens()
    return 'queued'
  else
    local error = 'The worker was lost while the script ran (attempt ' .. task[2] .. ' of ' .. task[3] .. ').'
    finish(id, listed(id), 'lost', cjson.encode({state = 'lost', error = error}))
    return 'lost'
  end
end

-- Those that this script ended because they had waited too long.
local expired = {}

local function expire(id)
  table.insert(expired, id)
  local ending = read(id, 'run')[1] == '0' and ', and was not run.' or ' before it was run again.'
  local error = 'The task waited longer than it was allowed to' .. ending
  dequeue(id)
  finish(id, listed(id), 'timed_out', cjson.encode({state = 'timed_out', error = error}))
end

-- What the clock brings: tasks whose time has come wait in the queue, those that waited too long are final.
local function tick()
  local now = milliseconds()
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', key('expiring'), '-inf', text(now), 'LIMIT', 0, MOST_AT_ONCE)) do
    if not is_newer(id) then
      expire(id)
    end
  end
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', key('scheduled'), '-inf', text(now), 'LIMIT', 0, MOST_AT_ONCE)) do
    redis.call('ZREM', key('scheduled'), id)
    enqueue(id)
  end
end

-- How many runs there may be at once: what the workers have room for, at most what the limit says.
local function capacity()
  local slots = 0
  for _, count in ipairs(redis.call('HVALS', key('slots'))) do
    slots = slots + tonumber(count)
  end
  local most = limits().running
  return most and math.min(most, slots) or slots
end

-- The milliseconds until so many that wait could have started; -1 when nobody knows.
local function expected_wait(position)
  local slots = capacity()
  local behind = position - (slots - redis.call('ZCARD', key('running')))
  local pace = tonumber(redis.call('GET', key('pace')) or '')
  if slots == 0 or (behind > 0 and not pace) then
    return -1
  end
  return behind > 0 and math.ceil(behind * pace / slots) or 0
end

-- Where a task stands among those that wait: its position (0 = nowhere) and its expected wait.
local function place(owner, waiting)
  local before = redis.call('ZRANK', key('queue'), waiting)
  if not before then
    before = redis.call('ZRANK', key('backlog', owner), waiting)
    before = before and before + redis.call('ZCARD', key('queue'))
  end
  if not before then
    return 0, -1
  end
  return before + 1, expected_wait(before + 1)
end

local function field(record, name)
  for index = 1, #record, 2 do
    if record[index] == name then
      return record[index + 1]
    end
  end
end

-- A task as it is told: its record, and its place.
local function told(id)
  local record = redis.call('HGETALL', key('task', id))
  if field(record, 'state') ~= 'queued' then
    return {record, 0, -1}
  end
  return {record, place(field(record, 'owner'), member(id, field(record, 'sequence')))}
end
