-- Tokens by which users prove to other services who they are, by their hashes.
CREATE TABLE openid_tokens (
    token_hash BLOB PRIMARY KEY,
    user_nid   INTEGER NOT NULL REFERENCES users,
    expires_ts INTEGER NOT NULL
);
CREATE INDEX openid_tokens_user ON openid_tokens (user_nid, expires_ts);
CREATE INDEX openid_tokens_expires ON openid_tokens (expires_ts);
