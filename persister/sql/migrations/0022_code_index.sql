-- All events of a code, and the codes with these last symbols.
CREATE INDEX ledger_code ON ledger (last4, batch, serial) WHERE last4 <> '';
