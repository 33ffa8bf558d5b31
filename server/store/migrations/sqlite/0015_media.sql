-- Since when a file is withheld from everybody; NULL for most.
ALTER TABLE media ADD COLUMN quarantined_ts INTEGER;
CREATE INDEX media_uploader ON media (uploader_nid);

-- Identifiers that were given out before there is a file. The row goes when the file comes.
CREATE TABLE media_reservations (
    media_id     TEXT PRIMARY KEY,
    uploader_nid INTEGER NOT NULL REFERENCES users,
    expires_ts   INTEGER NOT NULL
);
CREATE INDEX media_reservations_uploader ON media_reservations (uploader_nid);
CREATE INDEX media_reservations_expires ON media_reservations (expires_ts);

-- Copies of other servers' files, which can be fetched again.
CREATE TABLE remote_media (
    server_name    TEXT NOT NULL,
    media_id       TEXT NOT NULL,
    content_type   TEXT,
    file_name      TEXT,
    size           INTEGER NOT NULL,
    sha256         BLOB NOT NULL,
    fetched_ts     INTEGER NOT NULL,
    -- When somebody asked for it last, to the hour.
    used_ts        INTEGER NOT NULL,
    quarantined_ts INTEGER,
    PRIMARY KEY (server_name, media_id)
);
CREATE INDEX remote_media_sha256 ON remote_media (sha256);
CREATE INDEX remote_media_used ON remote_media (used_ts);

-- Smaller pictures, by the content that they were made of.
CREATE TABLE media_thumbnails (
    source_sha256 BLOB NOT NULL,
    width         INTEGER NOT NULL,
    height        INTEGER NOT NULL,
    method        TEXT NOT NULL,
    content_type  TEXT NOT NULL,
    size          INTEGER NOT NULL,
    sha256        BLOB NOT NULL,
    created_ts    INTEGER NOT NULL,
    PRIMARY KEY (source_sha256, width, height, method)
);
CREATE INDEX media_thumbnails_sha256 ON media_thumbnails (sha256);

-- Contents that lost a row which referred to them: to be looked at, and removed if no other row does.
CREATE TABLE media_garbage (
    sha256   BLOB PRIMARY KEY,
    since_ts INTEGER NOT NULL
);

-- Contents that nobody may upload or fetch.
CREATE TABLE media_blocked (
    sha256     BLOB PRIMARY KEY,
    blocked_ts INTEGER NOT NULL
);

-- What web pages say of themselves, by the hash of their address.
CREATE TABLE url_previews (
    url_hash   BLOB PRIMARY KEY,
    preview    TEXT NOT NULL,
    expires_ts INTEGER NOT NULL
);
CREATE INDEX url_previews_expires ON url_previews (expires_ts);
