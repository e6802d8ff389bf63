-- How many workers hold a valid lease.

return redis.call('ZCOUNT', key('workers'), '(' .. text(milliseconds()), '+inf')
