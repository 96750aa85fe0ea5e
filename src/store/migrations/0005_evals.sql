-- Cases in the order of the split: a run is read, resumed and summed up page by page. notes JSON: explanations and errors of scorers by metric;
-- tool_calls JSON: what the model wanted to call; cost in micro-dollars, NULL where nobody knows; grouping: the group of a sample, for
-- clustered errors; cached: 1 where the answer came from eval_replies.
ALTER TABLE run_samples RENAME TO run_samples_before;
CREATE TABLE run_samples (
    run TEXT NOT NULL, target TEXT NOT NULL, sample TEXT NOT NULL, repeat_index BIGINT NOT NULL, position BIGINT NOT NULL,
    status TEXT NOT NULL, output TEXT NOT NULL, error TEXT, scores TEXT NOT NULL, notes TEXT, tool_calls TEXT, grouping TEXT,
    cached BIGINT NOT NULL, cost BIGINT, input_tokens BIGINT NOT NULL, output_tokens BIGINT NOT NULL,
    latency_ms DOUBLE PRECISION NOT NULL, finished_at BIGINT NOT NULL,
    PRIMARY KEY (run, target, position, repeat_index)
);
INSERT INTO run_samples (run, target, sample, repeat_index, position, status, output, error, scores, notes, tool_calls, grouping, cached, cost,
    input_tokens, output_tokens, latency_ms, finished_at)
    SELECT run, target, sample, repeat_index, position, status, output, error, scores, NULL, NULL, NULL, 0, NULL,
    input_tokens, output_tokens, latency_ms, finished_at FROM run_samples_before;
DROP TABLE run_samples_before;

-- The digest of a run's scorers, which a route's gate may pin; NULL in runs from before.
ALTER TABLE runs ADD COLUMN scorers_digest TEXT;

-- Answers that suites with `cache: true` are given again. key: digest of everything that changes an answer. reply JSON.
CREATE TABLE eval_replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL, created_at BIGINT NOT NULL);
