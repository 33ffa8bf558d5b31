//! Which names users may have.
//!
//! New users get names of the grammar of [user identifiers]; users with names of the historical grammar, from an
//! imported database, may log in.
//!
//! [user identifiers]: https://spec.matrix.org/v1.19/appendices/#user-identifiers

use ruma::{OwnedUserId, ServerName, UserId};

use crate::{Error, Result};

/// "The length of a user ID, including the @ sigil and the domain, MUST NOT exceed 255 bytes."
const USER_ID_BYTES_MAX: usize = 255;

/// The user that is to be made for this name. Upper-case ASCII letters become lower-case, as the specification
/// suggests for new users; any other character outside of the grammar is refused.
pub(crate) fn new_user(name: &str, server_name: &ServerName) -> Result<OwnedUserId> {
    let localpart = name.to_ascii_lowercase();
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._=-/+".contains(&byte);
    if localpart.is_empty() || !localpart.bytes().all(fits) {
        return Err(Error::InvalidUsername);
    }
    let user_id = format!("@{localpart}:{server_name}");
    if user_id.len() > USER_ID_BYTES_MAX {
        return Err(Error::InvalidUsername);
    }
    UserId::parse(user_id).map_err(|_| Error::InvalidUsername)
}

/// The users of ours that someone may mean who logs in with "user ID or user localpart": as it is written, then in
/// lower case.
pub(crate) fn meant(name: &str, server_name: &ServerName) -> Vec<OwnedUserId> {
    let full = if name.starts_with('@') { name.to_owned() } else { format!("@{name}:{server_name}") };
    if !may_exist(&full) {
        return Vec::new();
    }
    let Ok(exact) = UserId::parse(full) else { return Vec::new() };
    if exact.server_name() != server_name {
        return Vec::new();
    }
    let lower = format!("@{}:{server_name}", exact.localpart().to_ascii_lowercase());
    let lower = UserId::parse(lower).ok().filter(|lower| *lower != exact);
    [Some(exact), lower].into_iter().flatten().collect()
}

/// Whether a user of this identifier may be in the database. PostgreSQL has no NUL in its texts.
pub(crate) fn may_exist(user_id: &str) -> bool {
    user_id.len() <= USER_ID_BYTES_MAX && !user_id.contains('\0')
}

#[cfg(test)]
mod tests {
    use ruma::server_name;

    use super::{meant, new_user};

    /// New names keep to the grammar, capitals become small, and a name that is too long is none.
    #[test]
    fn new_names_are_strict() {
        let server = server_name!("example.org");
        assert_eq!(new_user("a.b_c=d-e/f+9", server).unwrap(), "@a.b_c=d-e/f+9:example.org");
        assert_eq!(new_user("Alice", server).unwrap(), "@alice:example.org");
        for bad in ["", "a b", "é", "a:b", "@alice", "a\0", "a!", "@alice:example.org"] {
            assert!(new_user(bad, server).is_err(), "{bad:?}");
        }
        assert!(new_user(&"a".repeat(242), server).is_ok());
        assert!(new_user(&"a".repeat(243), server).is_err());
    }

    /// Whoever logs in may write the name in full or in part, and in capitals; names of other servers are not ours.
    #[test]
    fn login_names_may_be_whole_or_part() {
        let server = server_name!("example.org");
        assert_eq!(meant("alice", server), ["@alice:example.org"]);
        assert_eq!(meant("@alice:example.org", server), ["@alice:example.org"]);
        assert_eq!(meant("Alice", server), ["@Alice:example.org", "@alice:example.org"]);
        assert_eq!(meant("a!b", server), ["@a!b:example.org"], "historical");
        assert!(meant("@alice:elsewhere.org", server).is_empty());
        assert!(meant("@alice", server).is_empty());
        assert!(meant("a\0b", server).is_empty());
        assert!(meant(&"a".repeat(300), server).is_empty());
    }
}
