//! The user directory: who is found by which words, and by whom.
//!
//! Users are found by the members of the rooms that they are in, and by everyone if one of these is public. There is a
//! row for each word of a user in each room that is not public, and one for all public ones: what a searcher may find is
//! then a few ranges of an index, and the first rows of each are enough.
//!
//! It is written by one replica, which follows the stream; what it writes follows from the memberships of the moment, so
//! that it may be written twice.

use ruma::{OwnedUserId, UserId};

use crate::{
    Error, Lease, Result, Store,
    database::Transaction,
    rooms::{Member, MemberRow},
    sql::{Ids, Sql, execute, listed, optional, rows},
};

/// The scope of those whom everyone finds.
const EVERYONE: i64 = 0;
/// Words of one user that begin alike, at the most, for all of which a search has room.
const WORDS_ALIKE: usize = 4;
/// After every text that begins with what is before it.
const LAST: char = char::MAX;

/// What is known of a user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DirectoryProfile {
    /// The name.
    pub display_name: Option<String>,
    /// The picture.
    pub avatar_url: Option<String>,
    /// What the user is found by.
    pub words: Vec<String>,
}

/// A user's place in a room, as the directory has to know it.
#[derive(Clone, Debug)]
pub struct DirectoryPlace {
    /// The user.
    pub user_nid: i64,
    /// Whether the user is in the room.
    pub is_joined: bool,
    /// What is known of the user; `None` leaves what was known before.
    pub profile: Option<DirectoryProfile>,
}

/// What is looked for in the directory.
#[derive(Clone, Copy, Debug)]
pub struct DirectorySearch<'a> {
    /// Who searches.
    pub user_nid: i64,
    /// The beginnings of words, all of which a user has to have; the longest first.
    pub words: &'a [String],
    /// The beginning of the name of the user's server.
    pub server: &'a str,
    /// How many are wanted.
    pub limit: usize,
}

/// A user who was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectoryUser {
    /// The user.
    pub user_id: OwnedUserId,
    /// The name.
    pub display_name: Option<String>,
    /// The picture.
    pub avatar_url: Option<String>,
    /// The word that begins with the first of those that were looked for.
    pub word: String,
}

impl Store {
    /// The places in rooms that changed at the positions `(from, to]`.
    pub async fn changed_members(&self, from: i64, to: i64) -> Result<Vec<Member>> {
        let mut reader = self.database.reader().await?;
        let found: Vec<MemberRow> = rows!(
            reader,
            "SELECT room_nid, user_nid, membership, event_nid, pos, forgotten FROM memberships
             WHERE pos > $1 AND pos <= $2 ORDER BY pos",
            from,
            to
        )?;
        found.into_iter().map(Member::try_from).collect()
    }

    /// The names and pictures of those among some users who have an account here: what is set, as JSON.
    pub async fn own_profiles(&self, user_nids: &[i64]) -> Result<Vec<(i64, Option<String>, Option<String>)>> {
        let mut reader = self.database.reader().await?;
        Ok(rows!(
            reader,
            listed!(
                "SELECT a.user_nid, n.value, p.value FROM accounts AS a
                 LEFT JOIN profile_fields AS n ON n.user_nid = a.user_nid AND n.field = 'displayname'
                 LEFT JOIN profile_fields AS p ON p.user_nid = a.user_nid AND p.field = 'avatar_url'
                 WHERE a.user_nid ",
                "$1",
                ""
            ),
            Ids(user_nids)
        )?)
    }

    /// Whether the directory has a room as public; `None` if it does not know the room.
    pub async fn directory_room(&self, room_nid: i64) -> Result<Option<bool>> {
        let mut reader = self.database.reader().await?;
        let found: Option<(bool,)> =
            optional!(reader, "SELECT is_public FROM directory_rooms WHERE room_nid = $1", room_nid)?;
        Ok(found.map(|(is_public,)| is_public))
    }

    /// Puts users into the directory for a room that they are in, and takes out those who are not. False when the lease
    /// is held no more: nothing is written then.
    pub async fn place_in_directory(
        &self,
        lease: &Lease,
        room_nid: i64,
        is_public: bool,
        places: &[DirectoryPlace],
    ) -> Result<bool> {
        let mut transaction = self.database.begin().await?;
        if !Self::is_held(&mut transaction, lease).await? {
            return Ok(false);
        }
        execute!(
            transaction,
            "INSERT INTO directory_rooms (room_nid, is_public) VALUES ($1, $2)
             ON CONFLICT (room_nid) DO UPDATE SET is_public = excluded.is_public",
            room_nid,
            is_public
        )?;
        for place in places {
            if place.is_joined {
                join(&mut transaction, room_nid, is_public, place).await?;
            } else {
                leave(&mut transaction, room_nid, place.user_nid).await?;
            }
        }
        transaction.commit().await?;
        Ok(true)
    }

