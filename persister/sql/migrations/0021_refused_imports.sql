-- An import that is refused before a line of it was written ends, and says why.
ALTER TABLE imports DROP CONSTRAINT imports_state_check;
ALTER TABLE imports ADD CONSTRAINT imports_state_check
    CHECK (state IN ('running', 'finished', 'discarded', 'refused'));
ALTER TABLE imports ADD COLUMN reason text;
