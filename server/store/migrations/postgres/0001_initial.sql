-- Facts about this installation: its server name, its format.
CREATE TABLE instance (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
);

-- Blocks of internal numbers are taken from here by each process.
CREATE TABLE sequences (
    name TEXT PRIMARY KEY,
    next BIGINT NOT NULL
);

-- The one stream: the position that was given out last. The row's lock is what puts commits in order.
CREATE TABLE stream (
    id  BIGINT PRIMARY KEY CHECK (id = 1),
    pos BIGINT NOT NULL
);
INSERT INTO stream (id, pos) VALUES (1, 0);

CREATE TABLE signing_keys (
    key_id     TEXT PRIMARY KEY,
    secret     BYTEA NOT NULL,
    created_ts BIGINT NOT NULL,
    expired_ts BIGINT
);

-- Every Matrix user that was ever mentioned, ours or not.
CREATE TABLE users (
    user_nid BIGINT PRIMARY KEY,
    user_id  TEXT NOT NULL UNIQUE
);

-- Our own users.
CREATE TABLE accounts (
    user_nid       BIGINT PRIMARY KEY REFERENCES users,
    password_hash  TEXT,
    created_ts     BIGINT NOT NULL,
    is_admin       BOOLEAN NOT NULL,
    is_guest       BOOLEAN NOT NULL,
    deactivated_ts BIGINT,
    locked         BOOLEAN NOT NULL DEFAULT FALSE,
    suspended      BOOLEAN NOT NULL DEFAULT FALSE,
    erased         BOOLEAN NOT NULL DEFAULT FALSE
);

CREATE TABLE profile_fields (
    user_nid BIGINT NOT NULL REFERENCES users,
    field    TEXT NOT NULL,
    value    TEXT NOT NULL,
    PRIMARY KEY (user_nid, field)
);

CREATE TABLE devices (
    device_nid   BIGINT PRIMARY KEY,
    user_nid     BIGINT NOT NULL REFERENCES users,
    device_id    TEXT NOT NULL,
    display_name TEXT,
    created_ts   BIGINT NOT NULL,
    last_seen_ts BIGINT NOT NULL,
    last_seen_ip TEXT,
    UNIQUE (user_nid, device_id)
);

-- A device's current access token: the SHA-256 hash of it.
CREATE TABLE access_tokens (
    token_hash BYTEA PRIMARY KEY,
    device_nid BIGINT NOT NULL REFERENCES devices ON DELETE CASCADE,
    created_ts BIGINT NOT NULL,
    expires_ts BIGINT
);
CREATE INDEX access_tokens_device ON access_tokens (device_nid);

-- A refresh token stays valid until the tokens that it was traded for are used.
CREATE TABLE refresh_tokens (
    token_hash        BYTEA PRIMARY KEY,
    device_nid        BIGINT NOT NULL REFERENCES devices ON DELETE CASCADE,
    access_token_hash BYTEA NOT NULL,
    next_token_hash   BYTEA,
    created_ts        BIGINT NOT NULL
);
CREATE INDEX refresh_tokens_device ON refresh_tokens (device_nid);
CREATE INDEX refresh_tokens_access ON refresh_tokens (access_token_hash);
CREATE INDEX refresh_tokens_next ON refresh_tokens (next_token_hash);

CREATE TABLE login_tokens (
    token_hash BYTEA PRIMARY KEY,
    user_nid   BIGINT NOT NULL REFERENCES users,
    expires_ts BIGINT NOT NULL
);
CREATE INDEX login_tokens_user ON login_tokens (user_nid);
CREATE INDEX login_tokens_expires ON login_tokens (expires_ts);

CREATE TABLE registration_tokens (
    token        TEXT PRIMARY KEY,
    uses_allowed BIGINT,
    completed    BIGINT NOT NULL DEFAULT 0,
    expires_ts   BIGINT
);

-- User-interactive authentication under way.
CREATE TABLE uia_sessions (
    session_id TEXT PRIMARY KEY,
    operation  TEXT NOT NULL,
    state      TEXT NOT NULL,
    expires_ts BIGINT NOT NULL
);
CREATE INDEX uia_sessions_expires ON uia_sessions (expires_ts);

CREATE TABLE filters (
    user_nid  BIGINT NOT NULL REFERENCES users,
    filter_id BIGINT NOT NULL,
    json      TEXT NOT NULL,
    PRIMARY KEY (user_nid, filter_id)
);

-- room_nid 0: global account data.
CREATE TABLE account_data (
    user_nid BIGINT NOT NULL REFERENCES users,
    room_nid BIGINT NOT NULL,
    type     TEXT NOT NULL,
    content  TEXT NOT NULL,
    pos      BIGINT NOT NULL,
    PRIMARY KEY (user_nid, room_nid, type)
);
CREATE INDEX account_data_user_pos ON account_data (user_nid, pos);
CREATE INDEX account_data_pos ON account_data (pos);

