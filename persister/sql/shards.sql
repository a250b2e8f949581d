SELECT shards FROM deployment
