//! What other servers call on this one: `/_matrix/federation` and `/_matrix/key`.
