-- A call of this script. Redis runs the files once, when it loads the script, so functions and constants are made once. What
-- belongs to one call is set anew for each: `each_call` takes the functions that do so. They run in the order of the files.
-- The loader puts this file first, and passes `begin_call` and the script's `main` to Redis.

local KEYS, ARGV

local at_beginning = {}

-- `begin` sets what a file keeps during a call. It may return the reply to the whole call: then nothing else is done.
local function each_call(begin)
    at_beginning[#at_beginning + 1] = begin
end

local function begin_call(keys, arguments)
    KEYS, ARGV = keys, arguments
    for number = 1, #at_beginning do
        local reply = at_beginning[number]()
        if reply then
            return reply
        end
    end
    return nil
end
