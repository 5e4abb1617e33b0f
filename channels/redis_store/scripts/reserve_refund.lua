-- KEYS: token, channel. Takes a refund off the usable balance before the ledger pays it, so that no call can be promised
-- the same money; refused while running calls need it.
local treasury, amount, nonce, expected = unpack(ARGV)
if tonumber(treasury) < tonumber(redis.call('GET', KEYS[1]) or 0) then return 'stale' end
local balance, charged, held, refunding_nonce, refunding, withdrawing = unpack(redis.call('HMGET', KEYS[2],
  'balance', 'charged', 'held', 'refunding_nonce', 'refunding', 'withdrawing'))
if not balance then return 'unknown_channel' end
if refunding_nonce then return refunding_nonce == nonce and refunding == amount and 'ok' or 'in_progress' end
if (charged or '0') ~= expected then return 'mismatch' end
if tonumber(held or 0) > 0 then return 'in_progress' end
if withdrawing == '1' then return 'withdrawing' end
local rest = tonumber(balance) - tonumber(charged or 0)
if rest < tonumber(amount) then return 'exceeds_balance' end
redis.call('HSET', KEYS[2], 'refunding', amount, 'refunding_nonce', nonce)
-- A drained channel begins a new epoch of its cover: old ceilings must not buy anything after the next deposit.
if rest == tonumber(amount) then
  redis.call('HSET', KEYS[2], 'highest', charged or '0', 'last_call', '')
end
return 'ok'
