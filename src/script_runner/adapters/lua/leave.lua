-- End a worker's lease at once; what it held is settled by the next reaper. ARGV: worker.

need_no_room()
if redis.call('ZSCORE', key('workers'), ARGV[1]) then
  redis.call('ZADD', key('workers'), 0, ARGV[1])
  redis.call('HDEL', key('slots'), ARGV[1])
  redis.call('HDEL', key('loaded'), ARGV[1])
  redis.call('HDEL', key('versions'), ARGV[1])
end
