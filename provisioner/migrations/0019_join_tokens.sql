-- Tokens with which machines join clusters: made by an issuer outside of the daemon, so what is
-- known of one is written before it is asked for, and it is revoked when that is confirmed.
CREATE TABLE join_tokens (
    id          TEXT PRIMARY KEY,          -- UUIDv7
    machine     TEXT NOT NULL,
    run         TEXT NOT NULL,
    cluster     TEXT NOT NULL,
    issuer      TEXT NOT NULL,             -- kubernetes | exec | talos | static
    token_id    TEXT,                      -- public half: what is needed to revoke it
    digest      TEXT,                      -- SHA-256 of the token, hex; once it is there
    why         TEXT NOT NULL,             -- what it was made for
    created_at  INTEGER NOT NULL,
    minted_at   INTEGER,                   -- when the issuer had made it
    expires_at  INTEGER,                   -- null: never
    superseded  INTEGER NOT NULL DEFAULT 0, -- nobody needs it, whatever becomes of its run
    revoked_at  INTEGER,
    tries       INTEGER NOT NULL DEFAULT 0, -- to revoke it
    retry_at    INTEGER,
    problem     TEXT                       -- why the last try failed
) STRICT;
CREATE INDEX join_tokens_run ON join_tokens(run);
CREATE INDEX join_tokens_unrevoked ON join_tokens(id) WHERE revoked_at IS NULL;

-- Secrets of clusters that were imported, encrypted with the key beside the database.
CREATE TABLE cluster_secrets (
    cluster      TEXT PRIMARY KEY,
    sealed       BLOB NOT NULL,
    imported_at  INTEGER NOT NULL,
    imported_by  TEXT NOT NULL
) STRICT;
