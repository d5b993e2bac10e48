-- What the manifest says beside sizes, who keeps an image, and where else its data lies.

ALTER TABLE images ADD COLUMN os_version TEXT;
ALTER TABLE images ADD COLUMN proof TEXT;      -- JSON: anneal_image::Proof; null: unproven

ALTER TABLE image_names ADD COLUMN pinned INTEGER NOT NULL DEFAULT 0;

CREATE TABLE image_mirrors (
    image     TEXT NOT NULL REFERENCES images(id) ON DELETE CASCADE,
    url       TEXT NOT NULL,
    added_at  INTEGER NOT NULL,
    PRIMARY KEY (image, url)
) STRICT;
