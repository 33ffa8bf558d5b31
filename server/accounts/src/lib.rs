//! Users, devices, sessions, user-interactive authentication and profiles.
