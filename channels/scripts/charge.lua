-- ARGV[5..9]: actual, receipt body, answer, answer_ttl_ms, ceiling. Charge, journal, key and stored answer are one step:
-- a crash between any two of them would charge a call twice or lose its receipt.
local actual, body, stored, ttl_ms, maximum = tonumber(ARGV[5]), ARGV[6], ARGV[7], tonumber(ARGV[8]), tonumber(ARGV[9])

local record, kept = charged_record()
if record then
  -- A key that expired here and was charged for another request must not give this one's answer away.
  if cjson.decode(record)[1] ~= digest then return reply('other_request') end
  return reply('already', record, kept)
end
if other or (own and actual > amount) then return reply('withheld') end
if own then
  c.held = c.held - amount
  drop()
else
  -- Late: the hold has ended. Charged only if what is left of cover, balance and exposure still allows it, and never
  -- without a key: an unkeyed call's record ends with its answer, and then nothing tells a late charge from a repeated.
  local spent = c.charged + c.held + actual
  local fits = spent <= math.min(c.highest, c.balance - c.refunding) and spent - c.claimed <= c.cap
  if not keyed or c.withdrawing == 1 or not fits then
    return reply('withheld')
  end
end

local before = c.charged
c.charged = before + actual
local seq, from, upto, at_ms = whole(c.seq + 1), whole(before), whole(c.charged), whole(now_ms)
record = cjson.encode({digest, call, c.inc, seq, from, upto, at_ms, body})
redis.call('HSET', channel, 'charged', upto, 'held', whole(c.held), 'seq', seq)
if not keyed and actual > 0 then
  redis.call('HSET', channel, 'last_call', call, 'last_max', whole(maximum), 'last_digest', digest,
    'lossy_max', whole(math.max(c.lossy_max, maximum)))
end
redis.call('XADD', journal, '*', 'channel', string.match(channel, '[^:]*$'), 'incarnation', c.inc,
  'seq', seq, 'call', call, 'key', keyed and call or '', 'before', from, 'after', upto,
  'amount', whole(actual), 'at_ms', at_ms, 'proof_max', whole(c.proof_max), 'proof_sig', c.proof_sig,
  'digest', digest, 'body', body)
if keyed then redis.call('HSET', charged_calls, call, record) end
if keyed then
  redis.call('HSET', answer, 'stored', stored)
else
  redis.call('HSET', answer, 'record', record, 'stored', stored)
end
redis.call('PEXPIRE', answer, ttl_ms)
return reply('charged', record)
