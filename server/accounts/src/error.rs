//! What can go wrong with accounts.

/// A result of the accounts.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, and whose fault it is.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database did not do what was asked.
    #[error("use the store")]
    Store(#[from] myelin_store::Error),
    /// A password could not be hashed, or a stored hash not be read.
    #[error("hash a password: {0}")]
    Hash(argon2::password_hash::Error),
    /// The parameters of password hashing are out of bounds.
    #[error("set up password hashing: {0}")]
    HashParameters(argon2::Error),
    /// The thread that hashed a password is gone.
    #[error("hash a password in the background")]
    HashThread(#[source] tokio::task::JoinError),
    /// Too many passwords wait to be checked.
    #[error("too many passwords are being checked")]
    Busy,
    /// The name cannot be a user's.
    #[error("the user name may have only a-z, 0-9, '.', '_', '=', '-', '/', '+' and must fit into 255 bytes")]
    InvalidUsername,
    /// The name is taken.
    #[error("the user name is taken")]
    UserInUse,
    /// People may not register by themselves.
    #[error("registration is disabled")]
    RegistrationDisabled,
    /// There are no guests here.
    #[error("guest access is disabled")]
    GuestAccessDisabled,
    /// The registration token is unknown, used up or expired.
    #[error("the registration token is not valid")]
    InvalidRegistrationToken,
    /// No such user, no password, or another one: who asks does not learn which.
    #[error("the user name or the password is wrong")]
    WrongPassword,
    /// The user is named by an e-mail address, a phone number or the like, and no account has any.
    #[error("unknown third-party identifier")]
    UnknownThirdPartyIdentifier,
    /// The password is empty.
    #[error("the password is empty")]
    EmptyPassword,
    /// The password is longer than anyone's.
    #[error("the password is too long")]
    PasswordTooLong,
    /// The account has ended.
    #[error("the account has been deactivated")]
    Deactivated,
    /// The account may do nothing for now.
    #[error("the account has been locked")]
    Locked,
    /// The login token is unknown, used or expired.
    #[error("the login token is not valid")]
    InvalidLoginToken,
    /// The refresh token is unknown or used.
    #[error("the refresh token is not valid")]
    InvalidRefreshToken,
    /// The user has no such device.
    #[error("there is no such device")]
    UnknownDevice,
    /// The device's identifier is empty, too long or has control characters.
    #[error("the device id must have 1 to 255 bytes and no control characters")]
    InvalidDeviceId,
    /// The device's name is too long.
    #[error("the device name must have at most {} bytes", crate::DEVICE_NAME_BYTES_MAX)]
    DeviceNameTooLong,
    /// The name of a profile field does not follow the grammar.
    #[error("the name of a profile field starts with a-z and has only a-z, 0-9, '-', '_' and '.'")]
    InvalidFieldName,
    /// The name of a profile field is too long.
    #[error("the name of a profile field has at most 255 bytes")]
    FieldNameTooLong,
    /// The value does not fit the profile field.
    #[error("{0}")]
    InvalidFieldValue(&'static str),
    /// The profile would become too large.
    #[error("the profile would be over {} bytes", crate::PROFILE_BYTES_MAX)]
    ProfileTooLarge,
    /// The filter is too large.
    #[error("the filter is over {} bytes", crate::FILTER_BYTES_MAX)]
    FilterTooLarge,
    /// The request is not the one that the authentication was begun for.
    #[error("the request differs from the one that this authentication was begun for")]
    OperationChanged,
    /// There is no shared secret.
    #[error("registration by shared secret is disabled")]
    SharedSecretDisabled,
    /// The nonce is unknown, used or expired.
    #[error("the nonce is not valid")]
    InvalidNonce,
    /// The message authentication code is wrong.
    #[error("the message authentication code is wrong")]
    WrongMac,
}
