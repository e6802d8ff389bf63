-- Hold a worker's lease from now. ARGV: worker, milliseconds, how many it runs at once, the configuration it has loaded.
-- Returns 1 when it was there already, whether or not its time had passed.

local worker, lease, slots = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local added = redis.call('ZADD', key('workers'), text(milliseconds() + lease), worker)
redis.call('HSET', key('reaper'), 'lease', text(lease))
redis.call('HSET', key('slots'), worker, slots)
redis.call('HSET', key('loaded'), worker, ARGV[4])
return 1 - added
