-- End the epoch: no entry that lies in the cache now counts any more.
--
-- KEYS[1]  license:~epoch
-- ARGV[1]  the epoch to end; empty: whichever it is
--
-- Answers 1 if it has ended, 0 if another epoch had begun already. Deleting works on a full server too, and the next reader
-- begins a new epoch.
assert(#KEYS == 1 and #ARGV == 1, 'void.lua takes 1 key and 1 argument')
if ARGV[1] ~= '' and redis.call('GET', KEYS[1]) ~= ARGV[1] then
    return 0
end
redis.call('DEL', KEYS[1])
return 1
