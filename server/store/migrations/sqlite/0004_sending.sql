-- Duties that one replica has at a time. fence: grows with every change of holder; each write of a duty compares it.
CREATE TABLE leases (
    name       TEXT PRIMARY KEY,
    holder     TEXT NOT NULL,
    fence      INTEGER NOT NULL,
    expires_ts INTEGER NOT NULL
);

-- How far along the stream a duty has come.
CREATE TABLE duty_positions (
    name TEXT PRIMARY KEY,
    pos  INTEGER NOT NULL
);
-- What was there before federation had nobody to be sent to.
INSERT INTO duty_positions (name, pos) SELECT 'federation_sender', pos FROM stream WHERE id = 1;

-- Servers that could not be reached, now or once. pending_from: the position of the first event that the server lacks;
-- NULL when it has all up to the sender's position. failures: tries in a row; the next one is at retry_at.
CREATE TABLE destinations (
    server          TEXT PRIMARY KEY,
    pending_from    INTEGER,
    failures        INTEGER NOT NULL,
    retry_at        INTEGER NOT NULL,
    last_success_ts INTEGER
);
CREATE INDEX destinations_troubled ON destinations (server) WHERE pending_from IS NOT NULL OR failures > 0;

-- The users of a server.
CREATE INDEX users_server ON users (substr(user_id, instr(user_id, ':') + 1));
