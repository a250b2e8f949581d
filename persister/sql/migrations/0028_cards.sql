-- What the customer page of a campaign shows (engine/api/cards.py); null: its own look and words.
ALTER TABLE campaigns ADD COLUMN card jsonb;
