-- Shared head of the call scripts. RUN is the run_id of the server this text was loaded on: a restarted, replaced or
-- emptied server either does not know the script or has another gate, so nothing is served from unreconciled memory.
-- KEYS: gate, channel, holds, expiry, charged, answer, journal, abandoned. ARGV[1..4]: call id, token, keyed, digest.
local gate, channel, holds, expiry, charged_calls, answer, journal, abandoned =
  KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local call, token, keyed, digest = ARGV[1], ARGV[2], ARGV[3] == '1', ARGV[4]

if redis.call('GET', gate) ~= RUN then return {'not_ready'} end

local clock = redis.call('TIME')
local now_ms = clock[1] * 1000 + math.floor(clock[2] / 1000)
local v = redis.call('HMGET', channel, 'balance', 'claimed', 'charged', 'held', 'highest', 'refunding', 'withdrawing',
  'lossy', 'refund_nonce', 'proof_max', 'seq', 'last_max', 'lossy_max', 'cap', 'proof_sig', 'last_call', 'last_digest',
  'inc', 'lossy_call')
if not v[1] then return {'unknown_channel'} end
-- Written out: quicker than a loop that grows the table, and every call goes through here twice.
local c = {
  balance = tonumber(v[1]), claimed = tonumber(v[2] or 0), charged = tonumber(v[3] or 0), held = tonumber(v[4] or 0),
  highest = tonumber(v[5] or 0), refunding = tonumber(v[6] or 0), withdrawing = tonumber(v[7] or 0),
  lossy = tonumber(v[8] or 0), refund_nonce = tonumber(v[9] or 0), proof_max = tonumber(v[10] or 0),
  seq = tonumber(v[11] or 0), last_max = tonumber(v[12] or 0), lossy_max = tonumber(v[13] or 0),
  cap = tonumber(v[14] or 0), proof_sig = v[15] or '', last_call = v[16] or '', last_digest = v[17] or '',
  inc = v[18] or '', lossy_call = v[19] or '',
}

local function whole(number) return string.format('%.0f', number) end

-- A hold ends by the server's clock alone; whoever comes next gives its amount back.
for _, ended in ipairs(redis.call('ZRANGEBYSCORE', expiry, '-inf', now_ms)) do
  local text = redis.call('HGET', holds, ended)
  if text then
    c.held = c.held - tonumber(string.match(text, '|(%d+)|'))
    redis.call('HDEL', holds, ended)
  end
  redis.call('ZREM', expiry, ended)
  redis.call('HSET', channel, 'held', whole(c.held))
end

-- A number is answered as an integer: exact, for every amount is below 2^53.
local function reply(outcome, record, stored)
  return {outcome, c.charged, c.held, c.balance - c.refunding, c.claimed, c.refund_nonce, c.proof_max, c.proof_sig,
    record or '', stored or ''}
end

local function drop()
  redis.call('HDEL', holds, call)
  redis.call('ZREM', expiry, call)
end

local own, other, amount = false, false, 0
local text = redis.call('HGET', holds, call)
if text then
  local t, a, d = string.match(text, '^([^|]*)|(%d+)|(.*)$')
  own, other, amount = t == token, t ~= token, tonumber(a)
  if keyed and d ~= digest then return reply('other_request') end
end

-- The record of a charged call: kept for ever under its key, for a while with its answer.
local function charged_record()
  if keyed then
    local record = redis.call('HGET', charged_calls, call)
    return record, record and redis.call('HGET', answer, 'stored')
  end
  local kept = redis.call('HMGET', answer, 'record', 'stored')
  return kept[1], kept[2]
end
