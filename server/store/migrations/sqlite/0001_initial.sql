-- Facts about this installation: its server name, its format.
CREATE TABLE instance (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
);

-- Blocks of internal numbers are taken from here by each process.
CREATE TABLE sequences (
    name TEXT PRIMARY KEY,
    next INTEGER NOT NULL
);

-- The one stream: the position that was given out last. The row's lock is what puts commits in order.
CREATE TABLE stream (
    id  INTEGER PRIMARY KEY CHECK (id = 1),
    pos INTEGER NOT NULL
);
INSERT INTO stream (id, pos) VALUES (1, 0);

CREATE TABLE signing_keys (
    key_id     TEXT PRIMARY KEY,
    secret     BLOB NOT NULL,
    created_ts INTEGER NOT NULL,
    expired_ts INTEGER
);

-- Every Matrix user that was ever mentioned, ours or not.
CREATE TABLE users (
    user_nid INTEGER PRIMARY KEY,
    user_id  TEXT NOT NULL UNIQUE
);

-- Our own users.
CREATE TABLE accounts (
    user_nid       INTEGER PRIMARY KEY REFERENCES users,
    password_hash  TEXT,
    created_ts     INTEGER NOT NULL,
    is_admin       BOOLEAN NOT NULL,
    is_guest       BOOLEAN NOT NULL,
    deactivated_ts INTEGER,
    locked         BOOLEAN NOT NULL DEFAULT FALSE,
    suspended      BOOLEAN NOT NULL DEFAULT FALSE,
    erased         BOOLEAN NOT NULL DEFAULT FALSE
);

CREATE TABLE profile_fields (
    user_nid INTEGER NOT NULL REFERENCES users,
    field    TEXT NOT NULL,
    value    TEXT NOT NULL,
    PRIMARY KEY (user_nid, field)
);

CREATE TABLE devices (
    device_nid   INTEGER PRIMARY KEY,
    user_nid     INTEGER NOT NULL REFERENCES users,
    device_id    TEXT NOT NULL,
    display_name TEXT,
    created_ts   INTEGER NOT NULL,
    last_seen_ts INTEGER NOT NULL,
    last_seen_ip TEXT,
    UNIQUE (user_nid, device_id)
);

-- A device's current access token: the SHA-256 hash of it.
CREATE TABLE access_tokens (
    token_hash BLOB PRIMARY KEY,
    device_nid INTEGER NOT NULL REFERENCES devices ON DELETE CASCADE,
    created_ts INTEGER NOT NULL,
    expires_ts INTEGER
);
CREATE INDEX access_tokens_device ON access_tokens (device_nid);

-- A refresh token stays valid until the tokens that it was traded for are used.
CREATE TABLE refresh_tokens (
    token_hash        BLOB PRIMARY KEY,
    device_nid        INTEGER NOT NULL REFERENCES devices ON DELETE CASCADE,
    access_token_hash BLOB NOT NULL,
    next_token_hash   BLOB,
    created_ts        INTEGER NOT NULL
);
CREATE INDEX refresh_tokens_device ON refresh_tokens (device_nid);
CREATE INDEX refresh_tokens_access ON refresh_tokens (access_token_hash);
CREATE INDEX refresh_tokens_next ON refresh_tokens (next_token_hash);

CREATE TABLE login_tokens (
    token_hash BLOB PRIMARY KEY,
    user_nid   INTEGER NOT NULL REFERENCES users,
    expires_ts INTEGER NOT NULL
);
CREATE INDEX login_tokens_user ON login_tokens (user_nid);
CREATE INDEX login_tokens_expires ON login_tokens (expires_ts);

CREATE TABLE registration_tokens (
    token        TEXT PRIMARY KEY,
    uses_allowed INTEGER,
    completed    INTEGER NOT NULL DEFAULT 0,
    expires_ts   INTEGER
);

-- User-interactive authentication under way.
CREATE TABLE uia_sessions (
    session_id TEXT PRIMARY KEY,
    operation  TEXT NOT NULL,
    state      TEXT NOT NULL,
    expires_ts INTEGER NOT NULL
);
CREATE INDEX uia_sessions_expires ON uia_sessions (expires_ts);

CREATE TABLE filters (
    user_nid  INTEGER NOT NULL REFERENCES users,
    filter_id INTEGER NOT NULL,
    json      TEXT NOT NULL,
    PRIMARY KEY (user_nid, filter_id)
);

-- room_nid 0: global account data.
CREATE TABLE account_data (
    user_nid INTEGER NOT NULL REFERENCES users,
    room_nid INTEGER NOT NULL,
    type     TEXT NOT NULL,
    content  TEXT NOT NULL,
    pos      INTEGER NOT NULL,
    PRIMARY KEY (user_nid, room_nid, type)
);
CREATE INDEX account_data_user_pos ON account_data (user_nid, pos);
CREATE INDEX account_data_pos ON account_data (pos);

