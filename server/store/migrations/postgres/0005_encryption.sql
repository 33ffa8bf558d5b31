-- The identity keys of our own devices, as these uploaded them: JSON.
CREATE TABLE device_keys (
    device_nid BIGINT PRIMARY KEY REFERENCES devices ON DELETE CASCADE,
    json       TEXT NOT NULL
);

-- Keys that are given out once. Those that were stay for a while, so that an upload made again does not revive them.
-- uploaded: the number of the upload, by device and algorithm.
CREATE TABLE one_time_keys (
    device_nid BIGINT NOT NULL REFERENCES devices ON DELETE CASCADE,
    algorithm  TEXT NOT NULL,
    key_id     TEXT NOT NULL,
    uploaded   BIGINT NOT NULL,
    claimed    BOOLEAN NOT NULL DEFAULT FALSE,
    json       TEXT NOT NULL,
    PRIMARY KEY (device_nid, algorithm, key_id)
);
CREATE INDEX one_time_keys_next ON one_time_keys (device_nid, algorithm, uploaded, key_id) WHERE NOT claimed;
CREATE INDEX one_time_keys_claimed ON one_time_keys (device_nid, algorithm, uploaded) WHERE claimed;

CREATE TABLE fallback_keys (
    device_nid BIGINT NOT NULL REFERENCES devices ON DELETE CASCADE,
    algorithm  TEXT NOT NULL,
    key_id     TEXT NOT NULL,
    used       BOOLEAN NOT NULL DEFAULT FALSE,
    json       TEXT NOT NULL,
    PRIMARY KEY (device_nid, algorithm)
);

-- Of our users, and of those of other servers whose device lists we follow. usage: master, self_signing, user_signing.
CREATE TABLE cross_signing_keys (
    user_nid BIGINT NOT NULL REFERENCES users,
    usage    TEXT NOT NULL,
    json     TEXT NOT NULL,
    PRIMARY KEY (user_nid, usage)
);

-- Signatures that our users made. target: a device's identifier, or a cross-signing key in base64.
-- pos: the place in the stream.
CREATE TABLE key_signatures (
    target_nid BIGINT NOT NULL REFERENCES users,
    target     TEXT NOT NULL,
    signer_nid BIGINT NOT NULL REFERENCES users,
    key_id     TEXT NOT NULL,
    signature  TEXT NOT NULL,
    pos        BIGINT NOT NULL,
    PRIMARY KEY (target_nid, target, signer_nid, key_id)
);
CREATE INDEX key_signatures_signer ON key_signatures (signer_nid, pos);
CREATE INDEX key_signatures_pos ON key_signatures (pos);

-- Where in the stream a user's device list or cross-signing keys changed last. device_pos: a device of ours.
CREATE TABLE device_lists (
    user_nid   BIGINT PRIMARY KEY REFERENCES users,
    pos        BIGINT NOT NULL,
    device_pos BIGINT
);
CREATE INDEX device_lists_pos ON device_lists (pos);

-- The device lists of other servers' users that we follow. tries: those that failed since it is stale.
CREATE TABLE remote_device_lists (
    user_nid  BIGINT PRIMARY KEY REFERENCES users,
    stream_id BIGINT NOT NULL,
    stale     BOOLEAN NOT NULL,
    tries     BIGINT NOT NULL DEFAULT 0,
    next_ts   BIGINT NOT NULL DEFAULT 0
);
CREATE INDEX remote_device_lists_stale ON remote_device_lists (next_ts) WHERE stale;

CREATE TABLE remote_devices (
    user_nid     BIGINT NOT NULL REFERENCES remote_device_lists ON DELETE CASCADE,
    device_id    TEXT NOT NULL,
    display_name TEXT,
    keys         TEXT,
    PRIMARY KEY (user_nid, device_id)
);

-- Messages that a device has not acknowledged. n: how many were there before it and it, since there was none.
CREATE TABLE to_device (
    device_nid BIGINT NOT NULL REFERENCES devices ON DELETE CASCADE,
    pos        BIGINT NOT NULL,
    n          BIGINT NOT NULL,
    user_nid   BIGINT NOT NULL,
    sender     TEXT NOT NULL,
    type       TEXT NOT NULL,
    content    TEXT NOT NULL,
    PRIMARY KEY (device_nid, pos)
);
CREATE INDEX to_device_pos ON to_device (pos);

-- What was sent already. origin: a device of ours by number, or another server.
CREATE TABLE to_device_transactions (
    origin     TEXT NOT NULL,
    txn        TEXT NOT NULL,
    created_ts BIGINT NOT NULL,
    PRIMARY KEY (origin, txn)
);
CREATE INDEX to_device_transactions_created ON to_device_transactions (created_ts);

-- EDUs that another server has not acknowledged: messages to devices, as JSON.
CREATE TABLE to_device_edus (
    destination TEXT NOT NULL,
    pos         BIGINT NOT NULL,
    edu         TEXT NOT NULL,
    PRIMARY KEY (destination, pos)
);
CREATE INDEX to_device_edus_pos ON to_device_edus (pos);

-- Changes of our users' devices that another server has not acknowledged. device_id: empty for cross-signing keys.
-- prev_pos: the change of the user's devices before.
CREATE TABLE device_list_edus (
    destination TEXT NOT NULL,
    user_nid    BIGINT NOT NULL REFERENCES users,
    device_id   TEXT NOT NULL,
    pos         BIGINT NOT NULL,
    prev_pos    BIGINT,
    PRIMARY KEY (destination, user_nid, device_id)
);
CREATE INDEX device_list_edus_destination ON device_list_edus (destination, pos);
CREATE INDEX device_list_edus_pos ON device_list_edus (pos);

CREATE TABLE backups (
    user_nid  BIGINT NOT NULL REFERENCES users,
    version   BIGINT NOT NULL,
    algorithm TEXT NOT NULL,
    auth_data TEXT NOT NULL,
    etag      BIGINT NOT NULL DEFAULT 0,
    count     BIGINT NOT NULL DEFAULT 0,
    deleted   BOOLEAN NOT NULL DEFAULT FALSE,
    PRIMARY KEY (user_nid, version)
);

CREATE TABLE backup_sessions (
    user_nid            BIGINT NOT NULL,
    version             BIGINT NOT NULL,
    room_id             TEXT NOT NULL,
    session_id          TEXT NOT NULL,
    first_message_index BIGINT NOT NULL,
    forwarded_count     BIGINT NOT NULL,
    is_verified         BOOLEAN NOT NULL,
    session_data        TEXT NOT NULL,
    PRIMARY KEY (user_nid, version, room_id, session_id),
    FOREIGN KEY (user_nid, version) REFERENCES backups
);

-- Devices that wait, with their secrets encrypted, to be taken over by a new login.
CREATE TABLE dehydrated_devices (
    user_nid   BIGINT PRIMARY KEY REFERENCES users,
    device_nid BIGINT NOT NULL UNIQUE REFERENCES devices ON DELETE CASCADE,
    data       TEXT NOT NULL
);

-- Who came and went in a room since a position.
CREATE INDEX memberships_room_pos ON memberships (room_nid, pos);
