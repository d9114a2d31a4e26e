-- One beat of a change feed: say that it has announced all that it has heard, and learn which other feed does the same.
--
-- KEYS[1]  license:~feed, held by one of the feeds that are in order, "session:beat"
-- ARGV[1]  this feed's session
-- ARGV[2]  its beat; empty: it is not in order yet, and only looks
-- ARGV[3]  for how long one beat counts, in milliseconds
-- ARGV[4]  the channel to publish on; empty: nobody needs to be told
-- ARGV[5]  what to publish
--
-- Answers what lay there: the last beat of whoever holds it, or empty.
assert(#KEYS == 1 and #ARGV == 5, 'beat.lua takes 1 key and 5 arguments')
local lies = redis.call('GET', KEYS[1]) or ''
local holder = string.match(lies, '^([^:]*):')
if ARGV[2] ~= '' and (not holder or holder == ARGV[1]) then
    -- On a full server nobody holds it; then whoever joins ends the epoch rather than rely on another feed.
    redis.pcall('SET', KEYS[1], ARGV[1] .. ':' .. ARGV[2], 'PX', ARGV[3])
end
if ARGV[4] ~= '' then
    redis.call('PUBLISH', ARGV[4], ARGV[5])
end
return lies
