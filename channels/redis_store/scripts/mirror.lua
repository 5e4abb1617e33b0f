-- KEYS: token, channel. ARGV: token, balance, claimed, withdrawing, refund_nonce, version, cap, incarnation.
-- The mirror of the ledger only moves forward, and only the newest treasury writes it.
if tonumber(ARGV[1]) < tonumber(redis.call('GET', KEYS[1]) or 0) then return 'stale' end
if tonumber(ARGV[6]) < tonumber(redis.call('HGET', KEYS[2], 'version') or -1) then return 'older' end
-- Money that left without a refund was withdrawn: a new epoch of the cover begins, as after a full refund. An old ceiling
-- must not buy anything after the next deposit.
local was = redis.call('HMGET', KEYS[2], 'balance', 'refund_nonce', 'charged')
if was[1] and tonumber(ARGV[2]) < tonumber(was[1]) and ARGV[5] == was[2] then
  redis.call('HSET', KEYS[2], 'highest', was[3] or '0', 'last_call', '')
end
redis.call('HSET', KEYS[2], 'balance', ARGV[2], 'claimed', ARGV[3], 'withdrawing', ARGV[4], 'refund_nonce', ARGV[5],
  'version', ARGV[6], 'cap', ARGV[7])
redis.call('HSETNX', KEYS[2], 'inc', ARGV[8])
-- A refund that the ledger has executed is in the balance now: taking it off twice would lock the payer's money.
local refunding_nonce = redis.call('HGET', KEYS[2], 'refunding_nonce')
if refunding_nonce and tonumber(ARGV[5]) > tonumber(refunding_nonce) then
  redis.call('HSET', KEYS[2], 'refunding', '0')
  redis.call('HDEL', KEYS[2], 'refunding_nonce')
end
return 'ok'
