-- refusal: the provider's word that the model declined, NULL where it says none; scoring_cost: micro-dollars that the case's scorers spent
-- on calls of their own, NULL where nobody knows.
ALTER TABLE run_samples ADD COLUMN refusal TEXT;
ALTER TABLE run_samples ADD COLUMN scoring_cost BIGINT DEFAULT 0;

-- Answers go when they are too old.
CREATE INDEX eval_replies_by_age ON eval_replies (created_at);

-- Answers to items of OpenAI's Evals API whose grading was cut off: whoever goes on with the run grades them and asks nobody again. sample
-- (what graders see) and shown (what is told of the call) are JSON.
CREATE TABLE openai_eval_answers (run TEXT NOT NULL, number BIGINT NOT NULL, sample TEXT NOT NULL, shown TEXT NOT NULL, PRIMARY KEY (run, number));
