-- Ends a cross-shard transaction on this shard, part by part, in the order in which prepare.lua has prepared the codes.

-- @include lib/campaign
-- @include lib/prepared

local settled -- of the transaction on this shard: its parts, how many were settled, and where their record is

each_call(function()
    settled = {}
end)

-- Settles the attempt's part: the code is no longer prepared.
-- Returns `absent` if nothing is prepared, or no longer, or `unpublished`; or nil, the campaign, the amount taken, the balance
-- left, id and record of the hold that is used up, and the event's ending.
local function settle_part(prepared_at, nonce, absent)
    if not settled.number then
        local record = redis.call('HGET', KEYS[prepared_at], nonce)
        settled = { number = 0, at = prepared_at, nonce = nonce, parts = record and cmsgpack.unpack(record)[2] }
    end
    local campaign = read_campaign()
    if not settled.parts then
        return absent
    elseif not campaign.id then
        return ANSWER.unpublished
    end
    settled.number = settled.number + 1
    change_prepared(-1)
    return nil, campaign, unpack(settled.parts[settled.number], 6, 10)
end

-- Removes the transaction's record from this shard, if this call has settled its parts with the word `success`.
local function remove_settled(reply, success)
    if settled.parts and string.match(reply[2], '^%S+') == success then
        redis.call('HDEL', KEYS[settled.at], settled.nonce)
    end
end
