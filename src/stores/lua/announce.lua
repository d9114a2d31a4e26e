-- Take out of the cache what has changed, and tell everyone who listens. Whoever holds a token for one of these keys has
-- read the source at an unknown moment, so the tokens go as well.
--
-- KEYS     license:{tenant}, one for each change
-- ARGV[1]  the channel to publish on; empty: nobody needs to be told
-- ARGV[2]  what to publish before the changes; empty: nothing
-- ARGV[n]  for the n-2nd key: {tenant}:{revision}, the revision that it has now; published as it stands
--
-- Answers how many entries were taken out.
assert(#ARGV == #KEYS + 2, 'announce.lua takes a channel, a preface, and an argument for each key')
if ARGV[1] ~= '' and ARGV[2] ~= '' then
    redis.call('PUBLISH', ARGV[1], ARGV[2])
end
local taken = 0
for i, key in ipairs(KEYS) do
    local change = ARGV[i + 2]
    local now = tonumber(string.match(change, ':(%-?%d+)$'))
    local value = redis.pcall('GET', key)
    local lies = type(value) == 'string'
        and tonumber(string.match(value, '^{"ttl_ms":%d+,"epoch":"[^"]*","revision":(%-?%d+)'))
    if value and not (lies and lies >= now) then
        taken = taken + redis.call('DEL', key)
    end
    if ARGV[1] ~= '' then
        redis.call('PUBLISH', ARGV[1], change)
    end
end
return taken
