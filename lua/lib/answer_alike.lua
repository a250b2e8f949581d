-- Answers attempts of browser keys. They get one answer to every refusal (docs/browser-keys.md), and its time must not say which
-- refusal it is. So whatever the code is, the same reads are made for it, before anything is decided.

-- @include lib/preamble
-- @include lib/idempotency
-- @include lib/campaign
-- @include lib/code_state
-- @include lib/holds
-- @include lib/holds_have_expired
-- @include lib/refusal_of_hold
-- @include lib/usage
-- @include lib/write_work

local NO_HOLD = '9007199254740991\n-\n-\n\n' -- read in place of the record of a hold

local look_for_hold, found_hold = find_hold, nil

each_call(function()
    found_hold = nil
end)

-- Decisions get the hold that was found for the current attempt.
find_hold = function()
    return found_hold
end

local function read_in_vain()
    redis.call('HGET', held_key, '')
end

-- Of a code that is void by its batch or its range no state is read, so another string is read for it.
local function read_state_bytes(at)
    if not first_byte[at] then
        find_bytes()
    end
    state_bytes[at] = redis.call('GETRANGE', at == 0 and version_key or KEYS[at], first_byte[at], last_byte[at])
end

local function read_hold(campaign)
    found_hold = look_for_hold(campaign)
    if not found_hold then
        read_in_vain()
        refusal_of_hold(parse_hold('', NO_HOLD))
    end
end

-- Reads all that any decision on the attempt could need. Decisions find here what was read.
local function read_everything(campaign)
    read_state_bytes(state_at[attempt])
    read_hold(campaign)
    if used_at[attempt] then
        read_used(campaign)
    else
        read_in_vain()
    end
    if users_at[attempt] then
        read_counted()
    else
        read_in_vain()
    end
    holds_have_expired()
end

local function is_refusal(answer)
    local word = string.match(answer, '^' .. ANSWER.replayed .. ' (%S+)') or string.match(answer, '^%S+')
    return word ~= ANSWER.redeemed and word ~= ANSWER.held and word ~= ANSWER.redeemable
end

-- Does as answer_each. But a refusal waits until expired holds have been given back, whether or not they are its cause. Until
-- then it is not stored: nobody has got it.
local function answer_alike(decide)
    local answers = { ANSWER.ok }
    for number = 1, #about do
        attempt = number
        local campaign = read_campaign()
        if campaign.id then
            read_everything(campaign)
        end
        local stored = read_idempotency_record()
        local answer = stored or decide(own_fields())
        if is_refusal(answer) and holds_have_expired() then
            answer = ANSWER.holds_expired
        end
        if not stored then
            keep_idempotency_record(answer)
        end
        answers[number + 1] = answer
    end
    write_work()
    return answers
end
