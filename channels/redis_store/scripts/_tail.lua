-- ARGV, for each step: its name, call id, token, keyed, digest, and as many arguments of its own as LENGTHS has. The
-- channel is read once before the steps and written once after them, however many calls are in flight.
local LENGTHS = {hold = 7, charge = 5, release = 2, renew = 1, amounts = 0}
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
  redis.pcall('HSET', channel, 'due', whole(c.due))  -- pcall: a full store refuses it, and must still replay charges
end
if covered then
  redis.call('HSET', channel, 'highest', whole(c.highest), 'proof_max', whole(c.proof_max), 'proof_sig', c.proof_sig)
end
if stock then
  redis.call('HSET', channel, 'last_call', c.last_call, 'last_max', whole(c.last_max), 'last_digest', c.last_digest,
    'lossy_max', whole(c.lossy_max), 'lossy_call', c.lossy_call)
end
return replies
