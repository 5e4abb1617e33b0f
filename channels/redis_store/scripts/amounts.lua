-- The channel's amounts; the head has given back the holds that ended.
function steps.amounts()
  return reply('read')
end
