//! What can go wrong with a room.

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, and whose fault it is.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database did not do what was asked.
    #[error("use the store")]
    Store(#[from] myelin_store::Error),
    /// The rules of the room do not allow it.
    #[error("{0}")]
    Forbidden(String),
    /// The user wants no invitations.
    #[error("the user does not take invitations")]
    InviteBlocked,
    /// The room is not open to guests.
    #[error("guests may not join this room")]
    GuestsRefused,
    /// There is no such room, event or piece of state, or the caller may not know of it.
    #[error("{0}")]
    NotFound(&'static str),
    /// The event would be larger than 65,536 bytes, or one of its fields larger than 255.
    #[error("the event is too large")]
    TooLarge,
    /// The event cannot be written as canonical JSON, or has a field of a wrong type.
    #[error("{0}")]
    BadJson(String),
    /// A value is not one that the specification allows.
    #[error("{0}")]
    InvalidParam(String),
    /// No such room version.
    #[error("room version {0} is not supported")]
    UnsupportedRoomVersion(String),
    /// The room's version is not one that the other server can deal with.
    #[error("the room's version is {0}, which is not one of those that were asked for")]
    IncompatibleRoomVersion(ruma::RoomVersionId),
    /// We cannot know whether the user is in a room whose members may join.
    #[error("this server is in none of the rooms whose members may join, and cannot say whether the user is")]
    UnableToAuthoriseJoin,
    /// The user may join, and nobody here may let them in.
    #[error("no member of this room on this server may invite others")]
    UnableToGrantJoin,
    /// The alias points to a room already.
    #[error("the alias is taken")]
    AliasTaken,
    /// A room names an alias that does not point to it.
    #[error("{0}")]
    BadAlias(String),
    /// The room would not be valid with these settings.
    #[error("{0}")]
    InvalidRoomState(String),
    /// The user has said the same of the same event already.
    #[error("you have sent this annotation already")]
    DuplicateAnnotation,
    /// The event relates to another one itself.
    #[error("a thread cannot start from an event that relates to another one")]
    NoThreadThere,
    /// A stored event cannot be read.
    #[error("read a stored event")]
    Corrupt(#[source] serde_json::Error),
    /// Our key cannot sign.
    #[error("sign an event")]
    Sign(#[source] ruma::signatures::JsonError),
    /// Events before this one are missing, and so is the state there.
    #[error("events are missing before this one")]
    Gap,
    /// An event of another server is not as it must be.
    #[error(transparent)]
    Refused(#[from] crate::receive::Refusal),
    /// Another server gave no answer that can be used.
    #[error(transparent)]
    Remote(Box<crate::remote::RemoteError>),
    /// The room's policy server does not recommend the event, or cannot be asked.
    #[error("the room's policy server does not recommend the event: {0}")]
    NotRecommended(#[source] Box<crate::remote::RemoteError>),
    /// This server does not talk to others.
    #[error("federation is not enabled on this server")]
    NotFederating,
    /// Work on another thread came to no end.
    #[error("work off the main threads failed: {0}")]
    Task(String),
    /// Other writers were faster, again and again.
    #[error("the room is too busy")]
    Busy,
}

impl Error {
    pub(crate) fn forbidden(reason: impl Into<String>) -> Self {
        Self::Forbidden(reason.into())
    }

    /// What anyone is told who is not in a room, and likewise when there is no such room.
    pub(crate) fn outsider() -> Self {
        Self::forbidden("you are not in this room")
    }
}
