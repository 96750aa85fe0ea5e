-- What answers under a provider's model name, as its replies say. kind: model, fingerprint.
CREATE TABLE model_snapshots (
    provider TEXT NOT NULL, model TEXT NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL, first_seen BIGINT NOT NULL,
    PRIMARY KEY (provider, model, kind, name)
);
