#!lua
-- Makes single codes void, or lifts that (`make_void` 1 or 0). A batch or a range is void by configuration:
-- `void_by_range` says whether the code is, and comes back, so that a replay tells what was so then.
-- Answers, one for each attempt: `voided` or `unvoided`, the event's stream id, or `-` where it was so already,
-- and `void_by_range`; `already_redeemed`; or `replayed <the first answer>`.
local attempt_width = 21

-- @include lib/preamble
-- @include lib/idempotency
-- @include lib/holds

local function change(make_void, void_by_range)
    local campaign, state = read_campaign(), read_state()
    local done = make_void and 'voided' or 'unvoided'
    if not campaign.id then
        return 'unpublished'
    elseif state == REDEEMED then
        return 'already_redeemed'
    elseif make_void == (state == VOID) then
        return done .. ' - ' .. void_by_range
    elseif make_void then
        set_state(VOID)
    else
        set_state(campaign.kind == 'single' and find_hold(campaign) and HELD or FRESH)
    end
    local event_id = add_event(done, attempt.serial .. '-' .. attempt.serial, campaign)
    return done .. ' ' .. event_id .. ' ' .. void_by_range
end

local answers = { 'ok' }
for at = 1, #fields, attempt_width do
    read_attempt(at)
    local make_void, void_by_range = unpack(fields, at + 19, at + 20)
    local answer = read_receipt()
    if not answer then
        answer = change(make_void == 1, void_by_range)
        keep_receipt(answer)
    end
    answers[#answers + 1] = answer
end
write_pending()
return answers
