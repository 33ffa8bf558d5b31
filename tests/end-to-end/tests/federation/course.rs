//! Everything that two servers do together, in rooms of every version, with outages in between.

use futures_util::future::join_all;
use myelin_end_to_end::Peer;

use crate::together::Pair;

/// All ways of state resolution, of naming events and rooms, of redacting, of joining.
pub(crate) const VERSIONS: &[u8] = &[1, 6, 10, 11, 12];

/// Those that differ most, where the others have been tried already.
pub(crate) const FEW_VERSIONS: &[u8] = &[6, 12];

/// Everything that rooms are shared by, in rooms of these versions; each side is started again in between.
pub(crate) async fn everything(mut maker: Peer, mut joiner: Peer, versions: &[u8]) {
    at_once(&maker, &joiner, versions, Pair::talk).await;

    joiner.stop().await;
    joiner.start_again().await;
    at_once(&maker, &joiner, versions, Pair::invite).await;
    at_once(&maker, &joiner, versions, Pair::refuse).await;

    maker.stop().await;
    maker.start_again().await;
    at_once(&maker, &joiner, versions, Pair::knock).await;
    at_once(&maker, &joiner, versions, Pair::restrict).await;

    Pair { maker: &maker, joiner: &joiner, version: 12 }.look_up().await;
    Pair { maker: &maker, joiner: &joiner, version: 12 }.encrypt().await;
    Pair { maker: &maker, joiner: &joiner, version: 10 }.read_back(500).await;
    disagree(&maker, &joiner, versions).await;
}

/// Does the same in rooms of every version, at once.
async fn at_once<'a, F: Future<Output = ()>>(
    maker: &'a Peer,
    joiner: &'a Peer,
    versions: &[u8],
    what: impl Fn(Pair<'a>) -> F,
) {
    join_all(versions.iter().map(|&version| what(Pair { maker, joiner, version }))).await;
}

/// In a room of every version, both sides change the same while neither reaches the other; then they agree.
async fn disagree(maker: &Peer, joiner: &Peer, versions: &[u8]) {
    let pairs = versions.iter().map(|&version| Pair { maker, joiner, version });
    let disputes = join_all(pairs.map(Pair::prepare_dispute)).await;
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
