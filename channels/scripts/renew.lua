-- ARGV[5]: ttl_ms. A hold that has ended is not brought back: its amount may already be someone else's.
if not own then return reply('withheld') end
redis.call('ZADD', expiry, whole(now_ms + tonumber(ARGV[5])), call)
return reply('renewed')
