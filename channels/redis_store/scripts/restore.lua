-- KEYS: token, channel, holds, charged. ARGV: the five values named below, then for each call charged under a key half its
-- id and half the digest of its request. Raises and never lowers: an older memory must not reopen spent money.
local treasury, charged, seq, proof_max, proof_sig = unpack(ARGV, 1, 5)
if tonumber(treasury) < tonumber(redis.call('GET', KEYS[1]) or 0) then return 'stale' end
redis.call('DEL', KEYS[3])
-- A new incarnation, because receipts may already have numbers from the memory that was lost; and lossy, because a stock
-- client may be ahead of us by the charges that were lost.
redis.call('HSET', KEYS[2], 'held', '0', 'lossy', '1', 'inc', treasury)
local function raise(name, value)
  if tonumber(value) > tonumber(redis.call('HGET', KEYS[2], name) or -1) then redis.call('HSET', KEYS[2], name, value) end
end
raise('charged', charged)
raise('seq', seq)
raise('highest', proof_max)
if tonumber(proof_max) > tonumber(redis.call('HGET', KEYS[2], 'proof_max') or -1) then
  redis.call('HSET', KEYS[2], 'proof_max', proof_max, 'proof_sig', proof_sig)
end
for i = 6, #ARGV, 2 do redis.call('HSETNX', KEYS[4], ARGV[i], ARGV[i + 1]) end
return 'ok'
