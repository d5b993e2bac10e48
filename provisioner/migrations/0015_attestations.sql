-- Signed statements: docs/attestations.md. Rows are never changed.
CREATE TABLE attestations (
    id          TEXT PRIMARY KEY,          -- UUIDv7
    kind        TEXT NOT NULL,             -- provision | audit
    machine     TEXT NOT NULL,
    run         TEXT NOT NULL,             -- runs.id
    image       TEXT,                      -- images.id
    summary     TEXT NOT NULL,
    created_at  INTEGER NOT NULL,
    envelope    TEXT NOT NULL              -- JSON: DSSE
) STRICT;
CREATE INDEX attestations_machine ON attestations(machine, id);
