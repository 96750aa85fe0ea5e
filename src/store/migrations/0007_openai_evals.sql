-- OpenAI's Evals API: what is tested and by which criteria, its runs, and a row per item, which is where a run goes on after a kill.
-- Suites of files have tables of their own (runs, run_samples). data_source, criteria, metadata, error, usage, per_criteria, item,
-- results, sample and chosen (ids of stored completions) are JSON. job: the row of jobs whose lease says who works on the run.
CREATE TABLE openai_evals (
    id TEXT PRIMARY KEY, project TEXT NOT NULL, name TEXT NOT NULL, data_source TEXT NOT NULL, criteria TEXT NOT NULL,
    metadata TEXT NOT NULL, created_by TEXT NOT NULL, created_at BIGINT NOT NULL, updated_at BIGINT NOT NULL
);
CREATE INDEX openai_evals_by_project ON openai_evals (project, id);
CREATE INDEX openai_evals_by_update ON openai_evals (project, updated_at, id);

CREATE TABLE openai_eval_runs (
    id TEXT PRIMARY KEY, eval TEXT NOT NULL, project TEXT NOT NULL, api_key TEXT NOT NULL, job TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL, data_source TEXT NOT NULL, model TEXT NOT NULL, metadata TEXT NOT NULL, criteria TEXT NOT NULL,
    status TEXT NOT NULL, error TEXT NOT NULL, usage TEXT NOT NULL, per_criteria TEXT NOT NULL,
    created_at BIGINT NOT NULL, finished_at BIGINT, chosen TEXT NOT NULL
);
CREATE INDEX openai_eval_runs_by_eval ON openai_eval_runs (eval, id);

CREATE TABLE openai_eval_items (
    run TEXT NOT NULL, number BIGINT NOT NULL, status TEXT NOT NULL, item TEXT NOT NULL, results TEXT NOT NULL,
    sample TEXT NOT NULL, created_at BIGINT NOT NULL, PRIMARY KEY (run, number)
);
