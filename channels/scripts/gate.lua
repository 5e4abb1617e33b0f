-- KEYS: token, gate. ARGV: treasury token, open. Claims the store for the newest treasury, and opens the gate of this
-- server's memory once that treasury has reconciled it. An old treasury can do neither.
if tonumber(ARGV[1]) < tonumber(redis.call('GET', KEYS[1]) or 0) then return 'stale' end
redis.call('SET', KEYS[1], ARGV[1])
if ARGV[2] == '1' then redis.call('SET', KEYS[2], RUN) end
return redis.call('GET', KEYS[2]) == RUN and 'open' or 'closed'
