//! Myelins among themselves.

use myelin_end_to_end::{Authority, Engine, Peer, on_both_engines};

use crate::{
    course::{VERSIONS, everything},
    guest::agree,
    together::Pair,
};

on_both_engines!(two_myelins_share_rooms, what_was_said_arrives);

/// Everything that rooms are shared by, between two Myelins.
async fn two_myelins_share_rooms(engine: Engine) {
    let authority = Authority::new();
    let (maker, joiner) = (Peer::myelin(engine, &authority).await, Peer::myelin(engine, &authority).await);
    everything(maker, joiner, VERSIONS).await;
}

/// What was said while the other server was down arrives, even if the server that has to send it is killed meanwhile.
async fn what_was_said_arrives(engine: Engine) {
    let authority = Authority::new();
    let mut maker = Peer::myelin(engine, &authority).await;
    let mut joiner = Peer::myelin(engine, &authority).await;
    let pair = Pair { maker: &maker, joiner: &joiner, version: 12 };
    let (alice, bob) = pair.people().await;
    let room = pair.shared_room(&alice, &bob).await;

    joiner.kill();
    let mut said = Vec::new();
    for number in 0..60 {
        said.push(alice.says(&room, &format!("is anybody there? {number}")).await);
    }
    maker.kill();
    joiner.start_again().await;
    maker.start_again().await;
    for event in &said {
        bob.sees(&room, event).await;
    }
    let answer = bob.says(&room, "yes").await;
    alice.sees(&room, &answer).await;
    agree(&alice, &bob, &room).await;
    assert_eq!(alice.history(&room).await, bob.history(&room).await);
}
