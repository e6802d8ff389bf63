-- Ids of finished tasks past their retention, oldest first. ARGV: limit.

return redis.call('ZRANGEBYSCORE', key('finished'), '-inf', text(milliseconds()), 'LIMIT', 0, ARGV[1])
