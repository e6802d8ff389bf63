-- Write something, also to a server that is full: replicas are waited for from the last write of a connection on.

need_no_room()
redis.call('SET', key('mark'), 1)
