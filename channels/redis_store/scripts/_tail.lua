-- ARGV, for each step: its name, call id, token, keyed, digest, and its own, as many as LENGTHS says. The channel is read
-- once before them and written once after them: many calls in flight share what each would have paid for.
local LENGTHS = {hold = 7, charge = 5, release = 2, renew = 1}
local replies, at = {}, 1
while at <= #ARGV do
  local name = ARGV[at]
  local last = at + 4 + LENGTHS[name]
  call, token, keyed, digest = ARGV[at + 1], ARGV[at + 2], ARGV[at + 3] == '1', ARGV[at + 4]
  look()
  replies[#replies + 1] = keyed and bound ~= digest and reply('other_request') or steps[name](unpack(ARGV, at + 5, last))
  at = last + 1
end

if moved then
  redis.call('HSET', channel, 'charged', whole(c.charged), 'held', whole(c.held), 'seq', whole(c.seq), 'due', whole(c.due))
end
if not moved and c.due ~= due then
  redis.pcall('HSET', channel, 'due', whole(c.due))  -- a full store refuses it, and must still tell what was charged
end
if covered then
  redis.call('HSET', channel, 'highest', whole(c.highest), 'proof_max', whole(c.proof_max), 'proof_sig', c.proof_sig)
end
if stock then
  redis.call('HSET', channel, 'last_call', c.last_call, 'last_max', whole(c.last_max), 'last_digest', c.last_digest,
    'lossy_max', whole(c.lossy_max), 'lossy_call', c.lossy_call)
end
return replies
