//! What end-to-end encryption needs of a server: keys, device lists, messages to devices, and backups.
