-- state_after: the snapshot after the event itself, where that is not room_state: the graph forks there.
ALTER TABLE events ADD COLUMN state_after INTEGER;

-- The auth events of every state event: a JSON list of their numbers.
CREATE TABLE event_auth (
    event_nid INTEGER PRIMARY KEY,
    auth      TEXT NOT NULL
);

-- Events that others in the graph follow and that we do not have, or have as outliers: where history goes on elsewhere.
CREATE TABLE missing_events (
    room_nid  INTEGER NOT NULL,
    event_id  TEXT NOT NULL,
    event_nid INTEGER NOT NULL,
    PRIMARY KEY (room_nid, event_id)
);

-- What is told of a room to whom it invites, or who knocks: a JSON list of stripped state events.
CREATE TABLE stripped_state (
    event_nid INTEGER PRIMARY KEY,
    json      TEXT NOT NULL
);

-- Events that were acknowledged to their sender and wait for something that is missing.
CREATE TABLE inbound_events (
    inbound_nid INTEGER PRIMARY KEY,
    room_id     TEXT NOT NULL,
    event_id    TEXT NOT NULL,
    origin      TEXT NOT NULL,
    json        BLOB NOT NULL,
    received_ts INTEGER NOT NULL,
    UNIQUE (room_id, event_id)
);

-- Redactions of events that are not here yet.
CREATE TABLE waiting_redactions (
    target_id TEXT NOT NULL,
    event_nid INTEGER NOT NULL,
    PRIMARY KEY (target_id, event_nid)
);

CREATE INDEX memberships_pos ON memberships (pos);
