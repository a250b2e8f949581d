SELECT b.id, b.count, b.campaign, c.kind, c.amount, c.pinned_shard, c.per_user_limit IS NOT NULL AS per_user_limited
  FROM batches AS b JOIN campaigns AS c ON c.id = b.campaign
