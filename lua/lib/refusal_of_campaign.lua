-- Returns the refusal if the campaign does not allow a use of the attempt's code now; else nil.

-- @include lib/campaign

local function refusal_of_campaign(campaign)
    if not campaign.id then
        return ANSWER.unpublished
    elseif campaign.state == 'ended' then
        return ANSWER.campaign_ended
    elseif campaign.state ~= 'active' then
        return ANSWER.campaign_inactive
    elseif campaign.starts_at_ms and now_ms < campaign.starts_at_ms then
        return ANSWER.campaign_not_started
    elseif campaign.ends_at_ms and now_ms >= campaign.ends_at_ms then
        return ANSWER.campaign_ended
    end
    return nil
end
