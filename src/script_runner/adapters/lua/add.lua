-- Queue a task once, however often it is asked. ARGV: id, owner, idempotency key (empty: none), the most that may
-- wait, the most of one owner that may wait (empty: no limit), milliseconds it may wait (empty: no limit),
-- then the fields of the record.
-- Returns when it was created and its place; or an earlier task as it is told; or a word on why there is none:
-- "differs"; "full" or "share" and milliseconds to wait.

local id, owner, once, most, share, patience = unpack(ARGV, 1, 6)

local function known()
  local earlier = once ~= '' and redis.call('GET', key('once', once))
  if earlier and redis.call('EXISTS', key('task', earlier)) == 1 then
    return earlier
  end
  return redis.call('EXISTS', key('task', id)) == 1 and id
end

local given = {}
for index = 7, #ARGV, 2 do
  given[ARGV[index]] = ARGV[index + 1]
end

local function is_over(limit, list)
  return limit ~= '' and redis.call('ZCARD', list) >= tonumber(limit)
end

local function create()
  local now, sequence = milliseconds(), redis.call('INCR', key('sequence'))
  local expires = patience ~= '' and text(now + tonumber(patience)) or nil
  redis.call('ZADD', key('owner', owner), sequence, id)
  enter(id, {nil, owner, sequence}, 'queued', 'id', id, 'owner', owner, 'attempt', 0, 'run', 0,
    'sequence', sequence, 'created', text(now), unpack(ARGV, 7))
  if expires then
    redis.call('HSET', key('task', id), 'expires', expires)
  end
  if once ~= '' then
    redis.call('HSET', key('task', id), 'once', once)
    redis.call('SET', key('once', once), id)
  end
  wait(id, owner, sequence, given.priority, nil, given.not_before, expires)
  return {now, place(owner, member(id, sequence))}
end

local earlier = known()
if earlier and earlier ~= id then
  return read(earlier, 'fingerprint')[1] == given.fingerprint and told(earlier) or {'differs'}
end
if earlier then
  return told(id)
end
if is_over(most, key('queued')) then
  return {'full', expected_wait(1)}
end
if is_over(share, key('queued', owner)) then
  return {'share', expected_wait(1)}
end
return create()
