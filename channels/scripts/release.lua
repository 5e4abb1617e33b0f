-- Only the owner gives a hold back: an attempt that came late must not free its successor's.
if not own then return reply('withheld') end
c.held = c.held - amount
drop()
redis.call('HSET', channel, 'held', whole(c.held), 'lossy_max', whole(keyed and c.lossy_max or 0))
return reply('released')