-- A room and its head. version: the number of the event appended last, compared and set by each write.
CREATE TABLE rooms (
    room_nid     INTEGER PRIMARY KEY,
    room_id      TEXT NOT NULL UNIQUE,
    room_version TEXT NOT NULL,
    version      INTEGER NOT NULL,
    last_pos     INTEGER NOT NULL,
    depth        INTEGER NOT NULL,
    extremities  TEXT NOT NULL,
    state_root   INTEGER NOT NULL,
    is_public    BOOLEAN NOT NULL DEFAULT FALSE
);
CREATE INDEX rooms_public ON rooms (room_nid) WHERE is_public;

CREATE TABLE state_keys (
    key_nid    INTEGER PRIMARY KEY,
    event_type TEXT NOT NULL,
    state_key  TEXT NOT NULL,
    UNIQUE (event_type, state_key)
);

-- Nodes of the state snapshots: immutable, shared between snapshots.
CREATE TABLE state_nodes (
    node_nid INTEGER PRIMARY KEY,
    data     BLOB NOT NULL
);

-- pos: the place in the stream; negative for history fetched later; NULL for an event that is not part of the timeline.
-- state_before: the state that the event was allowed by; room_state: the room's state once it was appended.
CREATE TABLE events (
    event_nid    INTEGER PRIMARY KEY,
    event_id     TEXT NOT NULL UNIQUE,
    room_nid     INTEGER NOT NULL,
    pos          INTEGER,
    depth        INTEGER NOT NULL,
    sender_nid   INTEGER NOT NULL,
    key_nid      INTEGER,
    state_before INTEGER NOT NULL,
    room_state   INTEGER NOT NULL,
    replaces     INTEGER,
    redacted_by  INTEGER,
    device_nid   INTEGER,
    txn          TEXT,
    flags        INTEGER NOT NULL,
    json         BLOB NOT NULL
);
CREATE UNIQUE INDEX events_pos ON events (pos);
CREATE INDEX events_room_pos ON events (room_nid, pos);
CREATE UNIQUE INDEX events_txn ON events (device_nid, txn) WHERE txn IS NOT NULL;

-- The current membership of every user in every room that we know of.
CREATE TABLE memberships (
    room_nid   INTEGER NOT NULL REFERENCES rooms,
    user_nid   INTEGER NOT NULL REFERENCES users,
    membership INTEGER NOT NULL,
    event_nid  INTEGER NOT NULL,
    pos        INTEGER NOT NULL,
    forgotten  BOOLEAN NOT NULL DEFAULT FALSE,
    PRIMARY KEY (room_nid, user_nid)
);
CREATE INDEX memberships_user ON memberships (user_nid);

-- thread: '' without a thread, 'main', or the root's event id.
CREATE TABLE receipts (
    room_nid  INTEGER NOT NULL REFERENCES rooms,
    user_nid  INTEGER NOT NULL REFERENCES users,
    type      TEXT NOT NULL,
    thread    TEXT NOT NULL,
    event_nid INTEGER NOT NULL,
    event_pos INTEGER NOT NULL,
    ts        INTEGER NOT NULL,
    pos       INTEGER NOT NULL,
    PRIMARY KEY (room_nid, user_nid, type, thread)
);
CREATE INDEX receipts_pos ON receipts (pos);
CREATE INDEX receipts_room_pos ON receipts (room_nid, pos);

-- Unread counts up to a position, so that none has to be counted twice.
CREATE TABLE unread_checkpoints (
    user_nid      INTEGER NOT NULL,
    room_nid      INTEGER NOT NULL,
    receipt_pos   INTEGER NOT NULL,
    counted_pos   INTEGER NOT NULL,
    counts        TEXT NOT NULL,
    PRIMARY KEY (user_nid, room_nid)
);

CREATE TABLE aliases (
    alias       TEXT PRIMARY KEY,
    room_nid    INTEGER NOT NULL REFERENCES rooms,
    creator_nid INTEGER NOT NULL REFERENCES users,
    created_ts  INTEGER NOT NULL
);
CREATE INDEX aliases_room ON aliases (room_nid);

CREATE TABLE media (
    media_id     TEXT PRIMARY KEY,
    uploader_nid INTEGER NOT NULL REFERENCES users,
    content_type TEXT,
    file_name    TEXT,
    size         INTEGER NOT NULL,
    sha256       BLOB NOT NULL,
    created_ts   INTEGER NOT NULL
);
CREATE INDEX media_sha256 ON media (sha256);
