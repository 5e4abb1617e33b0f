-- ARGV[5..6]: abandoned, window_ms. A call without a key whose caller has gone costs nothing, and is counted: a caller
-- who hangs up again and again would have the device work for nothing.
-- Only the owner gives a hold back: an attempt that came late must not free its successor's.
if not own then return reply('withheld') end
c.held = c.held - amount
drop()
redis.call('HSET', channel, 'held', whole(c.held))
if ARGV[5] == '1' and redis.call('INCR', abandoned) == 1 then redis.call('PEXPIRE', abandoned, tonumber(ARGV[6])) end
return reply('released')
