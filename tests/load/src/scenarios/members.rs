//! The list of members of a large room.

use std::collections::HashSet;

use anyhow::Context as _;
use serde::Deserialize;

use crate::{
    report::{Faults, Outcome},
    run::Run,
    scenarios::Timed,
};

#[derive(Deserialize)]
struct Members {
    chunk: Vec<Member>,
}

#[derive(Deserialize)]
struct Member {
    state_key: String,
    content: Content,
}

#[derive(Deserialize)]
struct Content {
    membership: String,
}

pub(super) async fn run(run: &mut Run) -> anyhow::Result<Outcome> {
    let (people, room) = run.large_room().await?;
    let joined: HashSet<String> =
        people[0].joined_members(&room).await.context("joined members")?.into_iter().collect();
    let mut timed = Timed::default();
    let mut faults = Faults::default();
    let measurement = run.watch.begin().await?;
    // The askers take turns, as an answer kept for one of them is of no use to people.
    let askers = people.iter().cycle().take(run.options.member_lists);
    let mut bodies = Vec::new();
    for asker in askers {
        bodies.extend(timed.time(asker.members(&room)).await);
    }
    let usage = measurement.end().await?;

    let mut bytes = 0;
    for body in &bodies {
        bytes += body.len();
        match serde_json::from_slice::<Members>(body) {
            Ok(members) => check(members, &joined, &mut faults),
            Err(error) => faults.fail(format!("/members: {error}")),
        }
    }
    Ok(Outcome::new("lists", timed.delays.len(), usage)
        .delays("a list of members", &timed.delays)
        .faults(timed.faults)
        .faults(faults)
        .figure("members", joined.len() as f64)
        .figure("bytes a list", bytes as f64 / bodies.len().max(1) as f64))
}

/// Who is joined must be in the list, once, and no one else.
fn check(members: Members, joined: &HashSet<String>, faults: &mut Faults) {
    let mut listed = HashSet::new();
    for Member { state_key, content } in members.chunk {
        if content.membership != "join" {
            continue;
        }
        if !joined.contains(&state_key) {
            faults.fail("/members lists someone who is not joined");
        }
        if !listed.insert(state_key) {
            faults.duplicated += 1;
        }
    }
    faults.missing += joined.difference(&listed).count();
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A list with one name twice, one missing and one stranger has all three faults.
    #[test]
    fn wrong_lists_are_found() {
        let joined = HashSet::from(["@a:x".to_owned(), "@b:x".to_owned()]);
        let member =
            |user: &str, membership: &str| json!({ "state_key": user, "content": { "membership": membership } });
        let check = |chunk: serde_json::Value| {
            let mut faults = Faults::default();
            super::check(serde_json::from_value(json!({ "chunk": chunk })).unwrap(), &joined, &mut faults);
            (faults.failed, faults.missing, faults.duplicated)
        };
        assert_eq!(check(json!([member("@a:x", "join"), member("@b:x", "join"), member("@c:x", "leave")])), (0, 0, 0));
        assert_eq!(check(json!([member("@a:x", "join"), member("@a:x", "join"), member("@c:x", "join")])), (1, 1, 1));
    }
}
