-- Who uses an API key: the server of a merchant, or pages in browsers. Pages are those of these origins.
ALTER TABLE api_keys
    ADD COLUMN kind text NOT NULL DEFAULT 'server' CHECK (kind IN ('server', 'browser')),
    ADD COLUMN origins text[] CHECK (cardinality(origins) > 0),
    ADD CHECK ((kind = 'browser') = (origins IS NOT NULL)),
    ADD CHECK (kind = 'server' OR campaigns IS NOT NULL);
