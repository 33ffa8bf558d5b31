-- Connections of simplified sliding sync. seq, token: the last answer that changed what is known of the connection, by
-- its number and a number that cannot be guessed; former: the token of the one before. configs: JSON.
CREATE TABLE sliding_connections (
    connection_nid INTEGER PRIMARY KEY,
    device_nid     INTEGER NOT NULL REFERENCES devices ON DELETE CASCADE,
    conn_id        TEXT NOT NULL,
    seq            INTEGER NOT NULL,
    token          INTEGER NOT NULL,
    former         INTEGER NOT NULL,
    configs        TEXT NOT NULL,
    used_ts        INTEGER NOT NULL,
    UNIQUE (device_nid, conn_id)
);

-- What was told of a room, by the answer that told it: the newest, and the one before where the newest may be lost.
-- told: flags and small numbers in one. behind: what came after this position was not told.
CREATE TABLE sliding_rooms (
    connection_nid INTEGER NOT NULL REFERENCES sliding_connections ON DELETE CASCADE,
    room_nid       INTEGER NOT NULL,
    seq            INTEGER NOT NULL,
    told           INTEGER NOT NULL,
    behind         INTEGER,
    PRIMARY KEY (connection_nid, room_nid, seq)
) WITHOUT ROWID;
