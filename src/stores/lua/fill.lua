-- Put a licence where read.lua has left the caller's token, and nowhere else: whoever deleted the key, flushed the database
-- or wrote something newer meanwhile has removed the token, and what the caller has read from the source may be older than that.
--
-- KEYS[1]  license:{tenant}
-- ARGV[1]  what must lie there: the caller's token, or the exact value that it replaces
-- ARGV[2]  the licence as JSON; empty: there is none, and the token is taken away
-- ARGV[3]  how long it may be used, in milliseconds
--
-- Answers 1 if it was written (or taken away), 0 if not.
assert(#KEYS == 1 and #ARGV == 3, 'fill.lua takes 1 key and 3 arguments')
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
    return 0
end
if ARGV[2] == '' then
    redis.call('DEL', KEYS[1])
else
    redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
end
return 1