-- A room and its head. version: the number of the event appended last, compared and set by each write.
CREATE TABLE rooms (
    room_nid     BIGINT PRIMARY KEY,
    room_id      TEXT NOT NULL UNIQUE,
    room_version TEXT NOT NULL,
    version      BIGINT NOT NULL,
    last_pos     BIGINT NOT NULL,
    depth        BIGINT NOT NULL,
    extremities  TEXT NOT NULL,
    state_root   BIGINT NOT NULL,
    is_public    BOOLEAN NOT NULL DEFAULT FALSE
);
CREATE INDEX rooms_public ON rooms (room_nid) WHERE is_public;

CREATE TABLE state_keys (
    key_nid    BIGINT PRIMARY KEY,
    event_type TEXT NOT NULL,
    state_key  TEXT NOT NULL,
    UNIQUE (event_type, state_key)
);

-- Nodes of the state snapshots: immutable, shared between snapshots.
CREATE TABLE state_nodes (
    node_nid BIGINT PRIMARY KEY,
    data     BYTEA NOT NULL
);

-- pos: the place in the stream; negative for history fetched later; NULL for an event that is not part of the timeline.
-- state_before: the state that the event was allowed by; room_state: the room's state once it was appended.
CREATE TABLE events (
    event_nid    BIGINT PRIMARY KEY,
    event_id     TEXT NOT NULL UNIQUE,
    room_nid     BIGINT NOT NULL,
    pos          BIGINT,
    depth        BIGINT NOT NULL,
    sender_nid   BIGINT NOT NULL,
    key_nid      BIGINT,
    state_before BIGINT NOT NULL,
    room_state   BIGINT NOT NULL,
    replaces     BIGINT,
    redacted_by  BIGINT,
    device_nid   BIGINT,
    txn          TEXT,
    flags        BIGINT NOT NULL,
    json         BYTEA NOT NULL
);
CREATE UNIQUE INDEX events_pos ON events (pos);
CREATE INDEX events_room_pos ON events (room_nid, pos);
CREATE UNIQUE INDEX events_txn ON events (device_nid, txn) WHERE txn IS NOT NULL;

-- The current membership of every user in every room that we know of.
CREATE TABLE memberships (
    room_nid   BIGINT NOT NULL REFERENCES rooms,
    user_nid   BIGINT NOT NULL REFERENCES users,
    membership BIGINT NOT NULL,
    event_nid  BIGINT NOT NULL,
    pos        BIGINT NOT NULL,
    forgotten  BOOLEAN NOT NULL DEFAULT FALSE,
    PRIMARY KEY (room_nid, user_nid)
);
CREATE INDEX memberships_user ON memberships (user_nid);

-- thread: '' without a thread, 'main', or the root's event id.
CREATE TABLE receipts (
    room_nid  BIGINT NOT NULL REFERENCES rooms,
    user_nid  BIGINT NOT NULL REFERENCES users,
    type      TEXT NOT NULL,
    thread    TEXT NOT NULL,
    event_nid BIGINT NOT NULL,
    event_pos BIGINT NOT NULL,
    ts        BIGINT NOT NULL,
    pos       BIGINT NOT NULL,
    PRIMARY KEY (room_nid, user_nid, type, thread)
);
CREATE INDEX receipts_pos ON receipts (pos);
CREATE INDEX receipts_room_pos ON receipts (room_nid, pos);

-- Unread counts up to a position, so that none has to be counted twice.
CREATE TABLE unread_checkpoints (
    user_nid      BIGINT NOT NULL,
    room_nid      BIGINT NOT NULL,
    receipt_pos   BIGINT NOT NULL,
    counted_pos   BIGINT NOT NULL,
    counts        TEXT NOT NULL,
    PRIMARY KEY (user_nid, room_nid)
);

CREATE TABLE aliases (
    alias       TEXT PRIMARY KEY,
    room_nid    BIGINT NOT NULL REFERENCES rooms,
    creator_nid BIGINT NOT NULL REFERENCES users,
    created_ts  BIGINT NOT NULL
);
CREATE INDEX aliases_room ON aliases (room_nid);

CREATE TABLE media (
    media_id     TEXT PRIMARY KEY,
    uploader_nid BIGINT NOT NULL REFERENCES users,
    content_type TEXT,
    file_name    TEXT,
    size         BIGINT NOT NULL,
    sha256       BYTEA NOT NULL,
    created_ts   BIGINT NOT NULL
);
CREATE INDEX media_sha256 ON media (sha256);
