-- What does not work as it should in a process that works all the same: texts, by the name of a check of redeem doctor.
ALTER TABLE heartbeats ADD COLUMN notes text NOT NULL DEFAULT '{}';
