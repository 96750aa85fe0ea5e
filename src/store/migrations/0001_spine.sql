-- Times are milliseconds since the Unix epoch. Columns that hold JSON say so. Digests are 'sha256:<hex>'.

CREATE TABLE api_keys (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, project TEXT NOT NULL, role TEXT NOT NULL,
    hint TEXT NOT NULL, hash TEXT NOT NULL UNIQUE, created_at BIGINT NOT NULL, revoked_at BIGINT
);

CREATE TABLE models (
    name TEXT PRIMARY KEY, digest TEXT NOT NULL, size_bytes BIGINT NOT NULL, architecture TEXT NOT NULL,
    licence TEXT NOT NULL, source TEXT NOT NULL, added_at BIGINT NOT NULL
);

CREATE TABLE prompt_versions (
    prompt TEXT NOT NULL, version BIGINT NOT NULL, digest TEXT NOT NULL, source TEXT NOT NULL,
    author TEXT NOT NULL, message TEXT NOT NULL, created_at BIGINT NOT NULL,
    PRIMARY KEY (prompt, version), UNIQUE (prompt, digest)
);

CREATE TABLE prompt_labels (
    prompt TEXT NOT NULL, label TEXT NOT NULL, version BIGINT NOT NULL,
    PRIMARY KEY (prompt, label)
);

CREATE TABLE prompt_label_moves (
    id TEXT PRIMARY KEY, prompt TEXT NOT NULL, label TEXT NOT NULL, from_version BIGINT, to_version BIGINT NOT NULL,
    actor TEXT NOT NULL, reason TEXT NOT NULL, moved_at BIGINT NOT NULL
);

-- digest: of the samples' canonical JSON lines, which are a blob; lineage JSON: where it came from; splits JSON: seed and digests.
CREATE TABLE dataset_versions (
    dataset TEXT NOT NULL, version BIGINT NOT NULL, digest TEXT NOT NULL, samples BIGINT NOT NULL,
    lineage TEXT NOT NULL, splits TEXT NOT NULL, created_at BIGINT NOT NULL,
    PRIMARY KEY (dataset, version), UNIQUE (dataset, digest)
);

-- config and summary are JSON; status: running, finished, failed, cancelled.
CREATE TABLE runs (
    id TEXT PRIMARY KEY, suite TEXT NOT NULL, suite_digest TEXT NOT NULL, dataset TEXT NOT NULL, dataset_digest TEXT NOT NULL,
    split TEXT NOT NULL, status TEXT NOT NULL, config TEXT NOT NULL, summary TEXT NOT NULL,
    created_at BIGINT NOT NULL, finished_at BIGINT
);
CREATE INDEX runs_by_suite ON runs (suite, created_at);

-- One row per sample, target and repeat: the resume point of an evaluation. scores JSON: {scorer: value}.
CREATE TABLE run_samples (
    run TEXT NOT NULL, target TEXT NOT NULL, sample TEXT NOT NULL, repeat_index BIGINT NOT NULL, position BIGINT NOT NULL,
    status TEXT NOT NULL, output TEXT NOT NULL, error TEXT, scores TEXT NOT NULL,
    input_tokens BIGINT NOT NULL, output_tokens BIGINT NOT NULL, latency_ms DOUBLE PRECISION NOT NULL, finished_at BIGINT NOT NULL,
    PRIMARY KEY (run, target, sample, repeat_index)
);

-- Which release digests a run measured: what a gate looks up.
CREATE TABLE run_targets (
    run TEXT NOT NULL, target TEXT NOT NULL, release TEXT NOT NULL, manifest TEXT NOT NULL, metrics TEXT NOT NULL,
    PRIMARY KEY (run, target)
);
CREATE INDEX run_targets_by_release ON run_targets (release);

