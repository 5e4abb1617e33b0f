-- KEYS: token, channel. ARGV: treasury token, amount, nonce, charged. Takes a refund off the usable balance before the
-- ledger is asked, so that no call can be promised the same money; refused while calls need it.
if tonumber(ARGV[1]) < tonumber(redis.call('GET', KEYS[1]) or 0) then return 'stale' end
local v = redis.call('HMGET', KEYS[2], 'balance', 'charged', 'held', 'refunding_nonce', 'refunding', 'withdrawing')
if not v[1] then return 'unknown_channel' end
if v[4] then return v[4] == ARGV[3] and v[5] == ARGV[2] and 'ok' or 'in_progress' end
if (v[2] or '0') ~= ARGV[4] then return 'mismatch' end
if tonumber(v[3] or 0) > 0 then return 'in_progress' end
if v[6] == '1' then return 'withdrawing' end
if tonumber(v[1]) - tonumber(v[2] or 0) < tonumber(ARGV[2]) then return 'exceeds_balance' end
redis.call('HSET', KEYS[2], 'refunding', ARGV[2], 'refunding_nonce', ARGV[3])
-- A drained channel starts a new epoch of its cover: old ceilings must not buy anything after the next deposit.
if tonumber(v[1]) - tonumber(v[2] or 0) == tonumber(ARGV[2]) then
  redis.call('HSET', KEYS[2], 'highest', v[2] or '0', 'last_call', '')
end
return 'ok'
