-- KEYS: token, readiness, journal, mesh. Claims the store for the newest treasury, and declares this server ready once
-- that treasury has reconciled it. The mark proves that the memory is the one that was reconciled: a memory that was
-- emptied meanwhile has no mark and must be reconciled again.
local treasury, opening, drained, mesh = unpack(ARGV)
-- The owner is checked first: another mesh's tokens cannot be compared with ours, and its readiness must stay.
if mesh ~= '' then
  local owner = redis.call('GET', KEYS[4])
  if owner and owner ~= mesh then return 'foreign:' .. owner end
  if not owner then redis.call('SET', KEYS[4], mesh) end
end
if tonumber(treasury) < tonumber(redis.call('GET', KEYS[1]) or 0) then return 'stale' end
redis.call('SET', KEYS[1], treasury)
local mark = 'reconciling:' .. treasury .. ':' .. RUN
local readiness = redis.call('GET', KEYS[2])
if readiness == RUN then return 'open' end
if opening == '0' then
  redis.call('SET', KEYS[2], mark)
  return 'closed'
end
if readiness ~= mark then return 'lost' end
-- A new server's clock may be behind the stream ids drained before, and nobody would read entries below them.
local last = redis.pcall('XADD', KEYS[3], drained, 'drained', '1')
if type(last) == 'string' then redis.call('XDEL', KEYS[3], last) end
redis.call('SET', KEYS[2], RUN)
return 'open'
