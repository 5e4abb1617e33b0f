-- The rules are channel.py's `admit`, in one step with the look-up of the key: two replicas that see one key at once
-- must see exactly one ACCEPTED between them.
function steps.hold(price, maximum, signature, ttl_ms, extra, dry, limit)
  price, maximum, extra = tonumber(price), tonumber(maximum), tonumber(extra)
  if keyed then
    local known, record, stored = charged_before()
    if known then
      if known ~= half(digest) then return reply('other_request') end
      return reply('replayed', record, stored)
    end
  end
  -- With or without a key: a second hold would take the place of the first, whose amount nobody would give back.
  if other then return reply('in_progress') end
  if own then return reply('accepted') end
  -- A stock client whose answer was lost sends the same ceiling for the same request again: it gets that answer. Looked
  -- up before any rule: after a loss the same ceiling may pay exactly, and would be charged a second time.
  if not keyed and c.last_call ~= '' and maximum == c.last_max and digest == c.last_digest then
    local kept = redis.call('HMGET', answers .. c.last_call, 'record', 'stored')
    if kept[1] then return reply('replayed', kept[1], kept[2]) end
  end

  local required, lossy = c.charged + c.held + price, false
  local usable = c.balance - c.refunding + extra
  if c.withdrawing == 1 then return reply('withdrawing') end
  if not keyed and tonumber(redis.call('GET', abandoned) or 0) >= tonumber(limit) then return reply('abandoned') end
  -- Nothing at 2^53 or above can be counted exactly here: a ceiling there would be kept as another than was signed.
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
  -- Ahead of what we remember, but one ceiling still pays once: above every one that has paid, and one at a time.
  if lossy then
    if maximum <= c.lossy_max or redis.call('HEXISTS', holds, c.lossy_call) == 1 then return reply('mismatch') end
  end
  if dry == '1' then return reply('accepted') end

  amount = price
  keep(now_ms + tonumber(ttl_ms))
  c.held = c.held + price
  if lossy then c.lossy_call, stock = call, true end
  if maximum > c.highest then c.highest, covered = maximum, true end
  -- The proof is what can be claimed; apart from the cover, and never lowered.
  if maximum > c.proof_max then c.proof_max, c.proof_sig, covered = maximum, signature, true end
  return reply('accepted')
end
