-- Tokens by which users prove to other services who they are, by their hashes.
CREATE TABLE openid_tokens (
    token_hash BYTEA PRIMARY KEY,
    user_nid   BIGINT NOT NULL REFERENCES users,
    expires_ts BIGINT NOT NULL
);
CREATE INDEX openid_tokens_user ON openid_tokens (user_nid, expires_ts);
CREATE INDEX openid_tokens_expires ON openid_tokens (expires_ts);
