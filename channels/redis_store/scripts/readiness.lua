-- KEYS: token, readiness, journal, mesh. ARGV: treasury token, open, drained stream id, mesh. Claims the store for the newest treasury,
-- and opens the gate of this server's memory once that treasury has reconciled it. The mark proves that it is the very
-- memory that was reconciled: one that was emptied meanwhile has no mark and must be reconciled again.
-- Another mesh's store comes first: its treasury's tokens are not to be compared with ours, nor its gate to be closed.
if ARGV[4] ~= '' then
  local owner = redis.call('GET', KEYS[4])
  if owner and owner ~= ARGV[4] then return 'foreign:' .. owner end
  if not owner then redis.call('SET', KEYS[4], ARGV[4]) end
end
if tonumber(ARGV[1]) < tonumber(redis.call('GET', KEYS[1]) or 0) then return 'stale' end
redis.call('SET', KEYS[1], ARGV[1])
local mark = 'reconciling:' .. ARGV[1] .. ':' .. RUN
local readiness = redis.call('GET', KEYS[2])
if readiness == RUN then return 'open' end
if ARGV[2] == '0' then
  redis.call('SET', KEYS[2], mark)
  return 'closed'
end
if readiness ~= mark then return 'lost' end
-- A new server's clock may be behind the ids that were drained before: entries below them would never be read again.
local last = redis.pcall('XADD', KEYS[3], ARGV[3], 'drained', '1')
if type(last) == 'string' then redis.call('XDEL', KEYS[3], last) end
redis.call('SET', KEYS[2], RUN)
return 'open'
