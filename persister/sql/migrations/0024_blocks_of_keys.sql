-- A block may be about one API key only. Those that the guard makes by itself are: each shop has users and devices of its own.
ALTER TABLE blocks ADD COLUMN api_key text;  -- null: all keys
