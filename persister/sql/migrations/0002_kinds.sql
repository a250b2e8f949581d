-- Codes that succeed several times, and codes that hold an amount.

ALTER TABLE campaigns
    DROP CONSTRAINT campaigns_kind_check,
    ADD CONSTRAINT campaigns_kind_check CHECK (kind IN ('single', 'multi', 'balance')),
    ADD COLUMN max_uses bigint CHECK (max_uses BETWEEN 1 AND 9007199254740991),  -- of each code
    ADD COLUMN budget bigint CHECK (budget BETWEEN 0 AND 9007199254740991),      -- minor units, of all codes
    ADD CONSTRAINT campaigns_max_uses_check1 CHECK ((kind = 'multi') = (max_uses IS NOT NULL)),
    ADD CONSTRAINT campaigns_amount_check1 CHECK (amount IS NOT NULL OR (kind <> 'balance' AND budget IS NULL));
