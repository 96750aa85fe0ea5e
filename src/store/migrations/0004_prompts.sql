-- parent: digest of the version that this one was edited from; NULL where nobody said.
ALTER TABLE prompt_versions ADD COLUMN parent TEXT;

-- kind: promote, rollback, remove; NULL in rows from before, whose reason says it. to_version is 0 where the label was taken away.
-- detail JSON: the run that proved the version, or why the gate was set aside.
ALTER TABLE prompt_label_moves ADD COLUMN kind TEXT;
ALTER TABLE prompt_label_moves ADD COLUMN detail TEXT;
CREATE INDEX prompt_label_moves_by_prompt ON prompt_label_moves (prompt, id);

-- What a file and the library agreed on last: by this the two are told apart when one of them changed. path: absolute.
CREATE TABLE prompt_files (
    path TEXT NOT NULL, prompt TEXT NOT NULL, digest TEXT NOT NULL, synced_at BIGINT NOT NULL,
    PRIMARY KEY (path, prompt)
);

-- The request log: the prompt that was rendered, and the number of its version.
ALTER TABLE requests ADD COLUMN prompt TEXT;
ALTER TABLE requests ADD COLUMN prompt_version BIGINT;
