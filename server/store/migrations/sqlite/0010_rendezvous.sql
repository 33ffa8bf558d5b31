-- Places where two devices of a person leave each other short messages while one of them signs in. Whoever knows the
-- name of a place may read and write it, so only its hash is here.
CREATE TABLE rendezvous (
    id_hash     BLOB PRIMARY KEY,
    content     BLOB NOT NULL,
    -- Counts the writes: who writes must have seen the last one.
    version     INTEGER NOT NULL,
    modified_ts INTEGER NOT NULL,
    expires_ts  INTEGER NOT NULL
);
CREATE INDEX rendezvous_expires ON rendezvous (expires_ts);
