SELECT b.id, b.count, b.campaign, c.kind, coalesce(c.amount, 0) AS amount, coalesce(c.max_uses, 1) AS max_uses,
       c.pinned_shard, c.per_user_limit IS NOT NULL AS per_user_limited
  FROM whole_batches AS b JOIN campaigns AS c ON c.id = b.campaign
