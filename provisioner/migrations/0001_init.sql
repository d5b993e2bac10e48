-- The daemon's state. Moments are integer milliseconds since the Unix epoch, UTC.
-- Secrets are stored as SHA-256 digests only.

CREATE TABLE machines (
    name        TEXT PRIMARY KEY,
    spec        TEXT NOT NULL,             -- JSON: machine::Machine, without state
    state       TEXT NOT NULL,             -- protocol::machine::MachineState
    active_run  TEXT,                      -- runs.id while a run is active
    last_run    TEXT,                      -- runs.id of the latest run, active or not
    inventory   TEXT,                      -- JSON: protocol::agent::Inventory as last reported
    node        TEXT,                      -- JSON: protocol::api::NodeReport of the last phone-home
    created_at  INTEGER NOT NULL,
    updated_at  INTEGER NOT NULL
) STRICT;

CREATE TABLE nics (
    mac      TEXT PRIMARY KEY,
    machine  TEXT NOT NULL REFERENCES machines(name) ON DELETE CASCADE,
    address  TEXT UNIQUE,                  -- IPv4 without prefix
    prefix   INTEGER,
    boot     INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX nics_machine ON nics(machine);

-- One row for every change of a machine's state, in the transaction that changed it.
CREATE TABLE machine_history (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    machine  TEXT NOT NULL,
    at       INTEGER NOT NULL,
    before   TEXT,
    after    TEXT NOT NULL,
    reason   TEXT NOT NULL
) STRICT;
CREATE INDEX machine_history_machine ON machine_history(machine, id);

CREATE TABLE leases (
    mac         TEXT PRIMARY KEY,          -- one lease a network card, whatever its client ids
    address     TEXT NOT NULL UNIQUE,
    state       TEXT NOT NULL,             -- bound | released
    client_id   TEXT,                      -- last client id seen, hex
    hostname    TEXT,
    expires_at  INTEGER NOT NULL,
    updated_at  INTEGER NOT NULL
) STRICT;

-- Addresses that a client found in use on the wire (DHCPDECLINE).
CREATE TABLE quarantined_addresses (
    address  TEXT PRIMARY KEY,
    mac      TEXT NOT NULL,                -- who declined it
    until    INTEGER NOT NULL
) STRICT;

CREATE TABLE images (
    id        TEXT PRIMARY KEY,            -- digest of the canonical manifest, blake3:hex
    size      INTEGER NOT NULL,            -- bytes of the raw disk
    stored    INTEGER NOT NULL,            -- bytes of data.zst
    sha256    TEXT NOT NULL,               -- of the raw disk
    os        TEXT NOT NULL,
    added_at  INTEGER NOT NULL
) STRICT;

CREATE TABLE image_names (
    name      TEXT NOT NULL,
    version   TEXT NOT NULL,
    image     TEXT NOT NULL REFERENCES images(id),
    added_at  INTEGER NOT NULL,
    PRIMARY KEY (name, version)
) STRICT;

CREATE TABLE runs (
    id            TEXT PRIMARY KEY,        -- UUIDv7
    machine       TEXT NOT NULL,
    workflow      TEXT NOT NULL,           -- name
    plan          TEXT NOT NULL,           -- JSON: the validated workflow as it was when the run began
    image         TEXT,                    -- images.id
    state         TEXT NOT NULL,           -- pending | running | failing | succeeded | failed | cancelled
    reason        TEXT NOT NULL DEFAULT '',
    requested_by  TEXT NOT NULL,
    cancel        INTEGER NOT NULL DEFAULT 0,
    version       INTEGER NOT NULL DEFAULT 0, -- optimistic lock of the engine
    created_at    INTEGER NOT NULL,
    finished_at   INTEGER,
    deadline      INTEGER NOT NULL
) STRICT;
CREATE INDEX runs_machine ON runs(machine, created_at);
CREATE UNIQUE INDEX runs_one_active ON runs(machine) WHERE state IN ('pending', 'running', 'failing');

CREATE TABLE steps (
    run            TEXT NOT NULL REFERENCES runs(id) ON DELETE CASCADE,
    idx            INTEGER NOT NULL,
    phase          TEXT NOT NULL,          -- main | on-failure
    name           TEXT NOT NULL,
    uses           TEXT NOT NULL,
    state          TEXT NOT NULL,          -- pending | running | waiting | leaving | succeeded | failed | skipped | cancelled
    attempt        INTEGER NOT NULL DEFAULT 0,
    boot_id        TEXT,                   -- agent boot that holds the current attempt
    inputs_digest  TEXT,                   -- of the rendered, redacted parameters of the first attempt
    not_before     INTEGER,                -- backoff
    deadline       INTEGER,                -- of the current attempt
    started_at     INTEGER,                -- first start
    attempt_at     INTEGER,                -- start of the current attempt
    finished_at    INTEGER,
    reason         TEXT NOT NULL DEFAULT '',
    output         TEXT,                   -- JSON: the typed result
    scratch        TEXT,                   -- JSON: what a daemon step remembers between looks
    PRIMARY KEY (run, idx)
) STRICT;

CREATE TABLE tokens (
    id           TEXT PRIMARY KEY,
    digest       TEXT NOT NULL UNIQUE,     -- SHA-256 of the secret, hex
    purpose      TEXT NOT NULL,            -- boot | phone-home
    machine      TEXT NOT NULL,
    run          TEXT NOT NULL,
    created_at   INTEGER NOT NULL,
    expires_at   INTEGER NOT NULL,
    used_at      INTEGER,
    used_by      TEXT,                     -- what redeemed it: key digest (boot), address (others)
    revoked_at   INTEGER
) STRICT;
CREATE INDEX tokens_run ON tokens(run);

-- What happened, each row chained to the one before by its digest.
CREATE TABLE events (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    at       INTEGER NOT NULL,
    kind     TEXT NOT NULL,
    machine  TEXT,
    run      TEXT,
    message  TEXT NOT NULL,
    data     TEXT NOT NULL,
    chain    TEXT NOT NULL                 -- SHA-256 over the previous chain value and this row
) STRICT;
CREATE INDEX events_run ON events(run, id);
CREATE INDEX events_machine ON events(machine, id);

-- The latest fact of each kind about a machine: what decisions look at.
CREATE TABLE sightings (
    machine  TEXT NOT NULL,
    kind     TEXT NOT NULL,                -- event kind
    at       INTEGER NOT NULL,
    run      TEXT,
    data     TEXT NOT NULL,
    PRIMARY KEY (machine, kind)
) STRICT;

CREATE TABLE api_keys (
    name        TEXT PRIMARY KEY,
    digest      TEXT NOT NULL UNIQUE,
    role        TEXT NOT NULL,
    created_at  INTEGER NOT NULL
) STRICT;

CREATE TABLE idempotency (
    key         TEXT NOT NULL,
    caller      TEXT NOT NULL,
    request     TEXT NOT NULL,             -- digest of method, path and body
    status      INTEGER NOT NULL,
    response    TEXT NOT NULL,
    created_at  INTEGER NOT NULL,
    PRIMARY KEY (caller, key)
) STRICT;
