-- What happened to a tuning job, in order of time. kind: message, metrics; step: of metrics, which are written over when a resumed training
-- takes a step again; data JSON: the numbers.
CREATE TABLE job_events (
    job TEXT NOT NULL, id TEXT NOT NULL, at BIGINT NOT NULL, level TEXT NOT NULL, kind TEXT NOT NULL, step BIGINT,
    message TEXT NOT NULL, data TEXT NOT NULL, PRIMARY KEY (job, id)
);
CREATE INDEX job_events_by_time ON job_events (job, at, id);

-- OpenAI's fine-tuning API. job: the row of jobs that trains here, NULL where a provider trains; upstream JSON: that provider's name and its
-- newest answer, null where it trains here. name: what the adapter will be called. asked JSON: seed, suffix, method and hyperparameters.
CREATE TABLE fine_tunes (
    id TEXT PRIMARY KEY, project TEXT NOT NULL, api_key TEXT NOT NULL, job TEXT UNIQUE, model TEXT NOT NULL, name TEXT NOT NULL,
    training_file TEXT NOT NULL, validation_file TEXT, asked TEXT NOT NULL, metadata TEXT NOT NULL, upstream TEXT NOT NULL,
    is_paused BIGINT NOT NULL, result_file TEXT, created_at BIGINT NOT NULL, UNIQUE (model, name)
);
CREATE INDEX fine_tunes_by_project ON fine_tunes (project, id);
