-- Config URLs: what a config token serves, and which of its documents were served when.
-- Boot tokens: whether a newer boot script replaced an unused one.
ALTER TABLE tokens ADD COLUMN superseded INTEGER NOT NULL DEFAULT 0;
ALTER TABLE tokens ADD COLUMN subject TEXT;    -- config: template, or folder with a slash at its end
ALTER TABLE tokens ADD COLUMN plain INTEGER NOT NULL DEFAULT 0; -- config: may be fetched without TLS

CREATE TABLE config_documents (
    token      TEXT NOT NULL REFERENCES tokens(id) ON DELETE CASCADE,
    document   TEXT NOT NULL,              -- name in the folder; empty: the template itself
    served_at  INTEGER NOT NULL,
    PRIMARY KEY (token, document)
) STRICT;
