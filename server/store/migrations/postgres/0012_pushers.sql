-- Where people's devices want to be told of what their push rules notify of. A pusher goes with its device.
-- pushkey_ts: when it was last set, in milliseconds. since_pos: what came up to this position is not for it.
-- pending_from: the position of the first event that it could not be told of; NULL when it has all up to the duty's
-- position. failures: tries in a row, the first of them at failing_since; the next one is at retry_at.
CREATE TABLE pushers (
    pusher_nid          BIGINT PRIMARY KEY,
    user_nid            BIGINT NOT NULL REFERENCES users,
    device_nid          BIGINT NOT NULL REFERENCES devices ON DELETE CASCADE,
    app_id              TEXT NOT NULL,
    pushkey             TEXT NOT NULL,
    kind                TEXT NOT NULL,
    app_display_name    TEXT NOT NULL,
    device_display_name TEXT NOT NULL,
    profile_tag         TEXT,
    lang                TEXT NOT NULL,
    data                TEXT NOT NULL,
    pushkey_ts          BIGINT NOT NULL,
    since_pos           BIGINT NOT NULL,
    pending_from        BIGINT,
    failing_since       BIGINT,
    failures            BIGINT NOT NULL DEFAULT 0,
    retry_at            BIGINT NOT NULL DEFAULT 0,
    UNIQUE (user_nid, app_id, pushkey)
);
CREATE INDEX pushers_key ON pushers (app_id, pushkey);
CREATE INDEX pushers_device ON pushers (device_nid);
CREATE INDEX pushers_troubled ON pushers (pusher_nid) WHERE pending_from IS NOT NULL;

-- What was there before there were pushers is for none of them.
INSERT INTO duty_positions (name, pos) SELECT 'pushers', pos FROM stream WHERE id = 1;
