//! The client-server API: /_matrix/client and /_matrix/media.
