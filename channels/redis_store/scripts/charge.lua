-- Charge, journal, key and stored answer are one step: a crash between any two of them would charge a call twice or
-- lose its receipt.
function steps.charge(actual, body, stored, ttl_ms, maximum)
  actual, maximum = tonumber(actual), tonumber(maximum)
  local answer = answers .. call
  -- While a call has its hold it is not charged: both end in one step, and no call with a record gets a hold.
  local known, record, kept
  if not own then known, record, kept = charged_before() end
  if known then
    -- A key that expired here and was charged for another request must not give this one's answer away.
    if known ~= half(digest) then return reply('other_request') end
    return reply('replayed', record, kept)
  end
  if other or (own and actual > amount) then return reply('refused') end
  if own then
    drop()
  else
    -- Late: the hold has ended. Charged only if what is left of cover, balance and exposure still allows it, and never
    -- without a key: an unkeyed call's record ends with its answer, and then nothing tells a late charge from a repeated.
    local spent = c.charged + c.held + actual
    local fits = spent <= math.min(c.highest, c.balance - c.refunding) and spent - c.claimed <= c.cap
    if not keyed or c.withdrawing == 1 or not fits then
      return reply('refused')
    end
  end

  local before = c.charged
  c.charged, c.seq, moved = before + actual, c.seq + 1, true
  record = cjson.encode({digest, call, c.inc, whole(c.seq), whole(before), whole(c.charged), whole(now_ms), body})
  if not keyed and actual > 0 then
    c.last_call, c.last_max, c.last_digest = call, maximum, digest
    c.lossy_max, stock = math.max(c.lossy_max, maximum), true
  end
  redis.call('XADD', journal, '*', 'channel', string.match(channel, '[^:]*$'), 'key', keyed and '1' or '',
    'proof_max', whole(c.proof_max), 'proof_sig', c.proof_sig, 'record', record)
  if keyed then redis.call('HSET', charged_calls, half(call), half(digest)) end
  redis.call('HSET', answer, 'record', record, 'stored', stored)
  redis.pcall('PEXPIRE', answer, ttl_ms)  -- were it refused, the charge would still be whole
  return reply('charged', record)
end
