-- Only the owner gives a hold back: a late attempt must not free its successor's. A call without a key whose caller left
-- costs nothing, and is counted: callers could otherwise keep the device busy for nothing.
function steps.release(left, window_ms)
  if not own then return reply('not_owner') end
  drop()
  -- pcall: a failing counter must not abort the release.
  if left == '1' and redis.pcall('INCR', abandoned) == 1 then redis.pcall('PEXPIRE', abandoned, window_ms) end
  return reply('released')
end
