-- Files that clients uploaded or that batches wrote. digest names the bytes in uploads/; they go with the last row that names them.
CREATE TABLE files (
    id TEXT PRIMARY KEY, project TEXT NOT NULL, filename TEXT NOT NULL, purpose TEXT NOT NULL, digest TEXT NOT NULL,
    size_bytes BIGINT NOT NULL, created_by TEXT NOT NULL, created_at BIGINT NOT NULL, expires_at BIGINT
);
CREATE INDEX files_by_project ON files (project, created_at);
CREATE INDEX files_by_digest ON files (digest);

-- job: the row of jobs whose lease says who works on it. errors and metadata are JSON. retry_key: the client's Idempotency-Key.
CREATE TABLE batches (
    id TEXT PRIMARY KEY, project TEXT NOT NULL, api_key TEXT NOT NULL, job TEXT NOT NULL UNIQUE, endpoint TEXT NOT NULL,
    input_file TEXT NOT NULL, completion_window TEXT NOT NULL, metadata TEXT NOT NULL, output_expires_s BIGINT,
    retry_key TEXT, request_digest TEXT NOT NULL, status TEXT NOT NULL, model TEXT, errors TEXT NOT NULL,
    total BIGINT NOT NULL, completed BIGINT NOT NULL, failed BIGINT NOT NULL,
    input_tokens BIGINT NOT NULL, cached_tokens BIGINT NOT NULL, output_tokens BIGINT NOT NULL, reasoning_tokens BIGINT NOT NULL,
    output_file TEXT, error_file TEXT, created_at BIGINT NOT NULL, expires_at BIGINT NOT NULL,
    in_progress_at BIGINT, finalizing_at BIGINT, completed_at BIGINT, failed_at BIGINT, expired_at BIGINT,
    cancelling_at BIGINT, cancelled_at BIGINT, UNIQUE (project, retry_key)
);
CREATE INDEX batches_by_project ON batches (project, created_at);
