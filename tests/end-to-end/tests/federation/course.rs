//! Everything that two servers do together, in rooms of every version, with outages in between.

use futures_util::future::join_all;
use myelin_end_to_end::Peer;

use crate::together::Pair;

/// Both ways of state resolution, of naming events and rooms, of redacting, of joining.
const VERSIONS: [u8; 5] = [1, 6, 10, 11, 12];

/// Everything that rooms are shared by; each side is started again in between.
pub(crate) async fn everything(mut maker: Peer, mut joiner: Peer) {
    at_once(&maker, &joiner, Pair::talk).await;

    joiner.stop().await;
    joiner.start_again().await;
    at_once(&maker, &joiner, Pair::invite).await;
    at_once(&maker, &joiner, Pair::refuse).await;

    maker.stop().await;
    maker.start_again().await;
    at_once(&maker, &joiner, Pair::knock).await;
    at_once(&maker, &joiner, Pair::restrict).await;

    Pair { maker: &maker, joiner: &joiner, version: 12 }.look_up().await;
    Pair { maker: &maker, joiner: &joiner, version: 12 }.encrypt().await;
    Pair { maker: &maker, joiner: &joiner, version: 10 }.read_back(500).await;
    disagree(&maker, &joiner).await;
}

/// Does the same in rooms of every version, at once.
async fn at_once<'a, F: Future<Output = ()>>(maker: &'a Peer, joiner: &'a Peer, what: impl Fn(Pair<'a>) -> F) {
    join_all(VERSIONS.map(|version| what(Pair { maker, joiner, version }))).await;
}

/// In a room of every version, both sides change the same while neither reaches the other; then they agree.
async fn disagree(maker: &Peer, joiner: &Peer) {
    let pairs = VERSIONS.map(|version| Pair { maker, joiner, version });
    let disputes = join_all(pairs.map(|pair| pair.prepare_dispute())).await;
    maker.cut();
    joiner.cut();
    let said = join_all(disputes.iter().map(|dispute| dispute.act())).await;
    for (dispute, said) in disputes.iter().zip(said) {
        dispute.is_undecided(&said).await;
    }
    maker.heal();
    joiner.heal();
    join_all(disputes.iter().map(|dispute| dispute.settle())).await;
}
