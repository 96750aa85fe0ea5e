-- What the reply of a case said in `model`; NULL where it said nothing, and in runs from before.
ALTER TABLE run_samples ADD COLUMN answered_as TEXT;

-- Changes are told while they are new.
CREATE INDEX model_snapshots_by_age ON model_snapshots (first_seen);
