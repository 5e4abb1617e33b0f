-- Shared head of the call script, which runs the steps of one channel's calls in order, see `_tail.lua`. RUN is the run_id
-- of the server on which this text was loaded. A restarted, replaced or emptied server does not know the script or has
-- another readiness, so unreconciled memory never serves a call.
-- KEYS: see `call_keys` in script_loader.py; the last is the prefix of the keys of the channel's answers.
local readiness, channel, holds, charged_calls, journal, abandoned, answers = unpack(KEYS)

if redis.call('GET', readiness) ~= RUN then return 'not_ready' end

local clock = redis.call('TIME')
local now_ms = clock[1] * 1000 + math.floor(clock[2] / 1000)

-- The channel's fields, or nil. Written out: a loop that grows the table is slower, and every call comes here twice.
local function read_channel()
  local balance, claimed, charged, held, highest, refunding, withdrawing, lossy, refund_nonce, proof_max, seq, last_max,
    lossy_max, cap, proof_sig, last_call, last_digest, inc, lossy_call, due = unpack(redis.call('HMGET', channel,
    'balance', 'claimed', 'charged', 'held', 'highest', 'refunding', 'withdrawing', 'lossy', 'refund_nonce', 'proof_max',
    'seq', 'last_max', 'lossy_max', 'cap', 'proof_sig', 'last_call', 'last_digest', 'inc', 'lossy_call', 'due'))
  return balance and {
    balance = tonumber(balance or 0), claimed = tonumber(claimed or 0), charged = tonumber(charged or 0),
    held = tonumber(held or 0), highest = tonumber(highest or 0), refunding = tonumber(refunding or 0),
    withdrawing = tonumber(withdrawing or 0), lossy = tonumber(lossy or 0), refund_nonce = tonumber(refund_nonce or 0),
    proof_max = tonumber(proof_max or 0), seq = tonumber(seq or 0), last_max = tonumber(last_max or 0),
    lossy_max = tonumber(lossy_max or 0), cap = tonumber(cap or 0), proof_sig = proof_sig or '',
    last_call = last_call or '', last_digest = last_digest or '', inc = inc or '', lossy_call = lossy_call or '',
    due = tonumber(due or 0),
  }
end

local c = read_channel()
if not c then return 'unknown_channel' end
-- Which groups of fields `_tail.lua` has to write: the amounts, the cover and proof, and what recognises stock clients.
local moved, covered, stock, due = false, false, false, c.due

local function whole(number) return string.format('%.0f', number) end

-- A hold ends by the server's clock alone; the next step gives its amount back. No hold ends before `due`, so the holds
-- are read only then. A hold whose end cannot be read has ended.
if now_ms >= c.due then
  c.due = 2 ^ 53 - 1
  local entries = redis.call('HGETALL', holds)
  for i = 1, #entries, 2 do
    local set_aside, ends = string.match(entries[i + 1], '|(%d+)|[^|]*|?(%d*)$')
    ends = tonumber(ends) or 0
    if ends <= now_ms then
      c.held = c.held - tonumber(set_aside)
      redis.call('HDEL', holds, entries[i])
      moved = true
    else
      c.due = math.min(c.due, ends)
    end
  end
end

-- A step's reply: the fields of `Reply` in replies.py, in their order. Numbers are exact, for amounts are below 2^53.
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

-- Half a digest distinguishes the calls of one channel, in half the memory.
local function half(text) return string.sub(text, -32) end

-- If the call was charged: half the digest of its request, its record and its answer. A charged key is kept for ever;
-- record and answer only for a while, then the record is in SQL alone.
local function charged_before()
  local request = keyed and redis.call('HGET', charged_calls, half(call))
  if keyed and not request then return false end
  local fields = redis.call('HMGET', answers .. call, 'record', 'stored')
  return request or fields[1] and half(cjson.decode(fields[1])[1]), fields[1], fields[2]
end

local steps = {}
