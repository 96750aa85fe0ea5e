-- Keys: routes JSON list of the names that may be called, NULL for all; budgets and costs in micro-dollars; budget_period: day, month, total.
ALTER TABLE api_keys ADD COLUMN routes TEXT;
ALTER TABLE api_keys ADD COLUMN expires_at BIGINT;
ALTER TABLE api_keys ADD COLUMN requests_per_minute BIGINT;
ALTER TABLE api_keys ADD COLUMN tokens_per_minute BIGINT;
ALTER TABLE api_keys ADD COLUMN budget_micro_usd BIGINT;
ALTER TABLE api_keys ADD COLUMN budget_period TEXT;

-- Projects with limits of their own; a project without a row has none.
CREATE TABLE projects (
    name TEXT PRIMARY KEY, requests_per_minute BIGINT, tokens_per_minute BIGINT, budget_micro_usd BIGINT, budget_period TEXT,
    created_at BIGINT NOT NULL
);

-- What was used, by day (days since the Unix epoch, UTC), key, provider and model; added to in the transaction that stores the log rows.
-- unpriced: requests whose price is not known; their cost is not in cost_micro_usd.
CREATE TABLE usage_by_day (
    day BIGINT NOT NULL, project TEXT NOT NULL, api_key TEXT NOT NULL, provider TEXT NOT NULL, model TEXT NOT NULL,
    requests BIGINT NOT NULL, failed BIGINT NOT NULL, input_tokens BIGINT NOT NULL, output_tokens BIGINT NOT NULL,
    cached_tokens BIGINT NOT NULL, reasoning_tokens BIGINT NOT NULL, cost_micro_usd BIGINT NOT NULL, saved_micro_usd BIGINT NOT NULL,
    unpriced BIGINT NOT NULL,
    PRIMARY KEY (day, project, api_key, provider, model)
);
CREATE INDEX usage_by_key ON usage_by_day (api_key, day);
CREATE INDEX usage_by_project ON usage_by_day (project, day);

-- How many lines of a log segment are in the database: what makes moving them exactly once.
CREATE TABLE log_segments (
    name TEXT PRIMARY KEY, moved_lines BIGINT NOT NULL
);

-- The request log. cost_micro_usd is NULL where the price is unknown; price: which row of the price file was used; cache: hit, semantic,
-- miss or off; attempts: calls made upstream; attempted JSON: [{target, code, ms}], where it took more than one; guardrails JSON: what was found.
ALTER TABLE requests ADD COLUMN upstream_ms DOUBLE PRECISION;
ALTER TABLE requests ADD COLUMN overhead_ms DOUBLE PRECISION;
ALTER TABLE requests ADD COLUMN cached_tokens BIGINT;
ALTER TABLE requests ADD COLUMN cache_write_tokens BIGINT;
ALTER TABLE requests ADD COLUMN reasoning_tokens BIGINT;
ALTER TABLE requests ADD COLUMN cost_micro_usd BIGINT;
ALTER TABLE requests ADD COLUMN saved_micro_usd BIGINT;
ALTER TABLE requests ADD COLUMN price TEXT;
ALTER TABLE requests ADD COLUMN cache TEXT;
ALTER TABLE requests ADD COLUMN attempts BIGINT;
ALTER TABLE requests ADD COLUMN attempted TEXT;
ALTER TABLE requests ADD COLUMN guardrails TEXT;
ALTER TABLE requests ADD COLUMN trace_id TEXT;
-- The reply's own id (chatcmpl-...), and the conversation that the request names. Without an index: see request_names.
ALTER TABLE requests ADD COLUMN reply_id TEXT;
ALTER TABLE requests ADD COLUMN conversation TEXT;
CREATE INDEX requests_by_key ON requests (api_key, at);

-- Feedback on a logged request. value JSON: a number, a boolean or a text; number: the value where it is one, true as 1.
CREATE TABLE feedback (
    project TEXT NOT NULL, id TEXT NOT NULL, request TEXT NOT NULL, api_key TEXT NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL,
    number DOUBLE PRECISION, comment TEXT, correction TEXT, source TEXT, created_at BIGINT NOT NULL,
    PRIMARY KEY (project, id)
);
CREATE INDEX feedback_by_request ON feedback (request);

-- The other names of requests; kind: completion, trace, conversation. Such names are random, and an index over them would cost every
-- logged request a page of the file; so it is made here, and only when feedback asks for one of them. request_names_mark: one row, up to when.
CREATE TABLE request_names (
    kind TEXT NOT NULL, name TEXT NOT NULL, request TEXT NOT NULL, at BIGINT NOT NULL,
    PRIMARY KEY (kind, name, request)
);
CREATE INDEX request_names_by_time ON request_names (at);
CREATE TABLE request_names_mark (
    id BIGINT PRIMARY KEY, at BIGINT NOT NULL
);
