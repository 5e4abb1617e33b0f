-- A call without a key whose caller has gone costs nothing, and is counted: a caller who hangs up again and again would
-- have the device work for nothing.
-- Only the owner gives a hold back: an attempt that came late must not free its successor's.
function steps.release(hung_up, window_ms)
  if not own then return reply('not_owner') end
  drop()
  -- What is only counted must not undo in the middle what gives money back.
  if hung_up == '1' and redis.pcall('INCR', abandoned) == 1 then redis.pcall('PEXPIRE', abandoned, window_ms) end
  return reply('released')
end
