//! The user directory: what its rows follow from, and what users find in it.

use std::collections::HashMap;

use myelin_store::{DirectoryPlace, DirectoryProfile, DirectorySearch, DirectoryUser, Lease, Member, Membership};
use serde::Deserialize;

use super::{index::Indexer, words::words};
use crate::{Result, Rooms, visibility::HistoryVisibility};

/// Places that are written at once.
const CHUNK: usize = 200;
/// Words of one user that are found.
const WORDS_MAX: usize = 12;
/// Beginnings of words that count, of those that are looked for.
const SEARCHED_WORDS_MAX: usize = 8;

impl Indexer {
    /// Puts the members of a room where they belong. False when the lease is lost.
    pub(super) async fn update_room(&self, lease: &Lease, room_nid: i64, members: &[Member]) -> Result<bool> {
        let is_public = self.rooms.is_open(room_nid).await?;
        if self.store().directory_room(room_nid).await?.is_some_and(|was_public| was_public != is_public)
            && !self.move_members(lease, room_nid, is_public).await?
        {
            return Ok(false);
        }
        for chunk in members.chunks(CHUNK) {
            let places = self.places_of(chunk).await?;
            if !self.store().place_in_directory(lease, room_nid, is_public, &places).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// All members of a room, which has become public or is so no more. Should this end halfway, it begins anew.
    async fn move_members(&self, lease: &Lease, room_nid: i64, is_public: bool) -> Result<bool> {
        let mut after = i64::MIN;
        loop {
            let members = self.store().joined_members(room_nid, after, CHUNK).await?;
            let Some((last, _)) = members.last() else { break };
            after = *last;
            let place = |(user_nid, _)| DirectoryPlace { user_nid, is_joined: true, profile: None };
            let places: Vec<_> = members.into_iter().map(place).collect();
            if !self.store().place_in_directory(lease, room_nid, is_public, &places).await? {
                return Ok(false);
            }
        }
        self.store().place_in_directory(lease, room_nid, is_public, &[]).await.map_err(Into::into)
    }

    async fn places_of(&self, members: &[Member]) -> Result<Vec<DirectoryPlace>> {
        let joined: Vec<Member> =
            members.iter().filter(|member| member.membership == Membership::Join).copied().collect();
        let nids: Vec<i64> = joined.iter().map(|member| member.user_nid).collect();
        let user_ids = self.store().user_ids(&nids).await?;
        let own: HashMap<i64, _> = self
            .store()
            .own_profiles(&nids)
            .await?
            .into_iter()
            .map(|(nid, name, avatar)| (nid, (name.and_then(text), avatar.and_then(text))))
            .collect();
        // What others say of themselves stands in their memberships.
        let others: Vec<i64> =
            joined.iter().filter(|member| !own.contains_key(&member.user_nid)).map(|m| m.event_nid).collect();
        let events: HashMap<i64, _> =
            self.store().events(&others).await?.into_iter().map(|event| (event.nid, event)).collect();

        let mut profiles = HashMap::new();
        for (member, user_id) in joined.iter().zip(&user_ids) {
            let (display_name, avatar_url) = match own.get(&member.user_nid) {
                Some(profile) => profile.clone(),
                None => {
                    let content = events.get(&member.event_nid).map_or("{}", |event| event.content());
                    let said: Said = serde_json::from_str(content).unwrap_or_default();
                    (said.displayname, said.avatar_url)
                }
            };
            let mut found = words(user_id.localpart());
            found.extend(words(display_name.as_deref().unwrap_or_default()));
            found.truncate(WORDS_MAX);
            found.sort_unstable();
            found.dedup();
            profiles.insert(member.user_nid, DirectoryProfile { display_name, avatar_url, words: found });
        }
        let place = |member: &Member| DirectoryPlace {
            user_nid: member.user_nid,
            is_joined: member.membership == Membership::Join,
            profile: profiles.get(&member.user_nid).cloned(),
        };
        Ok(members.iter().map(place).collect())
    }
}

/// A text from its JSON; none if it is something else.
fn text(json: String) -> Option<String> {
    serde_json::from_str(&json).ok()
}

/// What a membership tells of its user.
#[derive(Default, Deserialize)]
struct Said {
    displayname: Option<String>,
    avatar_url: Option<String>,
}

impl Rooms {
    /// Whether the members of a room are found by everyone: "users who are joined to rooms known to the homeserver that
    /// have a public join rule", or "a world_readable history visibility".
    async fn is_open(&self, room_nid: i64) -> Result<bool> {
        #[derive(Deserialize)]
        struct JoinRules {
            join_rule: String,
        }
        let root = self.store.head(room_nid).await?.state_root;
        if let Some(event) = self.state_event_at(root, "m.room.join_rules", "").await?
            && serde_json::from_str::<JoinRules>(event.content()).is_ok_and(|rules| rules.join_rule == "public")
        {
            return Ok(true);
        }
        let visibility = self.state_event_at(root, "m.room.history_visibility", "").await?;
        Ok(HistoryVisibility::of(visibility.as_ref()) == HistoryVisibility::WorldReadable)
    }

    /// Users whom a user may find, the best first, at most `limit`; and whether there are more.
    ///
    /// All words of the term have to begin words of the name or of the identifier. A whole identifier is understood too.
    pub async fn search_users(&self, user_nid: i64, term: &str, limit: usize) -> Result<(Vec<DirectoryUser>, bool)> {
        let term = term.trim().to_lowercase();
        let (name, server) = match term.strip_prefix('@').unwrap_or(&term).split_once(':') {
            Some((local, server)) if !server.contains(char::is_whitespace) => (local, server),
            _ => (term.as_str(), ""),
        };
        let mut searched = words(name);
        searched.sort_unstable_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        searched.dedup();
        searched.truncate(SEARCHED_WORDS_MAX);
        let search = DirectorySearch { user_nid, words: &searched, server, limit: limit.saturating_add(1) };
        let mut found = self.store.search_directory(&search).await?;
        let is_exact = |user: &DirectoryUser| searched.first().is_some_and(|word| *word == user.word);
        // "Ordered by rank and then whether or not profile info is available."
        found.sort_by_key(|user| (!is_exact(user), user.display_name.is_none() && user.avatar_url.is_none()));
        let is_limited = found.len() > limit;
        found.truncate(limit);
        Ok((found, is_limited))
    }
}
