//! What end-to-end encryption needs of other servers: their devices asked for, and EDUs about ours sent.

use std::sync::Arc;

use futures_util::{FutureExt as _, future::BoxFuture};
use myelin_encryption::{Encryption, Outbox, RemoteDevices};
use ruma::{OwnedServerName, ServerName};

use crate::{
    Client,
    sender::{EduSource, QueuedEdu, Sender},
};

impl RemoteDevices for Client {
    myelin_encryption::remote_devices_by_call!();
}

impl Outbox for Sender {
    fn notify(&self, server: &ServerName) {
        Self::notify(self, server);
    }
}

/// Device lists, signing keys and messages to devices, as the queues take them.
pub struct DeviceEdus(pub Arc<Encryption>);

impl EduSource for DeviceEdus {
    fn pending<'a>(&'a self, server: &'a ServerName, limit: usize) -> BoxFuture<'a, Vec<QueuedEdu>> {
        async move {
            match self.0.pending_edus(server, limit).await {
                Ok(edus) => edus.into_iter().map(|(id, json)| QueuedEdu { id, json }).collect(),
                Err(error) => {
                    tracing::warn!(server.name = %server, %error, "what devices have for {server} waits: {error}");
                    Vec::new()
                }
            }
        }
        .boxed()
    }

    fn sent<'a>(&'a self, server: &'a ServerName, up_to: i64) -> BoxFuture<'a, ()> {
        async move {
            if let Err(error) = self.0.edus_sent(server, up_to).await {
                // It is sent again: the receiver knows it by its id.
                tracing::warn!(server.name = %server, %error, "what {server} has taken is not forgotten yet: {error}");
            }
        }
        .boxed()
    }

    fn servers(&self) -> BoxFuture<'_, Vec<OwnedServerName>> {
        async move {
            match self.0.edu_servers().await {
                Ok(servers) => servers,
                Err(error) => {
                    tracing::warn!(%error, "the servers that devices have something for are asked for again soon: {error}");
                    Vec::new()
                }
            }
        }
        .boxed()
    }
}

impl std::fmt::Debug for DeviceEdus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeviceEdus").finish_non_exhaustive()
    }
}
