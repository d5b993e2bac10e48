-- Where the chain of events begins once old ones were pruned: the last event that is gone. No row:
-- none is.
CREATE TABLE pruned_events (
    one    INTEGER PRIMARY KEY CHECK (one = 1),
    id     INTEGER NOT NULL,              -- events.id of the last pruned event
    chain  TEXT NOT NULL                  -- its chain value
) STRICT;
