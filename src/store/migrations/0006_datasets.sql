-- Chat completions that the caller asked to be stored. stored JSON: their metadata; NULL for all others.
ALTER TABLE requests ADD COLUMN stored TEXT;
CREATE INDEX requests_stored ON requests (project, at) WHERE stored IS NOT NULL;
CREATE INDEX requests_stored_by_reply ON requests (reply_id) WHERE stored IS NOT NULL;

-- Samples that people look at before they become part of a dataset. source: the request that it was made of, and reason: why it was chosen.
-- sample JSON: as proposed; outcome JSON: as it was accepted. status: open, disputed, accepted, rejected, published. needed: reviewers.
CREATE TABLE review_items (
    id TEXT PRIMARY KEY, project TEXT NOT NULL, dataset TEXT NOT NULL, source TEXT NOT NULL, reason TEXT NOT NULL, sample TEXT NOT NULL,
    status TEXT NOT NULL, outcome TEXT, needed BIGINT NOT NULL, created_at BIGINT NOT NULL, closed_at BIGINT,
    UNIQUE (project, dataset, source)
);
CREATE INDEX review_items_by_status ON review_items (project, dataset, status, created_at);

-- verdict: accept, edit, reject; sample JSON: as edited. is_final: the word of whoever settles a dispute.
CREATE TABLE reviews (
    item TEXT NOT NULL, reviewer TEXT NOT NULL, verdict TEXT NOT NULL, sample TEXT, comment TEXT, is_final BIGINT NOT NULL, at BIGINT NOT NULL,
    PRIMARY KEY (item, reviewer)
);
