//! Myelin with Synapse, in rooms that were made on either.

use myelin_end_to_end::{Authority, Engine, Peer, on_both_engines, run};

use crate::course::{FEW_VERSIONS, VERSIONS, everything};

/// Synapse comes to rooms of Myelin.
#[test]
fn rooms_made_on_myelin() {
    run(async {
        let authority = Authority::new();
        let (myelin, synapse) = tokio::join!(Peer::myelin(Engine::Sqlite, &authority), Peer::synapse(&authority));
        everything(myelin, synapse, VERSIONS).await;
    });
}

on_both_engines!(rooms_made_on_synapse);

/// Myelin comes to rooms of Synapse.
async fn rooms_made_on_synapse(engine: Engine) {
    let authority = Authority::new();
    let (myelin, synapse) = tokio::join!(Peer::myelin(engine, &authority), Peer::synapse(&authority));
    let versions = match engine {
        Engine::Postgres => VERSIONS,
        Engine::Sqlite => FEW_VERSIONS,
    };
    everything(synapse, myelin, versions).await;
}
