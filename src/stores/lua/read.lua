-- Read a licence, or claim the right to fill it in.
--
-- KEYS[1]  license:{tenant}
-- ARGV[1]  a random token, as it is to lie under the key ("fill:...")
-- ARGV[2]  how long the claim holds, in milliseconds
--
-- Answers {value, PTTL}. The value is JSON (a licence), the caller's own token (nothing was there, and the caller now has to
-- ask the source and call fill.lua) or another's token (somebody else is asking the source right now).
assert(#KEYS == 1 and #ARGV == 2, 'read.lua takes 1 key and 2 arguments')
local value = redis.call('GET', KEYS[1])
if value then
    return {value, redis.call('PTTL', KEYS[1])}
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return {ARGV[1], tonumber(ARGV[2])}
