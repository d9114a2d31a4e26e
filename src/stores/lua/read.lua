-- Read a licence, or claim the right to fill it in.
--
-- KEYS[1]  license:{tenant}
-- KEYS[2]  license:~epoch; entries of another epoch count for nothing
-- ARGV[1]  a random token, as it is to lie under KEYS[1] ("fill:...")
-- ARGV[2]  how long the claim holds, in milliseconds
-- ARGV[3]  which server this is (see Server in redis.rs): an epoch that began on another has ended with it
-- ARGV[4]  an epoch to begin where there is none; it starts with ARGV[3]
--
-- Answers {what, value, PTTL, epoch}, what being
--   "found"      the value is JSON, a licence, or whatever somebody else has put there
--   "claimed"    there was nothing of use; the caller now has to ask the source and call fill.lua with its token
--   "busy"       somebody else is asking the source right now
--   "unwritable" there is nothing of use, and nothing can be written here
--
-- Each key ends as one that was read, which is what makes Redis tell us when it changes: a key is forgotten when it is
-- written, even by ourselves.
assert(#KEYS == 2 and #ARGV == 4, 'read.lua takes 2 keys and 4 arguments')

local function write(key, ...)
    local done = redis.pcall('SET', key, ...)
    return type(done) ~= 'table' or done.err == nil
end

local epoch = redis.call('GET', KEYS[2])
if not epoch or string.sub(epoch, 1, #ARGV[3]) ~= ARGV[3] then
    if not write(KEYS[2], ARGV[4]) then
        return {'unwritable', '', 0, ''}
    end
    epoch = redis.call('GET', KEYS[2])
end

local value = redis.pcall('GET', KEYS[1])
if type(value) == 'string' then
    local claimed = string.sub(value, 1, 5) == 'fill:'
    local of = string.match(value, '^{"ttl_ms":%d+,"epoch":"([^"]*)"')
    -- What no version of this program has written is for the caller to judge, and to replace.
    if claimed or of == epoch or not of then
        return {claimed and 'busy' or 'found', value, redis.call('PTTL', KEYS[1]), epoch}
    end
elseif value then
    -- No string at all: somebody else's, and in the way.
    redis.pcall('DEL', KEYS[1])
end
if not write(KEYS[1], ARGV[1], 'PX', ARGV[2]) then
    return {'unwritable', '', 0, epoch}
end
redis.call('GET', KEYS[1])
return {'claimed', '', 0, epoch}