-- kind: eval, tune, …; status: queued, running, succeeded, failed, cancelled; spec, progress and result are JSON.
CREATE TABLE jobs (
    id TEXT PRIMARY KEY, kind TEXT NOT NULL, status TEXT NOT NULL, spec TEXT NOT NULL, progress TEXT NOT NULL, result TEXT NOT NULL,
    error TEXT, owner TEXT, lease_until BIGINT NOT NULL, cancel_requested BIGINT NOT NULL, attempts BIGINT NOT NULL,
    created_at BIGINT NOT NULL, started_at BIGINT, finished_at BIGINT
);
CREATE INDEX jobs_by_status ON jobs (status, created_at);

-- digest: of the adapter's weights and configuration, which are blobs; config JSON: rank, alpha, targets; provenance JSON: job, data, recipe.
CREATE TABLE adapters (
    model TEXT NOT NULL, name TEXT NOT NULL, version BIGINT NOT NULL, digest TEXT NOT NULL, model_digest TEXT NOT NULL,
    weights TEXT NOT NULL, config TEXT NOT NULL, provenance TEXT NOT NULL, created_at BIGINT NOT NULL,
    PRIMARY KEY (model, name, version)
);
CREATE INDEX adapters_by_digest ON adapters (digest);

-- manifest JSON is the content the digest names; everything else about a release is in other tables.
CREATE TABLE releases (
    digest TEXT PRIMARY KEY, manifest TEXT NOT NULL, author TEXT NOT NULL, message TEXT NOT NULL, created_at BIGINT NOT NULL
);

-- gate JSON: the conditions every promotion on this route must meet.
CREATE TABLE routes (
    name TEXT PRIMARY KEY, suite TEXT NOT NULL, gate TEXT NOT NULL, created_at BIGINT NOT NULL
);

-- stage: shadow, canary, live. At most one release per route and stage.
CREATE TABLE route_stages (
    route TEXT NOT NULL, stage TEXT NOT NULL, release TEXT NOT NULL, weight DOUBLE PRECISION NOT NULL, run TEXT NOT NULL, since BIGINT NOT NULL,
    PRIMARY KEY (route, stage)
);

-- Every decision about a route, also the refused ones; decision: promoted, refused, rolled_back; detail JSON: the numbers used.
CREATE TABLE route_decisions (
    id TEXT PRIMARY KEY, route TEXT NOT NULL, stage TEXT NOT NULL, release TEXT NOT NULL, previous TEXT, decision TEXT NOT NULL,
    run TEXT, detail TEXT NOT NULL, actor TEXT NOT NULL, decided_at BIGINT NOT NULL
);
CREATE INDEX route_decisions_by_route ON route_decisions (route, decided_at);

-- Hash-chained: hash = SHA-256 over the previous hash and this row's canonical JSON.
CREATE TABLE audit (
    sequence BIGINT PRIMARY KEY, at BIGINT NOT NULL, actor TEXT NOT NULL, action TEXT NOT NULL, subject TEXT NOT NULL,
    detail TEXT NOT NULL, previous TEXT NOT NULL, hash TEXT NOT NULL
);

-- One row: the newest link of the chain, moved in the transaction that appends; shows a chain whose last rows were cut off.
CREATE TABLE audit_head (
    id BIGINT PRIMARY KEY, sequence BIGINT NOT NULL, hash TEXT NOT NULL
);

-- The request log. request and reply hold the bodies as sent (JSON text), or NULL where the configuration says not to keep them.
CREATE TABLE requests (
    id TEXT PRIMARY KEY, at BIGINT NOT NULL, project TEXT NOT NULL, api_key TEXT NOT NULL, endpoint TEXT NOT NULL, route TEXT,
    release TEXT, provider TEXT NOT NULL, model TEXT NOT NULL, adapter TEXT, streamed BIGINT NOT NULL, status BIGINT NOT NULL, error_code TEXT,
    input_tokens BIGINT, output_tokens BIGINT, finish_reason TEXT, queue_ms DOUBLE PRECISION, first_token_ms DOUBLE PRECISION,
    total_ms DOUBLE PRECISION NOT NULL, request TEXT, reply TEXT
);
CREATE INDEX requests_by_time ON requests (at);
