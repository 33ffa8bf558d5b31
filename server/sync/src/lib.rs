//! What a client is told: the answers of /sync, and the wake-ups of those who wait.
