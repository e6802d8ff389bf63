-- Note which server this is, on every new connection. ARGV: its run id (INFO, section server).
-- When it is another than before (a restart, or a replica that took over), the last writes may be missing in it: a
-- task may seem to wait while it runs, and a lease to be over that was renewed. So for one lease no worker counts as
-- dead, and nothing starts until each has compared what it runs with what it holds (hear.lua).

local known = redis.call('HGET', key('server'), 'run_id')
if known == ARGV[1] then
  return
end
need_no_room()
redis.call('HSET', key('server'), 'run_id', ARGV[1])
local now = milliseconds()
local lease = tonumber(redis.call('HGET', key('reaper'), 'lease') or 0)
if known then
  for _, worker in ipairs(redis.call('ZRANGEBYSCORE', key('workers'), '(0', '+inf')) do
    redis.call('SADD', key('unheard'), worker)
  end
  redis.call('HSET', key('server'), 'quiet_from', text(now), 'quiet_until', text(now + lease))
  redis.call('HSET', key('reaper'), 'quiet_until', text(now + lease))
  mend_tokens()
end
