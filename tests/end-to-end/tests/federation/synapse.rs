//! Myelin with Synapse, in rooms that were made on either.

use myelin_end_to_end::{Authority, Engine, Peer, run};

use crate::course::everything;

/// Synapse comes to rooms of Myelin.
#[test]
fn rooms_made_on_myelin() {
    run(async {
        let authority = Authority::new();
        let (myelin, synapse) = tokio::join!(Peer::myelin(Engine::Sqlite, &authority), Peer::synapse(&authority));
        everything(myelin, synapse).await;
    });
}

/// Myelin comes to rooms of Synapse.
#[test]
fn rooms_made_on_synapse() {
    run(async {
        let authority = Authority::new();
        let (myelin, synapse) = tokio::join!(Peer::myelin(Engine::Postgres, &authority), Peer::synapse(&authority));
        everything(synapse, myelin).await;
    });
}