    /// Users whom a user may find, at least as many as are wanted if there are so many, those whose word is the shortest
    /// first.
    pub async fn search_directory(&self, search: &DirectorySearch<'_>) -> Result<Vec<DirectoryUser>> {
        let Some((first, others)) = search.words.split_first() else { return Ok(Vec::new()) };
        let sql = Sql {
            sqlite: "WITH scopes AS (SELECT 0 AS scope UNION ALL
                         SELECT room_nid FROM memberships WHERE user_nid = $1 AND membership = 1)
                     SELECT u.user_id, d.display_name, d.avatar_url, MIN(w.word) AS first
                     FROM scopes AS s CROSS JOIN directory_words AS w ON w.rowid IN (
                         SELECT n.rowid FROM directory_words AS n
                         WHERE n.scope = s.scope AND n.word >= $2 AND n.word < $3
                           AND NOT EXISTS (SELECT 1 FROM json_each($4) AS t WHERE NOT EXISTS (
                               SELECT 1 FROM directory_words AS o WHERE o.user_nid = n.user_nid AND o.scope = n.scope
                               AND o.word >= t.value AND o.word < t.value || $5))
                           AND ($6 = '' OR EXISTS (SELECT 1 FROM users AS x WHERE x.user_nid = n.user_nid
                               AND substr(x.user_id, instr(x.user_id, ':') + 1, length($6)) = $6))
                         ORDER BY n.word, n.user_nid LIMIT $7)
                     JOIN directory_users AS d ON d.user_nid = w.user_nid
                     JOIN users AS u ON u.user_nid = w.user_nid
                     GROUP BY u.user_id, d.display_name, d.avatar_url ORDER BY first, u.user_id LIMIT $7",
            postgres: "WITH scopes AS (SELECT 0::bigint AS scope UNION ALL
                         SELECT room_nid FROM memberships WHERE user_nid = $1 AND membership = 1)
                       SELECT u.user_id, d.display_name, d.avatar_url, MIN(w.word) AS first
                       FROM scopes AS s CROSS JOIN LATERAL (
                         SELECT n.user_nid, n.word FROM directory_words AS n
                         WHERE n.scope = s.scope AND n.word >= $2 AND n.word < $3
                           AND NOT EXISTS (SELECT 1 FROM unnest($4) AS t(value) WHERE NOT EXISTS (
                               SELECT 1 FROM directory_words AS o WHERE o.user_nid = n.user_nid AND o.scope = n.scope
                               AND o.word >= t.value AND o.word < t.value || $5))
                           AND ($6 = '' OR EXISTS (SELECT 1 FROM users AS x WHERE x.user_nid = n.user_nid
                               AND substr(x.user_id, strpos(x.user_id, ':') + 1, length($6)) = $6))
                         ORDER BY n.word, n.user_nid LIMIT $7) AS w
                       JOIN directory_users AS d ON d.user_nid = w.user_nid
                       JOIN users AS u ON u.user_nid = w.user_nid
                       GROUP BY u.user_id, d.display_name, d.avatar_url ORDER BY first, u.user_id LIMIT $7",
        };
        let others: Vec<&str> = others.iter().map(String::as_str).collect();
        let rows_max = i64::try_from(search.limit.saturating_mul(WORDS_ALIKE)).unwrap_or(i64::MAX);
        let mut reader = self.database.reader().await?;
        let found: Vec<(String, Option<String>, Option<String>, String)> = rows!(
            reader,
            sql,
            search.user_nid,
            first.as_str(),
            format!("{first}{LAST}"),
            crate::sql::Texts(&others),
            LAST.to_string(),
            search.server,
            rows_max
        )?;
        found
            .into_iter()
            .map(|(user_id, display_name, avatar_url, word)| {
                let user_id = UserId::parse(user_id).map_err(|_| Error::Corrupt { what: "user id" })?;
                Ok(DirectoryUser { user_id, display_name, avatar_url, word })
            })
            .collect()
    }

    /// The rooms that both of two users are in, by number.
    pub async fn mutual_rooms(&self, a_nid: i64, b_nid: i64) -> Result<Vec<i64>> {
        let mut reader = self.database.reader().await?;
        let found: Vec<(i64,)> = rows!(
            reader,
            "SELECT a.room_nid FROM memberships AS a JOIN memberships AS b ON b.room_nid = a.room_nid
             WHERE a.user_nid = $1 AND a.membership = 1 AND b.user_nid = $2 AND b.membership = 1
             ORDER BY a.room_nid",
            a_nid,
            b_nid
        )?;
        Ok(found.into_iter().map(|(room_nid,)| room_nid).collect())
    }
}

