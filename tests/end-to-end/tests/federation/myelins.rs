//! Myelins among themselves.

use myelin_end_to_end::{Authority, Engine, Peer, on_both_engines};

use crate::together::Pair;

on_both_engines!(two_myelins_share_rooms);

/// Everything that rooms are shared by, between two Myelins.
async fn two_myelins_share_rooms(engine: Engine) {
    let authority = Authority::new();
    let (maker, joiner) = (Peer::myelin(engine, &authority).await, Peer::myelin(engine, &authority).await);
    for version in [1, 6, 10, 11, 12] {
        let pair = Pair { maker: &maker, joiner: &joiner, version };
        pair.talk().await;
        pair.invite().await;
        pair.refuse().await;
        pair.knock().await;
        pair.restrict().await;
        pair.look_up().await;
        pair.read_back(120).await;
    }
}
