//! The event graph: create, join, send; one writer a room.
