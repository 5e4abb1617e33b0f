-- Shared head of the call scripts. RUN is the run_id of the server this text was loaded on: a restarted, replaced or
-- emptied server either does not know the script or has another gate, so nothing is served from unreconciled memory.
-- KEYS: gate, channel, holds, expiry, charged, answer, journal, abandoned. ARGV[1..4]: call id, token, keyed, digest.
local gate, channel, holds, expiry, charged_calls, answer, journal, abandoned =
  KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local call, token, keyed, digest = ARGV[1], ARGV[2], ARGV[3] == '1', ARGV[4]

if redis.call('GET', gate) ~= RUN then return {'not_ready'} end

local clock = redis.call('TIME')
local now_ms = clock[1] * 1000 + math.floor(clock[2] / 1000)
local names = {'balance', 'claimed', 'charged', 'held', 'highest', 'refunding', 'withdrawing', 'lossy',
  'refund_nonce', 'proof_max', 'seq', 'last_max', 'lossy_max', 'cap', 'proof_sig', 'last_call', 'last_digest', 'inc',
  'lossy_call'}
local numbers = 14
local values = redis.call('HMGET', channel, unpack(names))
if not values[1] then return {'unknown_channel'} end
local c = {}
for i, name in ipairs(names) do
  if i <= numbers then c[name] = tonumber(values[i] or 0) else c[name] = values[i] or '' end
end

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
