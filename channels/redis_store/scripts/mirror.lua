-- KEYS: token, channel. Writes the ledger's state of a channel: only for the newest treasury, and only forward.
local treasury, balance, claimed, withdrawing, refund_nonce, version, cap, incarnation = unpack(ARGV)
if tonumber(treasury) < tonumber(redis.call('GET', KEYS[1]) or 0) then return 'stale' end
if tonumber(version) < tonumber(redis.call('HGET', KEYS[2], 'version') or -1) then return 'older' end
-- A balance that fell without a refund was withdrawn. A new epoch of the cover begins, as after a full refund: an old
-- ceiling must not buy anything after the next deposit.
local old_balance, old_nonce, charged = unpack(redis.call('HMGET', KEYS[2], 'balance', 'refund_nonce', 'charged'))
if old_balance and tonumber(balance) < tonumber(old_balance) and refund_nonce == old_nonce then
  redis.call('HSET', KEYS[2], 'highest', charged or '0', 'last_call', '')
end
redis.call('HSET', KEYS[2], 'balance', balance, 'claimed', claimed, 'withdrawing', withdrawing, 'refund_nonce',
  refund_nonce, 'version', version, 'cap', cap)
redis.call('HSETNX', KEYS[2], 'inc', incarnation)
-- The ledger has paid this refund, so the balance no longer contains it: taking it off twice would lock the payer's money.
local refunding_nonce = redis.call('HGET', KEYS[2], 'refunding_nonce')
if refunding_nonce and tonumber(refund_nonce) > tonumber(refunding_nonce) then
  redis.call('HSET', KEYS[2], 'refunding', '0')
  redis.call('HDEL', KEYS[2], 'refunding_nonce')
end
return 'ok'
