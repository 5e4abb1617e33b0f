-- The rules are `admit` in channel.py, in one step with the look-up of the key: of two replicas that see one key at the
-- same time exactly one gets `accepted`.
function steps.hold(price, maximum, signature, ttl_ms, extra, dry, limit)
  price, maximum, extra = tonumber(price), tonumber(maximum), tonumber(extra)
  if keyed then
    local request, record, stored = charged_before()
    if request then
      if request ~= half(digest) then return reply('other_request') end
      return reply('replayed', record, stored)
    end
  end
  -- With or without a key: a second hold would replace the first, whose amount would stay held for ever.
  if other then return reply('in_progress') end
  if own then return reply('accepted') end
  -- A stock client whose answer was lost sends the same ceiling for the same request again and gets that answer. This
  -- comes before the rules: after a loss the same ceiling may pay exactly, and would be charged a second time.
  if not keyed and c.last_call ~= '' and maximum == c.last_max and digest == c.last_digest then
    local last = redis.call('HMGET', answers .. c.last_call, 'record', 'stored')
    if last[1] then return reply('replayed', last[1], last[2]) end
  end

  local required, lossy = c.charged + c.held + price, false
  local usable = c.balance - c.refunding + extra
  if c.withdrawing == 1 then return reply('withdrawing') end
  if not keyed and tonumber(redis.call('GET', abandoned) or 0) >= tonumber(limit) then return reply('abandoned') end
  -- Lua numbers are exact only below 2^53: a ceiling there would be stored as another than was signed.
  if maximum >= 2 ^ 53 then return reply('exceeds_balance') end
  if keyed then
    if required > math.max(c.highest, maximum) then return reply('mismatch') end
  elseif maximum ~= required then
    local ahead = required <= maximum and maximum <= required + c.cap
    if not (c.lossy == 1 and ahead) then return reply('mismatch') end
    lossy = true
  end
  if required > usable or (not keyed and maximum > usable) then return reply('exceeds_balance') end
  if required - c.claimed > c.cap then return reply('exposure') end
  -- A ceiling ahead of a rebuilt channel pays once: it must be above every one that has paid, and only one at a time.
  if lossy then
    if maximum <= c.lossy_max or redis.call('HEXISTS', holds, c.lossy_call) == 1 then return reply('mismatch') end
  end
  if dry == '1' then return reply('accepted') end

  amount = price
  keep(now_ms + tonumber(ttl_ms))
  c.held = c.held + price
  if lossy then c.lossy_call, stock = call, true end
  if maximum > c.highest then c.highest, covered = maximum, true end
  -- The proof is the voucher that can be claimed; it is kept apart from the cover and never lowered.
  if maximum > c.proof_max then c.proof_max, c.proof_sig, covered = maximum, signature, true end
  return reply('accepted')
end
