-- Charge, journal, key and stored answer are one step: a crash between any two of them would charge a call twice or
-- lose its receipt.
function steps.charge(actual, body, stored, ttl_ms, maximum)
  actual, maximum = tonumber(actual), tonumber(maximum)
  local answer = answers .. call
  -- A call that has its hold is not charged yet: the charge ends the hold, and a charged call gets no hold.
  local request, record, answered
  if not own then request, record, answered = charged_before() end
  if request then
    -- The hold of this key ended and another request was charged under it: its answer must not be given to this one.
    if request ~= half(digest) then return reply('other_request') end
    return reply('replayed', record, answered)
  end
  if other or (own and actual > amount) then return reply('refused') end
  if own then
    drop()
  else
    -- Late: the hold has ended. Charged only within the present cover, balance and exposure. Never without a key: the
    -- record of an unkeyed call is gone with its answer, and then a late charge looks like a repeated one.
    local spent = c.charged + c.held + actual
    local fits = spent <= math.min(c.highest, c.balance - c.refunding) and spent - c.claimed <= c.cap
    if not keyed or c.withdrawing == 1 or not fits then
      return reply('refused')
    end
  end

  local before = c.charged
  c.charged, c.seq, moved = before + actual, c.seq + 1, true
  -- The parts of RECORD in replies.py, in their order.
  record = cjson.encode({digest, call, c.inc, whole(c.seq), whole(before), whole(c.charged), whole(now_ms), body})
  if not keyed and actual > 0 then
    c.last_call, c.last_max, c.last_digest = call, maximum, digest
    c.lossy_max, stock = math.max(c.lossy_max, maximum), true
  end
  redis.call('XADD', journal, '*', 'channel', string.match(channel, '[^:]*$'), 'key', keyed and '1' or '',
    'proof_max', whole(c.proof_max), 'proof_sig', c.proof_sig, 'record', record)
  if keyed then redis.call('HSET', charged_calls, half(call), half(digest)) end
  redis.call('HSET', answer, 'record', record, 'stored', stored)
  redis.pcall('PEXPIRE', answer, ttl_ms)  -- pcall: a refused expiry must not abort the charge
  return reply('charged', record)
end
