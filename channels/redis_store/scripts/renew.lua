-- A hold that has ended is not renewed: its amount may already be part of another hold.
function steps.renew(ttl_ms)
  if not own then return reply('not_owner') end
  keep(now_ms + tonumber(ttl_ms))
  return reply('renewed')
end
