-- Imported codes that a guess finds too easily (engine/imports/guessing.py); earlier imports were not measured.
ALTER TABLE imports ADD COLUMN guessable boolean NOT NULL DEFAULT false;
ALTER TABLE batches ADD COLUMN guessable boolean NOT NULL DEFAULT false;
