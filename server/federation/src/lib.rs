//! What this server calls on other servers: finding them, signed requests, their keys, and the outgoing queues.