async fn join(transaction: &mut Transaction, room_nid: i64, is_public: bool, place: &DirectoryPlace) -> Result<()> {
    let user_nid = place.user_nid;
    let known: Option<(Option<String>, Option<String>, String)> = optional!(
        transaction,
        "SELECT display_name, avatar_url, words FROM directory_users WHERE user_nid = $1",
        user_nid
    )?;
    let words = match (&place.profile, known) {
        (None, None) => return Ok(()),
        (None, Some((_, _, words))) => words,
        (Some(profile), known) => {
            let words = crate::sql::json_rows(&profile.words);
            let is_same = known.as_ref().is_some_and(|(name, avatar, known_words)| {
                *name == profile.display_name && *avatar == profile.avatar_url && *known_words == words
            });
            if !is_same {
                rename(transaction, user_nid, profile, &words).await?;
            }
            words
        }
    };
    let scope = if is_public { EVERYONE } else { room_nid };
    add_words(transaction, scope, user_nid, &words).await?;
    if is_public {
        // The room may have been otherwise before.
        remove_words(transaction, room_nid, user_nid).await
    } else {
        hide(transaction, user_nid).await
    }
}

/// Gives a user other words, in all scopes.
async fn rename(transaction: &mut Transaction, user_nid: i64, profile: &DirectoryProfile, words: &str) -> Result<()> {
    execute!(
        transaction,
        "INSERT INTO directory_users (user_nid, display_name, avatar_url, words) VALUES ($1, $2, $3, $4)
         ON CONFLICT (user_nid) DO UPDATE SET display_name = excluded.display_name, avatar_url = excluded.avatar_url,
             words = excluded.words",
        user_nid,
        profile.display_name.as_deref(),
        profile.avatar_url.as_deref(),
        words
    )?;
    let scopes: Vec<(i64,)> =
        rows!(transaction, "SELECT DISTINCT scope FROM directory_words WHERE user_nid = $1", user_nid)?;
    execute!(transaction, "DELETE FROM directory_words WHERE user_nid = $1", user_nid)?;
    for (scope,) in scopes {
        add_words(transaction, scope, user_nid, words).await?;
    }
    Ok(())
}

async fn leave(transaction: &mut Transaction, room_nid: i64, user_nid: i64) -> Result<()> {
    remove_words(transaction, room_nid, user_nid).await?;
    hide(transaction, user_nid).await?;
    execute!(
        transaction,
        "DELETE FROM directory_users WHERE user_nid = $1
         AND NOT EXISTS (SELECT 1 FROM directory_words WHERE user_nid = $1)",
        user_nid
    )?;
    Ok(())
}

async fn add_words(transaction: &mut Transaction, scope: i64, user_nid: i64, words: &str) -> Result<()> {
    let sql = Sql {
        sqlite: "INSERT INTO directory_words (scope, word, user_nid) SELECT $1, value, $2 FROM json_each($3) WHERE TRUE
                 ON CONFLICT DO NOTHING",
        postgres: "INSERT INTO directory_words (scope, word, user_nid)
                   SELECT $1, value, $2 FROM json_array_elements_text(CAST($3 AS json)) AS w(value)
                   ON CONFLICT DO NOTHING",
    };
    execute!(transaction, sql, scope, user_nid, words)?;
    Ok(())
}

async fn remove_words(transaction: &mut Transaction, scope: i64, user_nid: i64) -> Result<()> {
    execute!(transaction, "DELETE FROM directory_words WHERE user_nid = $1 AND scope = $2", user_nid, scope)?;
    Ok(())
}

/// Lets a user be found by everyone no more, unless another room is public.
async fn hide(transaction: &mut Transaction, user_nid: i64) -> Result<()> {
    execute!(
        transaction,
        "DELETE FROM directory_words WHERE user_nid = $1 AND scope = 0 AND NOT EXISTS (
             SELECT 1 FROM memberships AS m JOIN directory_rooms AS r ON r.room_nid = m.room_nid
             WHERE m.user_nid = $1 AND m.membership = 1 AND r.is_public)",
        user_nid
    )?;
    Ok(())
}
