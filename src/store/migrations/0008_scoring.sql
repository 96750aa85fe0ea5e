-- refusal: the provider's word that the model declined, NULL where it says none; scoring_cost: micro-dollars that the case's scorers spent
-- on calls of their own, NULL where nobody knows.
ALTER TABLE run_samples ADD COLUMN refusal TEXT;
ALTER TABLE run_samples ADD COLUMN scoring_cost BIGINT DEFAULT 0;

-- Answers go when they are too old.
CREATE INDEX eval_replies_by_age ON eval_replies (created_at);
