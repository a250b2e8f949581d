-- The campaigns to which an API key is limited; null: it is not limited.
ALTER TABLE api_keys ADD COLUMN campaigns text[] CHECK (cardinality(campaigns) > 0);
