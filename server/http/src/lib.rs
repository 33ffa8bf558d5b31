//! The shape of every Matrix HTTP endpoint: request and response types, authentication, errors, limits.
