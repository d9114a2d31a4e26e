-- Put a licence where read.lua has left the caller's token, and nowhere else: whoever deleted the key, flushed the database
-- or wrote something newer meanwhile has removed the token, and what the caller has read from the source may be older than
-- that. Nor is an older revision ever put in place of a newer.
--
-- KEYS[1]  license:{tenant}
-- ARGV[1]  what must lie there: the caller's token, or the exact value that it replaces
-- ARGV[2]  the licence as JSON; empty: there is none, and the token is taken away
-- ARGV[3]  how long it may be used, in milliseconds
-- ARGV[4]  its revision
--
-- Answers 1 if it was written (or taken away), 0 if not, -1 if nothing can be written here.
assert(#KEYS == 1 and #ARGV == 4, 'fill.lua takes 1 key and 4 arguments')
if redis.pcall('GET', KEYS[1]) ~= ARGV[1] then
    return 0
end
if ARGV[2] == '' then
    local done = redis.pcall('DEL', KEYS[1])
    return type(done) == 'table' and -1 or 1
end
local lies = tonumber(string.match(ARGV[1], '^{"ttl_ms":%d+,"epoch":"[^"]*","revision":(%-?%d+)'))
if lies and lies > tonumber(ARGV[4]) then
    return 0
end
local done = redis.pcall('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
if type(done) == 'table' and done.err then
    -- A full server still deletes; a replica refuses this too.
    redis.pcall('DEL', KEYS[1])
    return -1
end
-- Read it, so that we are told when it changes: writing a key ends that.
redis.call('GET', KEYS[1])
return 1
