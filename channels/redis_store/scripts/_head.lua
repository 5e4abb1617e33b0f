-- Shared head of the call script: steps of one channel's calls, one after the other, see `_tail.lua`. RUN is the run_id of
-- the server this text was loaded on: a restarted, replaced or emptied server either does not know the script or has
-- another value of readiness, so nothing is served from unreconciled memory.
-- KEYS: readiness, channel, holds, charged, journal, abandoned, and the beginning of the keys of its answers.
local readiness, channel, holds, charged_calls, journal, abandoned, answers = unpack(KEYS)

if redis.call('GET', readiness) ~= RUN then return 'not_ready' end

local clock = redis.call('TIME')
local now_ms = clock[1] * 1000 + math.floor(clock[2] / 1000)
local v = redis.call('HMGET', channel, 'balance', 'claimed', 'charged', 'held', 'highest', 'refunding', 'withdrawing',
  'lossy', 'refund_nonce', 'proof_max', 'seq', 'last_max', 'lossy_max', 'cap', 'proof_sig', 'last_call', 'last_digest',
  'inc', 'lossy_call', 'due')
if not v[1] then return 'unknown_channel' end
-- Written out: quicker than a loop that grows the table, and every call goes through here twice.
local c = {
  balance = tonumber(v[1] or 0), claimed = tonumber(v[2] or 0), charged = tonumber(v[3] or 0), held = tonumber(v[4] or 0),
  highest = tonumber(v[5] or 0), refunding = tonumber(v[6] or 0), withdrawing = tonumber(v[7] or 0),
  lossy = tonumber(v[8] or 0), refund_nonce = tonumber(v[9] or 0), proof_max = tonumber(v[10] or 0),
  seq = tonumber(v[11] or 0), last_max = tonumber(v[12] or 0), lossy_max = tonumber(v[13] or 0),
  cap = tonumber(v[14] or 0), proof_sig = v[15] or '', last_call = v[16] or '', last_digest = v[17] or '',
  inc = v[18] or '', lossy_call = v[19] or '', due = tonumber(v[20] or 0),
}
-- What has to be written of it in the end: the amounts, what covers and proves them, what stock clients are told by.
local moved, covered, stock, due = false, false, false, c.due

local function whole(number) return string.format('%.0f', number) end

-- A hold ends by the server's clock alone; whoever comes next gives its amount back. No hold ends before `due`, so they
-- are looked through only then; one whose end cannot be read has ended.
if now_ms >= c.due then
  c.due = 2 ^ 53 - 1
  local found = redis.call('HGETALL', holds)
  for i = 1, #found, 2 do
    local set_aside, ends = string.match(found[i + 1], '|(%d+)|[^|]*|?(%d*)$')
    ends = tonumber(ends) or 0
    if ends <= now_ms then
      c.held = c.held - tonumber(set_aside)
      redis.call('HDEL', holds, found[i])
      moved = true
    else
      c.due = math.min(c.due, ends)
    end
  end
end

-- A number is answered as an integer: exact, for every amount is below 2^53.
local function reply(outcome, record, stored)
  return {outcome, c.charged, c.held, c.balance - c.refunding, c.claimed, c.refund_nonce, c.proof_max, c.proof_sig,
    record or '', stored or ''}
end

-- The call of the current step, and its hold if it has one: `own` if the step has the hold's token, else `other`. A hold
-- stays bound to the request it was taken for: a step with another digest must not rebind it, or its owner could neither
-- charge nor release it.
local call, token, keyed, digest
local own, other, amount, bound

local function look()
  own, other, amount, bound = false, false, 0, digest
  local text = redis.call('HGET', holds, call)
  if text then
    local t, a, d = string.match(text, '^([^|]*)|(%d+)|([^|]*)')
    own, other, amount, bound = t == token, t ~= token, tonumber(a), d
  end
end

local function keep(ends)
  redis.call('HSET', holds, call, token .. '|' .. whole(amount) .. '|' .. bound .. '|' .. whole(ends))
  c.due, moved = math.min(c.due, ends), true
end

local function drop()
  redis.call('HDEL', holds, call)
  c.held, moved = c.held - amount, true
end

-- A charged call: for which request, its record, its answer. That a key was charged is kept for ever, and that alone: the
-- record lives as long as the answer, and in SQL. Half a digest tells a channel's calls apart, and takes half the memory.
local function half(text) return string.sub(text, -32) end

local function charged_before()
  local known = keyed and redis.call('HGET', charged_calls, half(call))
  if keyed and not known then return false end
  local kept = redis.call('HMGET', answers .. call, 'record', 'stored')
  return known or kept[1] and half(cjson.decode(kept[1])[1]), kept[1], kept[2]
end

local steps = {}
