#!lua
-- Makes one code void (`make_void` 1) or valid again (`make_void` 0). Whole batches and ranges are void by configuration, not
-- here: `void_by_range` says whether the code is void by them. It is repeated in the answer, so a replay has the same value.
-- Answers, one for each attempt: `voided` or `unvoided`, the event id, or `-` if nothing changed, and `void_by_range`;
-- `already_redeemed`; `in_use`, while a combined order over several shards takes the code; or `replayed <the first answer>`.

-- @include lib/answer_each
-- @include lib/add_event
-- @include lib/campaign
-- @include lib/code_state
-- @include lib/description
-- @include lib/holds
-- @include lib/prepared

local function change_void(ending, make_void, void_by_range)
    local campaign, state = read_campaign(), read_state()
    make_void = make_void == 1
    local done = make_void and ANSWER.voided or ANSWER.unvoided -- the answer's word, and the event's type
    if not campaign.id then
        return ANSWER.unpublished
    elseif state == REDEEMED then
        return ANSWER.already_redeemed
    elseif make_void == (state == VOID) then
        return done .. ' - ' .. void_by_range
    elseif count_prepared() > 0 then
        return ANSWER.in_use
    elseif make_void then
        set_state(VOID)
    else
        set_state(campaign.kind == 'single' and find_hold(campaign) and HELD or FRESH)
    end
    local event_id = add_event(done, range_of_code(), campaign, nil, nil, ending)
    return done .. ' ' .. event_id .. ' ' .. void_by_range
end

local function main()
    return answer_each(change_void)
end
