-- KEYS: token, channel, holds, charged. ARGV: token, charged, seq, proof_max, proof_sig,
-- then, of each call charged under a key, half its id and half the digest of its request. Raises, never lowers: an
-- older memory must not reopen spent money.
if tonumber(ARGV[1]) < tonumber(redis.call('GET', KEYS[1]) or 0) then return 'stale' end
redis.call('DEL', KEYS[3])
-- A new incarnation, because numbers issued in the memory that was lost may already be on receipts; and lossy, because
-- a stock client may be ahead of us by what was lost.
redis.call('HSET', KEYS[2], 'held', '0', 'lossy', '1', 'inc', ARGV[1])
local function raise(name, value)
  if tonumber(value) > tonumber(redis.call('HGET', KEYS[2], name) or -1) then redis.call('HSET', KEYS[2], name, value) end
end
raise('charged', ARGV[2])
raise('seq', ARGV[3])
raise('highest', ARGV[4])
if tonumber(ARGV[4]) > tonumber(redis.call('HGET', KEYS[2], 'proof_max') or -1) then
  redis.call('HSET', KEYS[2], 'proof_max', ARGV[4], 'proof_sig', ARGV[5])
end
for i = 6, #ARGV, 2 do redis.call('HSETNX', KEYS[4], ARGV[i], ARGV[i + 1]) end
return 'ok'
