-- Hold a worker's lease from now. ARGV: worker, milliseconds.
-- Returns 1 when it was there already, whether or not its time had passed.

local worker, lease = ARGV[1], tonumber(ARGV[2])
local added = redis.call('ZADD', key('workers'), text(milliseconds() + lease), worker)
redis.call('HSET', key('reaper'), 'lease', text(lease))
return 1 - added
