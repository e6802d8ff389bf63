-- Hold a worker's lease from now. ARGV: worker, milliseconds, how many it runs at once, the configuration it has loaded,
-- its version of this package (may be empty).
-- Returns 1 when it was there already, whether or not its time had passed.

local worker, lease, slots = ARGV[1], tonumber(ARGV[2]), ARGV[3]
need_no_room()
local added = redis.call('ZADD', key('workers'), text(milliseconds() + lease), worker)
redis.call('HSET', key('reaper'), 'lease', text(lease))
redis.call('HSET', key('slots'), worker, slots)
redis.call('HSET', key('loaded'), worker, ARGV[4])
if (ARGV[5] or '') ~= '' then
  redis.call('HSET', key('versions'), worker, ARGV[5])
end
return 1 - added
