-- Connections of simplified sliding sync. seq, token: the last answer that changed what is known of the connection, by
-- its number and a number that cannot be guessed; former: the token of the one before. configs: JSON.
CREATE TABLE sliding_connections (
    connection_nid BIGINT PRIMARY KEY,
    device_nid     BIGINT NOT NULL REFERENCES devices ON DELETE CASCADE,
    conn_id        TEXT NOT NULL,
    seq            BIGINT NOT NULL,
    token          BIGINT NOT NULL,
    former         BIGINT NOT NULL,
    configs        TEXT NOT NULL,
    used_ts        BIGINT NOT NULL,
    UNIQUE (device_nid, conn_id)
);

-- What was told of a room, by the answer that told it: the newest, and the one before where the newest may be lost.
-- told: flags and small numbers in one. behind: what came after this position was not told.
CREATE TABLE sliding_rooms (
    connection_nid BIGINT NOT NULL REFERENCES sliding_connections ON DELETE CASCADE,
    room_nid       BIGINT NOT NULL,
    seq            BIGINT NOT NULL,
    told           BIGINT NOT NULL,
    behind         BIGINT,
    PRIMARY KEY (connection_nid, room_nid, seq)
);
